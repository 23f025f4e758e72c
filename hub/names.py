"""Which model ids and file paths are let in: pure rules, the same for what is pulled and for what is published."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

MAX_PATH = 240
MAX_PART = 160
MAX_FILES = 10_000
MAX_REPO_ID = 96
_ALLOWED = "letters, digits and . _ - + @ = , ( ) or a space"
_PART = re.compile(r"[A-Za-z0-9._+@=,() -]+", re.ASCII)
_OWNER_OR_NAME = re.compile(r"[A-Za-z0-9_](?:[\w.-]*[A-Za-z0-9_])?", re.ASCII)
# Folders that git and the Hub's client keep their own state in: a file there is configuration that somebody else wrote.
_STATE_FOLDERS = frozenset({".git", ".cache", ".hg", ".svn"})
# Names that Windows keeps for devices, whatever ending follows.
DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{kind}{number}" for kind in ("com", "lpt") for number in range(1, 10))})


def shown(value: str, limit: int = 80) -> str:
    """Return a foreign text in quotes, escaped to plain ASCII and cut, fit for a message."""
    return ascii(value) if len(value) <= limit else ascii(value[:limit]) + "..."


def repo_id_fault(repo_id: str) -> str | None:
    r"""Return why a model id is not taken, or None: `owner/name` of ASCII `[\w.-]`, at most 96 characters, without `--` or `..`."""
    parts = repo_id.split("/")
    if len(parts) != 2:
        return f"{shown(repo_id)} is not a model id; expected owner/name"
    if len(repo_id) > MAX_REPO_ID:
        return f"the model id {shown(repo_id)} has {len(repo_id)} characters; at most {MAX_REPO_ID} are allowed"
    if not all(_OWNER_OR_NAME.fullmatch(part) for part in parts):
        return f"the model id {shown(repo_id)} is not allowed; expected letters, digits, _ . and -, the last two only inside"
    if "--" in repo_id or ".." in repo_id or repo_id.lower().endswith((".git", ".ipynb")):
        return f"the model id {shown(repo_id)} is not allowed; it may not hold -- or .. nor end in .git"
    return None


def path_fault(path: str) -> str | None:
    """Return why a file's path inside a repository is not taken, or None."""
    if len(path) > MAX_PATH:
        return f"the file path {shown(path)} has {len(path)} characters; at most {MAX_PATH} are allowed"
    for part in path.split("/"):
        if part in {"", ".", ".."}:
            return f"the file path {shown(path)} is not relative and plain; expected folder/file without empty, . or .. parts"
        if not _PART.fullmatch(part):
            return f"the file path {shown(path)} holds a character that is not allowed; allowed are {_ALLOWED}"
        if len(part) > MAX_PART:
            return f"a part of the file path {shown(path)} has {len(part)} characters; at most {MAX_PART} are allowed"
        if part[0] == " " or part[-1] in " .":
            return f"a part of the file path {shown(path)} begins or ends with a space or ends with a dot; no system keeps such names alike"
        if part.lower() in _STATE_FOLDERS:
            return f"the file path {shown(path)} lies in {part}, which belongs to git or to the Hub's client"
        if part.lower().split(".")[0] in DEVICES:
            return f"the file path {shown(path)} is the name of a device on Windows"
    return None


def fitting(paths: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the paths that fit one of the shell patterns; `*` stays inside a folder, as in a shell."""
    chosen = tuple(patterns)
    return [path for path in paths if any(path.count("/") == pattern.count("/") and fnmatchcase(path, pattern) for pattern in chosen)]


def paths_fault(paths: Iterable[str]) -> str | None:
    """Return why a whole listing is not taken, or None: every path by itself, their number, and names that differ in case alone.

    A name that is a file in one place and a folder in another is refused too.
    """
    seen: dict[str, tuple[str, bool]] = {}
    for count, path in enumerate(paths, start=1):
        if count > MAX_FILES:
            return f"the repository has more than {MAX_FILES} files"
        if fault := path_fault(path):
            return fault
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            name, is_file = "/".join(parts[:depth]), depth == len(parts)
            other, other_is_file = seen.setdefault(name.lower(), (name, is_file))
            if other != name:
                return f"the file paths {shown(other)} and {shown(name)} differ in upper and lower case alone"
            if is_file != other_is_file:
                return f"the file path {shown(name)} is a file and a folder at once"
    return None
