"""Git's own ids for blobs, LFS pointers, trees and commits, so that every id is a hash of what it names.

Source: https://git-scm.com/book/en/v2/Git-Internals-Git-Objects and the git-lfs pointer specification.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of a tree: `oid` is its git SHA-1 (of the pointer, where `lfs`), `sha256` that of its bytes."""

    path: str
    size: int
    oid: str
    sha256: str
    lfs: bool

    @property
    def pointer_size(self) -> int:
        """Size in bytes of the LFS pointer that stands for the file in git."""
        return len(lfs_pointer(self.sha256, self.size))

    @property
    def etag(self) -> str:
        """What the Hub sends as ETag: SHA-256 for LFS files, git SHA-1 for the others."""
        return self.sha256 if self.lfs else self.oid


def _object_id(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def blob_id(data: bytes) -> str:
    """Return the git id of a file's bytes."""
    return _object_id("blob", data)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """Return the LFS pointer file for an object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def lfs_file(path: str, sha256: str, size: int) -> File:
    """Return the entry of a file that is kept in LFS."""
    return File(path=path, size=size, oid=blob_id(lfs_pointer(sha256, size)), sha256=sha256, lfs=True)


def regular_file(path: str, data: bytes) -> File:
    """Return the entry of a file that is kept in git itself."""
    return File(path=path, size=len(data), oid=blob_id(data), sha256=hashlib.sha256(data).hexdigest(), lfs=False)


def folder_ids(files: Iterable[File]) -> dict[str, str]:
    """Return the git tree id of every folder; the root's key is the empty string."""
    children: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for file in files:
        *folders, name = file.path.split("/")
        for depth in range(len(folders)):
            children.setdefault("/".join(folders[: depth + 1]), {})
        children["/".join(folders)][name] = ("100644", file.oid)
    ids: dict[str, str] = {}
    for folder in sorted(children, key=lambda path: path.count("/") if path else -1, reverse=True):
        # Git sorts a folder as if its name ended with a slash.
        entries = sorted(children[folder].items(), key=lambda item: item[0] + ("/" if item[1][0] == "40000" else ""))
        data = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, (mode, oid) in entries)
        ids[folder] = _object_id("tree", data)
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent][name] = ("40000", ids[folder])
    return ids


def commit_id(tree: str, parents: Sequence[str], author: str, seconds: int, message: str) -> str:
    """Return the git id of a commit; the same tree, parents, author, time and message give the same id."""
    who = f"{author} <{author}@localhost> {seconds} +0000"
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {who}", f"committer {who}", "", message]
    return _object_id("commit", "\n".join(lines).encode())
