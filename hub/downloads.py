"""What lies in the download cache, and its removal; through huggingface_hub's own tools, which know how it is built.

Nothing is asked of a Hub. A repository of the cache that a link leads out of is left alone.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hub.transport import PUBLIC_HUB, library

_PREFIXES = ("models--", "datasets--")


@dataclass(frozen=True, kw_only=True)
class Download:
    """One commit of a repository in the cache; `bytes` are freed if it goes alone, `touched` is in epoch seconds."""

    kind: str
    repo_id: str
    sha: str
    folder: Path
    bytes: int
    touched: float


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What a cache holds: commits, files that no commit points to and that nobody is fetching now, repositories that are damaged."""

    downloads: tuple[Download, ...] = ()
    orphans: tuple[Path, ...] = ()
    damaged: tuple[Path, ...] = ()


def look(cache: Path) -> Cache:
    """Return what lies in a cache folder; nothing where there is none."""
    if not cache.is_dir() or cache.is_symlink():
        return Cache()
    found = _scanned(cache)
    repos = [repo for repo in sorted(found.repos, key=lambda repo: str(repo.repo_path)) if _closed(cache, repo)]
    downloads = tuple(_download(found, repo, revision) for repo in repos for revision in repo.revisions)
    sound = {repo.repo_path for repo in found.repos}
    damaged = [path for path in sorted(cache.iterdir()) if path.name.startswith(_PREFIXES) and path.is_dir() and path not in sound]
    return Cache(
        downloads=tuple(sorted(downloads, key=lambda one: (one.repo_id, one.sha))),
        orphans=tuple(path for repo in repos for path in _orphans(cache, repo)),
        damaged=tuple(path for path in damaged if not path.is_symlink() and not _in_use(cache, path.name)),
    )


def forget(cache: Path, download: Download) -> None:
    """Remove one commit: its snapshot and those of its files that no other commit shares; the marks that say it is verified go first."""
    marks = cache / ".verified" / f"{download.repo_id.replace('/', '--')}@{download.sha}.json"
    marks.unlink(missing_ok=True)
    found = _scanned(cache)
    for repo in found.repos:  # by repository: copies of a repository share its commits' names
        if repo.repo_path == download.folder and _closed(cache, repo):
            if len(repo.revisions) == 1:
                shutil.rmtree(cache / ".locks" / repo.repo_path.name, ignore_errors=True)
            replace(found, repos=frozenset({repo})).delete_revisions(download.sha).execute()


def _scanned(cache: Path) -> Any:
    return library(PUBLIC_HUB).scan_cache_dir(cache)


def _download(found: Any, repo: Any, revision: Any) -> Download:
    strategy = replace(found, repos=frozenset({repo})).delete_revisions(revision.commit_hash)
    return Download(
        kind=repo.repo_type,
        repo_id=repo.repo_id,
        sha=revision.commit_hash,
        folder=repo.repo_path,
        bytes=strategy.expected_freed_size,
        touched=revision.last_modified,
    )


def _closed(cache: Path, repo: Any) -> bool:
    """Whether all that a repository's snapshots point to lies in it, and its bytes in the cache."""
    files = {file.blob_path for revision in repo.revisions for file in revision.files}
    inside = all(path.is_relative_to(repo.repo_path) and path.resolve().is_relative_to(cache.resolve()) for path in files)
    return inside and not repo.repo_path.is_symlink()


def _orphans(cache: Path, repo: Any) -> Iterator[Path]:
    """Yield files among the blobs that no snapshot points to: of downloads that were killed, or whose commit went."""
    used = {file.blob_path for revision in repo.revisions for file in revision.files}
    for path in sorted((repo.repo_path / "blobs").glob("*")):
        if path not in used and not path.is_symlink() and path.is_file() and not _fetched_now(cache, repo.repo_path.name, path):
            yield path


def _fetched_now(cache: Path, repo: str, blob: Path) -> bool:
    """Whether some process is about to fetch a file, or to give it its name."""
    return _held(cache / ".locks" / repo / f"{blob.name.partition('.')[0]}.lock")


def _in_use(cache: Path, repo: str) -> bool:
    """Whether some process is fetching any file of a repository."""
    return any(_held(lock) for lock in (cache / ".locks" / repo).glob("*.lock"))


def _held(lock: Path) -> bool:
    """Whether some process holds the library's lock of this name."""
    with suppress(OSError):
        handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False
