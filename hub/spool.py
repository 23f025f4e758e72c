"""Results that the database could not take, kept in files until it can: none is lost, and none counts twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hub.codec import from_json, to_json
from hub.domain import Job, JobResult
from hub.errors import BadDocument
from hub.scheduling import Spent
from hub.store import Store

Taken = Literal["stored", "known", "refused"]
"""What became of a kept result: the store has it now, had one already, or takes it at no time."""
_BALLAST = b"room for results on a disk that is full\n" * (1 << 17)


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """A result with the job that gave it and what that used."""

    job: Job
    result: JobResult
    spent: Spent


class Spool:
    """A folder with one file a result. It holds some megabytes of ballast, thrown off where the disk is too full for a result."""

    def __init__(self, folder: Path) -> None:
        """Take the folder; it is made now where that is possible, so that there is room later."""
        self._folder = folder
        self._ballast = folder / "ballast"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not self._ballast.exists():
                self._ballast.write_bytes(_BALLAST)
        except OSError:  # there is no room for it: then it must not take the last of it
            with suppress(OSError):
                self._ballast.unlink(missing_ok=True)

    def keep(self, job: Job, result: JobResult, spent: Spent) -> None:
        """Keep a result: whole, or not at all, which raises OSError."""
        text = to_json(_Kept(job=job, result=result, spent=spent))
        try:
            self._write(job, text)
        except OSError:
            self._ballast.unlink(missing_ok=True)
            self._write(job, text)

    def take_in(self, store: Store) -> Iterator[tuple[Job, JobResult, Taken]]:
        """Record the kept results one by one, and say what became of each.

        What cannot be read, or makes no sense, is set aside as `*.refused`. Raises what the store raises; the rest is kept then.
        """
        for path, kept in self._kept():
            try:
                new = store.finish(kept.job, kept.result, spent=kept.spent)
            except BadDocument:
                _set_aside(path)
                yield kept.job, kept.result, "refused"
            else:
                path.unlink(missing_ok=True)
                yield kept.job, kept.result, "stored" if new else "known"

    def _write(self, job: Job, text: str) -> None:
        beside = self._folder / f"{job.id}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with beside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(beside.with_suffix(".json"))
        except OSError:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise

    def _kept(self) -> Iterator[tuple[Path, _Kept]]:
        for path in sorted(self._folder.glob("*.json")):
            try:
                yield path, from_json(_Kept, path.read_bytes(), where=str(path))
            except OSError:
                continue  # another dispatcher has just taken it in, or it can be read the next time
            except BadDocument:
                _set_aside(path)


def _set_aside(path: Path) -> None:
    with suppress(OSError):
        path.replace(path.with_suffix(".refused"))
