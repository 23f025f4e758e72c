"""Bytes against the Hub's listing: checksums, and marks that remember which files of a snapshot were found right."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from hub import names
from hub.domain import HubFile
from hub.errors import OutOfDisk, UsageError

_CHUNK = 1 << 20
_SPARE = 64 << 20
_ABANDONED_S = 3600


@dataclass(frozen=True, kw_only=True)
class Sums:
    """A file's size, SHA-256 and git blob SHA-1: the Hub lists large files by the one, files kept in git by the other."""

    size: int
    sha256: str
    blob_id: str

    def match(self, listed: HubFile) -> bool:
        """Tell whether a file with these sums is the listed one."""
        if self.size != listed.size:
            return False
        return self.sha256 == listed.sha256 if listed.sha256 else self.blob_id == listed.blob_id


def sums(content: Path | bytes) -> Sums:
    """Return the sums of a file or of bytes."""
    if isinstance(content, bytes):
        return Sums(size=len(content), sha256=hashlib.sha256(content).hexdigest(), blob_id=_git_sha1(content))
    with content.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return _read_sums(file, size)


def _read_sums(file: BinaryIO, size: int) -> Sums:
    whole, blob, read = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False), 0
    while chunk := file.read(_CHUNK):
        whole.update(chunk)
        blob.update(chunk)
        read += len(chunk)
    return Sums(size=read, sha256=whole.hexdigest(), blob_id=blob.hexdigest())


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def wanted(files: Iterable[HubFile], patterns: Iterable[str] | None) -> tuple[HubFile, ...]:
    """Return the files whose path fits one of the shell patterns (None: all); `*` stays inside a folder, unlike in the Hub's library."""
    if patterns is None:
        return tuple(files)
    by_path = {file.path: file for file in files}
    return tuple(by_path[path] for path in names.fitting(by_path, patterns))


def require_room(folder: Path, needed: int, subject: str) -> None:
    """Raise `OutOfDisk` where the disk of `folder` has less room than `needed` bytes and a little to spare."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed and needed + _SPARE > free:
        raise OutOfDisk(
            f"{subject} needs {needed / 1e9:.2f} GB on the disk of {folder}, which has {free / 1e9:.2f} GB free",
            hint="Free some room, or choose a work_dir on another disk.",
        )


class Marks:
    """The files of one snapshot that were verified, kept beside the cache as JSON: path -> size, time of change and checksum.

    A file whose size or time has changed since, or whose listed checksum is another one, counts as not verified.
    """

    def __init__(self, cache_dir: Path, repo_id: str, sha: str) -> None:
        """Look at the marks of the snapshot `sha` of `repo_id` in a cache."""
        self._path = cache_dir / ".verified" / f"{repo_id.replace('/', '--')}@{sha}.json"

    def listing(self) -> tuple[HubFile, ...] | None:
        """Return the listing of this commit as it was first seen, or None; a commit never changes."""
        listed = self._load().get("listing")
        try:
            return tuple(HubFile(**entry) for entry in listed) if listed else None
        except TypeError:
            return None

    def holds(self, file: HubFile, path: Path) -> bool:
        """Tell whether the file at `path` was verified as `file` and has not changed since."""
        try:
            return bool(self._load().get("files", {}).get(file.path) == _mark(file, path))
        except OSError:
            return False

    def add(self, listing: Iterable[HubFile], verified: Mapping[HubFile, Path]) -> None:
        """Remember the listing and the files that were found right; written atomically."""
        data = self._load()
        data["listing"] = [vars(file) for file in listing]
        data["files"] = {**data.get("files", {}), **{file.path: _mark(file, path) for file, path in verified.items()}}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, suffix=".new")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                json.dump(data, out)
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _load(self) -> dict[str, Any]:
        try:
            data = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}


def _mark(file: HubFile, path: Path) -> list[object]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, file.sha256 or file.blob_id]


def forget(path: Path, cache_dir: Path) -> None:
    """Delete a snapshot's file and the cached bytes that it points to; nothing outside the cache is touched."""
    bytes_at = path.resolve()
    path.unlink(missing_ok=True)
    if bytes_at.is_relative_to(cache_dir.resolve()):
        bytes_at.unlink(missing_ok=True)


def sweep(blobs: Path) -> None:
    """Delete what downloads left that were killed: they are never taken up again, and one that runs is younger than an hour of silence."""
    for path in blobs.glob("*.incomplete"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()


def _link(source: Path, target: Path) -> bool:
    """Give a file another name; False where the two lie on different disks, or the file system has no such names."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        return False
    return True


def copy_out(snapshot: Path, files: Sequence[HubFile], into: Path, *, linked: bool = False) -> Path:
    """Copy files of a snapshot to a folder of their own, which appears whole or not at all; it must not hold anything yet.

    `linked`: its files are the cache's own by another name, where the disk can do that, and take no room; then neither may be changed.
    """
    if into.exists() and (not into.is_dir() or any(into.iterdir())):
        raise UsageError(f"{into} is not an empty folder", hint="Name a folder that does not exist yet.")
    if not linked:
        require_room(into.parent, sum(max(file.size, 0) for file in files), f"the copy {into.name}")
    into.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{into.name}.", dir=into.parent))
    try:
        for file in files:
            target = unfinished / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not (linked and _link(snapshot / file.path, target)):
                shutil.copyfile(snapshot / file.path, target)
        unfinished.chmod(0o755)
        unfinished.replace(into)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return into
