"""File names inside a repository: what is refused, what goes to LFS, what a .gitignore leaves out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

from hub.local.web import ApiError

LFS_SIZE = 10 * 1024 * 1024
_LFS_ENDINGS = (
    "7z arrow bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl pt pth rar safetensors tar tflite "
    "tgz wasm xz zip zst gguf"
)
_LFS_PATTERNS = (*(f"*.{ending}" for ending in _LFS_ENDINGS.split()), "*.lfs.*", "*.tar.*", "saved_model/**/*", "*tfevents*")
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in _LFS_PATTERNS)


def check_path(path: object) -> str:
    """Return a file path that git, the client and every file system can take; raise 400 for any other."""
    if not isinstance(path, str) or not path:
        raise ApiError(400, f"A file's path must be a non-empty string, not {path!r:.100}")
    try:
        size = len(path.encode())
    except UnicodeEncodeError as error:
        raise ApiError(400, f"The path {path!r:.100} is not valid Unicode") from error
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise ApiError(400, f"The path {path!r:.100} must be relative, without empty, '.' or '..' parts")
    if any(part.lower() in (".git", ".git.") or part.lower().startswith(".git/") for part in parts):
        raise ApiError(400, f"The path {path!r:.100} must not go through a folder named .git")
    if "\\" in path or any(ord(character) < 32 or ord(character) == 127 for character in path):
        raise ApiError(400, f"The path {path!r:.100} must not hold backslashes or control characters")
    if size > 1000 or any(len(part.encode()) > 255 for part in parts):
        raise ApiError(400, f"The path {path!r:.100} is too long: at most 255 bytes a part and 1000 in all")
    return path


def upload_mode(path: str, size: int, sample: bytes, attributes: str | None) -> str:
    """Return `lfs` or `regular`: by the repository's .gitattributes, then size, then whether the first bytes look like text."""
    patterns = _LFS_PATTERNS if attributes is None else _lfs_patterns(attributes)
    name = path.rsplit("/", 1)[-1]
    if any(fnmatchcase(path if "/" in pattern else name, pattern) for pattern in patterns):
        return "lfs"
    return "lfs" if size > LFS_SIZE or not _is_text(sample) else "regular"


def ignored(path: str, gitignore: str) -> bool:
    """Tell whether a .gitignore (at the root) leaves the path out; later lines win, `!` takes back."""
    result = False
    for pattern, negated in _ignore_rules(gitignore):
        if pattern.match(path):
            result = not negated
    return result


def has_conflict(paths: Iterable[str]) -> str | None:
    """Return a path that is a file and a folder at once, or None."""
    known = set(paths)
    for path in known:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in known:
                return "/".join(parts[:depth])
    return None


def _is_text(sample: bytes) -> bool:
    if b"\0" in sample:
        return False
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(sample) - 3  # a sample may end in the middle of a character
    return True


@lru_cache(maxsize=64)
def _lfs_patterns(attributes: str) -> tuple[str, ...]:
    lines = (line.split() for line in attributes.splitlines() if line.strip() and not line.startswith("#"))
    return tuple(words[0] for words in lines if "filter=lfs" in words[1:])


@lru_cache(maxsize=64)
def _ignore_rules(gitignore: str) -> tuple[tuple[re.Pattern[str], bool], ...]:
    rules = []
    for raw in gitignore.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        negated = line.startswith("!")
        line = line.removeprefix("!")
        anchored = "/" in line.rstrip("/")
        inside = "/.*" if line.endswith("/") else "(?:/.*)?"
        body = "".join(_translate(token) for token in re.findall(r"\*\*/|\*\*|\*|\?|.", line.strip("/")))
        rules.append((re.compile(("" if anchored else "(?:.*/)?") + body + inside + r"\Z"), negated))
    return tuple(rules)


def _translate(token: str) -> str:
    return {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}.get(token, re.escape(token))
