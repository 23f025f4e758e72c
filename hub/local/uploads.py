"""Preupload and commit: which files go to LFS, and a change of a branch that happens whole or not at all."""

from __future__ import annotations

import base64
import binascii
import json
import re
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hub.local import cards, commits, discussions, gitids, paths, repos, summary
from hub.local.accounts import Account
from hub.local.commits import Commit
from hub.local.gitids import File
from hub.local.web import ApiError, Call

_OID = re.compile(r"[0-9a-f]{64}")
_POINTER = b"version https://git-lfs.github.com/spec/"


def preupload(call: Call) -> dict[str, Any]:
    """POST /api/models/{id}/preupload/{rev}: for every file its upload mode, whether it is ignored, and the id it has now."""
    body = call.json()
    wanted = body.get("files")
    if not isinstance(wanted, list):
        raise ApiError(400, "'files' must be a list")
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        _may_commit(call, repo)
        commit = commits.resolve(connection, repo, call.params["rev"])
        files = commits.files(connection, commit.tree)
    attributes = _small_text(call, files, ".gitattributes")
    gitignore = body.get("gitIgnore")
    if not isinstance(gitignore, str):
        gitignore = _small_text(call, files, ".gitignore") or ""
    return {"files": [_mode(item, files, attributes, gitignore) for item in wanted], "commitOid": commit.id}


def _small_text(call: Call, files: Mapping[str, File], path: str) -> str | None:
    file = files.get(path)
    return call.hub.blobs.read(file.sha256, 1 << 20).decode("utf-8", "replace") if file else None


def _mode(item: Any, files: Mapping[str, File], attributes: str | None, gitignore: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ApiError(400, f"A file must be an object with path, sample and size, not {item!r:.100}")
    path = paths.check_path(item.get("path"))
    try:
        sample = base64.b64decode(item.get("sample") or "", validate=True)
        size = int(item.get("size", 0))
    except (binascii.Error, ValueError, TypeError) as error:
        raise ApiError(400, f"'sample' of {path!r:.100} must be base64 and 'size' a number") from error
    answer = {"path": path, "uploadMode": paths.upload_mode(path, size, sample, attributes), "shouldIgnore": paths.ignored(path, gitignore)}
    return answer | ({"oid": files[path].etag} if path in files else {})


@dataclass(frozen=True, kw_only=True)
class Change:
    """A commit as it was asked for: its words, the parent it expects, and what it does to the files, in order."""

    title: str
    message: str
    parent: str | None
    steps: tuple[Callable[[dict[str, File]], None], ...] = field(repr=False)


def commit(call: Call) -> dict[str, Any]:
    """POST /api/models/{id}/commit/{rev}[?create_pr=1]; 412 if `parentCommit` is no longer the head."""
    make_pr = call.flag("create_pr")
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        account = _may_commit(call, repo)
    change = read_change(call)
    with call.hub.database.write() as connection:
        repo = repos.visible(call, connection)
        ref_name, head = _target(connection, repo, call.params["rev"], change, make_pr)
        files = commits.files(connection, head.tree)
        for step in change.steps:
            step(files)
        _check_tree(files)
        num = discussions.open_number(connection, repo) if make_pr else 0
        made = commits.write(
            connection,
            repo,
            files,
            ref_name=f"refs/pr/{num}" if make_pr else ref_name,
            parents=[head.id],
            author=account.name,
            title=change.title,
            message=change.message,
        )
        summary.keep(connection, call.hub.blobs, made.tree)
        if make_pr:
            opening = discussions.Opening(title=change.title, description=change.message, target=ref_name, base=head.id)
            discussions.begin(connection, call, repo, num, opening)
        discussions.note_commit(connection, call, repo, f"refs/pr/{num}" if make_pr else ref_name, made)
    answer = {"success": True, "commitOid": made.id, "commitUrl": f"{call.base}/{repo.web_path}/commit/{made.id}", "hookOutput": ""}
    return answer | ({"pullRequestUrl": f"{call.base}/{repo.web_path}/discussions/{num}"} if make_pr else {})


def _may_commit(call: Call, repo: repos.Repo) -> Account:
    """Let whoever has a write token propose changes, and the owner make them."""
    if not call.flag("create_pr") and not call.params["rev"].startswith("refs/pr/"):
        repos.may_write(call, repo.owner)
    return repos.may_contribute(call)


def _target(connection: sqlite3.Connection, repo: repos.Repo, revision: str, change: Change, make_pr: bool) -> tuple[str, Commit]:
    """Return the ref to move and its head, checked against the parent that the client expects."""
    name = commits.full_ref(revision)
    at = commits.ref(connection, repo, name)
    if at is None:
        commits.resolve(connection, repo, revision)  # 404 if it is nothing at all
        raise ApiError(400, f"A commit can only go to a branch or a pull request, and {revision!r:.100} is neither")
    if change.parent is not None and change.parent != at:
        if make_pr:
            return name, commits.resolve(connection, repo, change.parent)
        raise ApiError(412, f"A commit has happened since. Please refresh and try again. (expected {change.parent:.40}, the head is {at})")
    head = commits.get(connection, repo, at)
    assert head is not None
    return name, head


def read_change(call: Call) -> Change:
    """Read the lines of a commit's body; regular files are put aside as blobs at once, LFS files must be here already."""
    header: dict[str, Any] | None = None
    steps: list[Callable[[dict[str, File]], None]] = []
    for number, line in enumerate(call.body.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            key, value = str(entry["key"]), entry["value"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ApiError(400, f"Line {number} of the commit is not a JSON object with key and value") from error
        if not isinstance(value, dict):
            raise ApiError(400, f"Line {number} of the commit: the value must be an object")
        if key == "header":
            header = value
        elif key in _STEPS:
            steps.append(_STEPS[key](call, value))
        else:
            raise ApiError(400, f"Line {number} of the commit: unknown key {key!r:.60}; known are header, {', '.join(_STEPS)}")
    title = (header or {}).get("summary")
    if header is None or not isinstance(title, str) or not title.strip():
        raise ApiError(400, "A commit needs a header line with a summary")
    parent = header.get("parentCommit")
    if parent is not None and not (isinstance(parent, str) and re.fullmatch(r"[0-9a-f]{7,40}", parent)):
        raise ApiError(400, f"'parentCommit' must be a commit id, not {parent!r:.60}")
    return Change(title=title, message=str(header.get("description") or ""), parent=parent, steps=tuple(steps))


def _add_file(call: Call, value: dict[str, Any]) -> Callable[[dict[str, File]], None]:
    path = paths.check_path(value.get("path"))
    content, encoding = value.get("content", ""), value.get("encoding", "utf-8")
    try:
        data = base64.b64decode(content, validate=True) if encoding == "base64" else content.encode()
    except (ValueError, TypeError, AttributeError) as error:
        raise ApiError(400, f"The content of {path!r:.100} is not valid {encoding!r:.40}") from error
    if len(data) > paths.LFS_SIZE:
        raise ApiError(400, f"{path!r:.100} is larger than 10 MiB; such files go through LFS")
    if data.startswith(_POINTER):
        raise ApiError(400, f"{path!r:.100} is an LFS pointer; name the object in a line lfsFile instead")
    if path == "README.md":
        errors, _ = cards.validate(data.decode("utf-8", "replace"))
        if errors:
            raise ApiError(400, "Invalid metadata in README.md.\n" + "\n".join(f"- {error}" for error in errors))
    file = gitids.regular_file(path, data)
    call.hub.blobs.put(data)
    return lambda files: files.update({path: file})


def _add_lfs_file(call: Call, value: dict[str, Any]) -> Callable[[dict[str, File]], None]:
    path, oid = paths.check_path(value.get("path")), value.get("oid")
    if value.get("algo", "sha256") != "sha256" or not isinstance(oid, str) or not _OID.fullmatch(oid):
        raise ApiError(400, f"The LFS file {path!r:.100} must have algo sha256 and a SHA-256 oid")
    if not call.hub.blobs.has(oid):
        raise ApiError(400, f"The LFS object {oid} of {path!r:.100} was not uploaded")
    size = call.hub.blobs.path(oid).stat().st_size
    if value.get("size", size) != size:
        raise ApiError(400, f"The LFS object {oid} of {path!r:.100} has {size} bytes, not {value['size']!r:.40}")
    file = gitids.lfs_file(path, oid, size)
    return lambda files: files.update({path: file})


def _delete_file(_call: Call, value: dict[str, Any]) -> Callable[[dict[str, File]], None]:
    path = paths.check_path(value.get("path"))

    def step(files: dict[str, File]) -> None:
        if files.pop(path, None) is None:
            raise ApiError(404, f"{path!r:.100} cannot be deleted: it is not there", code="EntryNotFound")

    return step


def _delete_folder(_call: Call, value: dict[str, Any]) -> Callable[[dict[str, File]], None]:
    raw = value.get("path")
    prefix = paths.check_path(raw.rstrip("/") if isinstance(raw, str) else raw) + "/"

    def step(files: dict[str, File]) -> None:
        inside = [path for path in files if path.startswith(prefix)]
        if not inside:
            raise ApiError(404, f"The folder {prefix!r:.100} cannot be deleted: it is not there", code="EntryNotFound")
        for path in inside:
            del files[path]

    return step


_STEPS: dict[str, Callable[[Call, dict[str, Any]], Callable[[dict[str, File]], None]]] = {
    "file": _add_file,
    "lfsFile": _add_lfs_file,
    "deletedFile": _delete_file,
    "deletedFolder": _delete_folder,
}


def _check_tree(files: Mapping[str, File]) -> None:
    conflict = paths.has_conflict(files)
    if conflict is not None:
        raise ApiError(400, f"{conflict!r:.100} would be a file and a folder at once")
    if len(files) > 100_000:
        raise ApiError(400, f"A repository may hold 100000 files, not {len(files)}")
