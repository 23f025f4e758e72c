"""What of a work folder could go, and its removal: nothing that is still needed, nothing behind a link, nothing half.

A thing goes by being moved into the folder's `trash` and deleted there, so that it is whole or gone; the next pruning empties what an
interrupted one left in the trash.
"""

from __future__ import annotations

import errno
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hub import downloads
from hub.budget import folder_bytes
from hub.domain import ModelRef
from hub.downloads import Download

Group = Literal["leftovers", "logs", "artifacts", "cache"]
TRASH = "trash"
DAY = 24 * 3600.0
OLD_LOGS_S = 30 * DAY
"""Logs and samples that nobody named an age for go when they are older."""


@dataclass(frozen=True, kw_only=True)
class Waste:
    """A thing that could go: what it is, how much disk it takes, and why it is not needed. A `download` goes by the cache's own tools."""

    group: Group
    kind: str
    path: Path
    bytes: int
    touched: float
    reason: str
    download: Download | None = None


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the database says. `useless` holds by variant id why its artifact is not needed any more; `made` has all that have one.

    `bases` are the base models that are still needed, `active` the ids of jobs that are planned or run, `pressing` their variants.
    """

    useless: Mapping[str, str] = field(default_factory=dict)
    made: frozenset[str] = frozenset()
    bases: frozenset[ModelRef] = frozenset()
    active: frozenset[str] = frozenset()
    pressing: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Found:
    """What could go, and in sentences what is left alone because a link leads out of the folder or the database does not know it."""

    waste: tuple[Waste, ...]
    left_alone: tuple[str, ...]


def find(folder: Path, known: Known, *, older_s: float | None = None) -> Found:
    """Return what could go of a work folder.

    With `older_s` only what nobody changed for so many seconds, without it logs and samples after 30 days and all else at any age.
    """
    left: list[str] = []
    waste = [*_leftovers(folder, known, left), *_logs(folder, known, left), *_artifacts(folder, known, left), *_cache(folder, known, left)]
    now = time.time()
    return Found(
        waste=tuple(one for one in waste if now - one.touched >= _least_age(one, older_s)),
        left_alone=tuple(left),
    )


def free(folder: Path, waste: Waste) -> bool:
    """Remove one thing; False where it is gone already, or is now behind a link. Raises OSError where the system refuses."""
    if waste.download is not None:
        downloads.forget(folder / "cache", waste.download)
        return True
    if not _inside(folder, waste.path):
        return False
    trash = folder / TRASH
    place = waste.path if waste.path.parent == trash else _aside(waste.path, trash)
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    with suppress(OSError):
        trash.rmdir()
    return True


def _aside(path: Path, trash: Path) -> Path:
    """Move a thing into the trash and return its new place; where that is on another disk, or a link, it stays where it is."""
    trash.mkdir(exist_ok=True)
    if trash.is_symlink():
        return path
    place = trash / f"{path.name}-{uuid.uuid4().hex[:8]}"
    try:
        return path.rename(place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return path


def _least_age(one: Waste, older_s: float | None) -> float:
    if older_s is not None:
        return older_s if one.group != "leftovers" else 0.0
    return OLD_LOGS_S if one.group == "logs" else 0.0


def _leftovers(folder: Path, known: Known, left: list[str]) -> Iterator[Waste]:
    """Yield what killed processes left; no other process works in the folder when it goes."""
    yield from _all(folder, TRASH, left, lambda _: ("leftovers", "trash", "an interrupted prune left it"))
    yield from _all(folder, "scratch", left, lambda _: ("leftovers", "scratch", "a killed verify left it"))

    def unfinished(path: Path) -> tuple[Group, str, str] | None:
        variant, mark, _ = path.name.partition(".partial-")
        return ("leftovers", "unfinished artifact", "a killed press left it") if mark and variant not in known.pressing else None

    yield from _all(folder, "artifacts", [], unfinished)
    for path in downloads.look(folder / "cache").orphans:
        kind = "partial download" if path.name.endswith(".incomplete") else "blob without a name"
        if (one := _waste(folder, path, "leftovers", kind, "a killed download left it")) is not None:
            yield one


def _logs(folder: Path, known: Known, left: list[str]) -> Iterator[Waste]:
    """Yield logs and samples of jobs that are over; the end of a failed one's log is in the database."""

    def over(kind: str) -> Callable[[Path], tuple[Group, str, str] | None]:
        def judged(path: Path) -> tuple[Group, str, str] | None:
            job = path.name.partition(".")[0]
            if job in known.active or job == "farm" or path.suffix == ".lock":
                return None
            return "logs", kind, "its job is over"

        return judged

    yield from _all(folder, "logs", left, over("log"))
    yield from _all(folder, "samples", left, over("samples"))


def _artifacts(folder: Path, known: Known, left: list[str]) -> Iterator[Waste]:
    def judged(path: Path) -> tuple[Group, str, str] | None:
        if path.name not in known.made | known.pressing and ".partial-" not in path.name:
            left.append(f"artifacts/{path.name} is not known to the database")
        if path.name in known.pressing or path.name not in known.useless:
            return None
        return "artifacts", "artifact", known.useless[path.name]

    yield from _all(folder, "artifacts", left, judged)


def _cache(folder: Path, known: Known, left: list[str]) -> Iterator[Waste]:
    """Yield downloads that no job needs, and what is kept to be faster next time: all of it comes again when it is needed."""
    cache = folder / "cache"
    seen = downloads.look(cache)
    for one in seen.downloads:
        needed = ModelRef(repo_id=one.repo_id, sha=one.sha) in known.bases if one.kind == "model" else bool(known.active)
        if not needed:
            kind = "base model" if one.kind == "model" else "dataset"
            reason = "no planned job needs it"
            yield Waste(group="cache", kind=kind, path=one.folder, bytes=one.bytes, touched=one.touched, reason=reason, download=one)
    needed_folders = {f"models--{base.repo_id.replace('/', '--')}" for base in known.bases}
    for path in seen.damaged:
        damaged = _waste(folder, path, "cache", "damaged download", "it is fetched again when it is needed")
        if path.name not in needed_folders and damaged is not None:
            yield damaged

    def of_nobody(path: Path) -> tuple[Group, str, str] | None:
        return None if path.name in known.active else ("cache", "kept layers", "its job is not planned any more")

    yield from _all(folder, "cache/unfinished", left, of_nobody)
    if known.active:
        return
    for name, kind in (("base-states", "base states"), ("derived", "derived"), ("texts", "text")):
        yield from _all(folder, f"cache/{name}", left, lambda _, kind=kind: ("cache", kind, "no job is planned"))  # type: ignore[misc]


def _all(folder: Path, name: str, left: list[str], judge: Callable[[Path], tuple[Group, str, str] | None]) -> Iterator[Waste]:
    """Yield what the judge gives up of the things in a sub-folder; say which are links."""
    parent = folder / name
    if not _inside(folder, parent):
        if parent.is_symlink():
            left.append(f"{name} is a link")
        return
    for path in sorted(parent.iterdir()) if parent.is_dir() else ():
        judged = judge(path)
        if judged is None:
            continue
        waste = _waste(folder, path, *judged)
        if waste is not None:
            yield waste
        else:
            left.append(f"{name}/{path.name} is a link")


def _waste(folder: Path, path: Path, group: Group, kind: str, reason: str) -> Waste | None:
    """Return a thing with its size and when it was changed last; None for a link."""
    if not _inside(folder, path):
        return None
    facts = path.lstat()
    size = folder_bytes(path) if stat.S_ISDIR(facts.st_mode) else facts.st_blocks * 512
    return Waste(group=group, kind=kind, path=path, bytes=size, touched=facts.st_mtime, reason=reason)


def _inside(folder: Path, path: Path) -> bool:
    """Whether a thing is there and neither it nor what it lies in, up to the work folder, is a link."""
    try:
        parts = path.relative_to(folder).parts
    except ValueError:
        return False
    here = folder
    for part in parts:
        here = here / part
        try:
            if part in ("", ".", "..") or stat.S_ISLNK(here.lstat().st_mode):
                return False
        except OSError:
            return False
    return bool(parts)
