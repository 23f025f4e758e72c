"""Content-addressed files: a blob appears under its SHA-256 only when all its bytes are on the disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


class BlobWriter:
    """A blob that is being written; `BlobStore.writer` gives one."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append bytes."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written so far."""
        return self._hash.hexdigest()


class BlobStore:
    """The folder of blobs and, beside it, the folder of unfinished ones, which is emptied at each start."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._unfinished = root / "unfinished"
        shutil.rmtree(self._unfinished, ignore_errors=True)
        for folder in (self._blobs, self._unfinished):
            folder.mkdir(parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path:
        """Return where the blob lies or would lie."""
        return self._blobs / sha256[:2] / sha256

    def has(self, sha256: str, size: int | None = None) -> bool:
        """Tell whether the blob is here and, where `size` is given, has this size."""
        try:
            found = self.path(sha256).stat().st_size
        except FileNotFoundError:
            return False
        return size is None or found == size

    @contextmanager
    def writer(self) -> Iterator[BlobWriter]:
        """Write a blob; it is kept if the block ends without an error, and its id is then `.sha256`."""
        handle, name = tempfile.mkstemp(dir=self._unfinished)
        unfinished = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                writer = BlobWriter(file)
                yield writer
                file.flush()
                os.fsync(file.fileno())
            self._adopt(unfinished, writer.sha256)
        finally:
            unfinished.unlink(missing_ok=True)

    def put(self, data: bytes) -> str:
        """Keep bytes and return their SHA-256."""
        sha256 = hashlib.sha256(data).hexdigest()
        if not self.has(sha256, len(data)):
            with self.writer() as writer:
                writer.write(data)
        return sha256

    def put_file(self, path: Path) -> tuple[str, int]:
        """Keep a copy of a file and return its SHA-256 and size."""
        with path.open("rb") as source, self.writer() as writer:
            while chunk := source.read(1 << 20):
                writer.write(chunk)
        return writer.sha256, writer.size

    def part_folder(self, upload: str) -> Path:
        """Return the folder for the parts of a multipart upload; `upload` is hexadecimal."""
        return self._unfinished / f"parts-{upload}"

    def read(self, sha256: str, limit: int) -> bytes:
        """Return at most `limit` bytes of a blob."""
        with self.path(sha256).open("rb") as file:
            return file.read(limit)

    def collect(self, wanted: Collection[str], older_than_s: float) -> int:
        """Remove blobs that nothing refers to and that are old enough not to belong to an upload under way; return how many."""
        limit = time.time() - older_than_s
        removed = 0
        for path in self._blobs.glob("??/*"):
            if path.name not in wanted and path.stat().st_mtime < limit:
                path.unlink()
                removed += 1
        return removed

    def _adopt(self, unfinished: Path, sha256: str) -> None:
        target = self.path(sha256)
        target.parent.mkdir(exist_ok=True)
        unfinished.chmod(0o444)
        unfinished.replace(target)
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name itself survive a power cut, where the file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
