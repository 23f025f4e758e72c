"""What may be spent, and what is left of it: of the farm's time, money and disk (`Budget`), and of the Hub's limits (`hub_refusal`).

Pure but for the clock and the measure of the disk that are passed in. Docs: docs/scheduling.md.
"""

from __future__ import annotations

import copy
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hub.history import HubWrite
from hub.scheduling import Allowance, Attempt, Expectation, Plan, Spent
from hub.settings import BudgetSettings

HOUR = 3600.0
DAY = 24 * HOUR
GIB = 2**30
MARGIN = 3
"""A running job is let go on to its prediction x error^3: all but one in several hundred end before, if errors are log-normal."""
_LOOK_AGAIN_S = 60.0  # others write to the work folder too


@dataclass(frozen=True, kw_only=True)
class _Use:
    """What an attempt used (or several), and when it ended by the monotonic clock, which no set clock moves."""

    ended: float
    seconds: float
    gpu_hours: float
    money: float
    tries: int = 1


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """A limit on something that grows by `rate` an hour while a job runs."""

    words: str
    most: float
    used: float
    rate: float

    @property
    def left_s(self) -> float:
        """For how many seconds one job may still run."""
        return max(0.0, self.most - self.used) / self.rate * HOUR


class Budget:
    """Says which job may start now, so that what was spent, what runs and what is predicted never exceed a limit together.

    `past` are the attempts of the database, of all dispatchers; each counts whole, whatever came of it, until `period_hours` after its
    end. `gpus` is how many each job uses; `disk` returns how many bytes the work folder holds. Not safe to use from several threads.
    """

    def __init__(
        self,
        settings: BudgetSettings,
        *,
        past: Sequence[Attempt] = (),
        gpus: float = 0.0,
        disk: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._gpus, self._disk, self._clock, self._now = settings, gpus, disk, clock, now
        self._began = clock()
        self._offset = clock() - now()
        self._measured: tuple[float, float] | None = None
        self._uses: list[_Use] = []
        self.recount(past)

    @property
    def since(self) -> float:
        """From when on attempts are to be counted, in epoch seconds: those that ended in the period may have begun a day before it."""
        return min(self._now(), self._clock() - self._offset) - self._period_s - DAY

    @property
    def left_s(self) -> float:
        """For how many seconds this run may still go on; at 0 it ends, whatever is left to do."""
        if not self._settings.wall_hours:
            return math.inf
        return max(0.0, self._settings.wall_hours * HOUR - (self._clock() - self._began))

    def recount(self, past: Sequence[Attempt]) -> None:
        """Forget what was counted and count these attempts: what the database says now."""
        uses = map(self._use_of, past)
        latest = self._clock() + self._period_s  # dated later than that: written by a clock that was wrong
        self._uses = [use for use in uses if use.ended < latest]

    def add(self, seconds: float) -> None:
        """Count an attempt that has just ended after so many seconds."""
        self._uses.append(self._use(self._clock(), seconds, self.spent(seconds)))
        self._measured = None  # what it wrote lies on the disk now

    def spent(self, seconds: float) -> Spent:
        """Return what an attempt of so many seconds uses."""
        return Spent(gpus=self._gpus, cost=self._settings.price_per_hour * seconds / HOUR)

    def allow(self, expected: Expectation | None, *, running: Sequence[Expectation | None] = ()) -> Allowance:
        """Say whether a job of which this is expected may start beside those that run, and for how many seconds it may run at the most.

        Each running job is counted with the most that it may take: its prediction x error^3, or all that was left if that was less. A job
        without a prediction may take all that is left, so under a limit it runs alone.
        """
        self._uses = [use for use in self._uses if self._clock() - use.ended < self._period_s]
        refusal = self._crowded(len(running)) or self._too_full(expected, running) or self._too_long(expected, running)
        if refusal:
            return Allowance(allowed=False, reason=refusal)
        seconds = min((limit.left_s - _most(running) for limit in self._limits()), default=math.inf)
        if seconds < math.inf and expected is not None:
            seconds = min(seconds, max(most_seconds(expected), expected.seconds.value))
        seconds = min(seconds, self.left_s)
        return Allowance(allowed=True, timeout_s=None if seconds == math.inf else seconds)

    def foresee(self, plan: Plan, *, slots: int = 1) -> dict[str, str]:
        """Return by job id, in a sentence, why jobs of a plan are held back if all takes what is predicted, `slots` jobs at a time."""
        then = copy.copy(self)
        promised = 0
        then._disk = (lambda disk=self._disk: self._held(disk) + promised) if self._disk else None
        held: dict[str, str] = {}
        for job in plan.jobs:
            expected = plan.expected.get(job.id)
            if plan.needs.get(job.id, frozenset()) & held.keys():
                held[job.id] = "it needs a job that is held back"
            elif reason := then.allow(expected).reason:
                held[job.id] = reason
            elif expected:
                seconds = expected.seconds.value
                then._uses = [_together([*then._uses, then._use(then._clock(), seconds, then.spent(seconds))])]
                then._began -= seconds / slots  # so much of the run's time is gone
                promised += expected.disk_bytes
                then._measured = None
        return held

    @property
    def _period_s(self) -> float:
        return self._settings.period_hours * HOUR

    @property
    def _period(self) -> str:
        return f"in {self._settings.period_hours:g} h"

    def _use_of(self, attempt: Attempt) -> _Use:
        spent = Spent(gpus=attempt.gpus, cost=attempt.cost)
        if attempt.outcome in ("interrupted", "lost") and not (spent.gpus or spent.cost):  # nobody was there to note it
            spent = self.spent(attempt.seconds)
        return self._use(self._ended(attempt.began + attempt.seconds), attempt.seconds, spent)

    def _ended(self, at: float) -> float:
        """Return when something ended by the monotonic clock, given when by the system's, which may have been set since we began.

        So it was dated by the clock as it was then or as it is now: of the two the later counts, unless that is still to come.
        """
        then, now = at + self._offset, at + self._clock() - self._now()
        return max((one for one in (then, now) if one <= self._clock()), default=min(then, now))

    @staticmethod
    def _use(ended: float, seconds: float, spent: Spent) -> _Use:
        return _Use(ended=ended, seconds=seconds, gpu_hours=spent.gpus * seconds / HOUR, money=spent.cost)

    def _limits(self) -> Iterator[_Limit]:
        """Yield the limits that are set on what grows with time."""
        settings, period = self._settings, self._period
        if settings.job_hours:
            used = sum(use.seconds for use in self._uses) / HOUR
            yield _Limit(words=f"{settings.job_hours:g} h of jobs {period}", most=settings.job_hours, used=used, rate=1.0)
        if settings.gpu_hours and self._gpus:
            used = sum(use.gpu_hours for use in self._uses)
            yield _Limit(words=f"{settings.gpu_hours:g} GPU h {period}", most=settings.gpu_hours, used=used, rate=self._gpus)
        if settings.money and settings.price_per_hour:
            used = sum(use.money for use in self._uses)
            words = f"{settings.money:g} {settings.currency} {period}"
            yield _Limit(words=words, most=settings.money, used=used, rate=settings.price_per_hour)

    def _crowded(self, running: int) -> str:
        most, tried = self._settings.jobs, sum(use.tries for use in self._uses)
        if not most or tried + running < most:
            return ""
        return f"of {most} jobs {self._period} {tried} were tried" + (f" and {running} are running" if running else "")

    def _too_full(self, expected: Expectation | None, running: Sequence[Expectation | None]) -> str:
        most = self._settings.disk_gib * GIB
        if not most or self._disk is None:
            return ""
        held, wanted = self._held(self._disk), expected.disk_bytes if expected else 0
        promised = sum(other.disk_bytes for other in running if other)
        if held + promised + wanted <= most:
            return ""
        coming = f", {promised / GIB:.3g} GiB more are being written" if promised else ""
        wants = f"it writes about {wanted / GIB:.3g} GiB, but " if wanted else ""
        return f"{wants}the work folder holds {held / GIB:.3g} GiB of its {self._settings.disk_gib:g} GiB{coming}"

    def _held(self, disk: Callable[[], float]) -> float:
        if self._measured is None or self._clock() - self._measured[0] > _LOOK_AGAIN_S:
            self._measured = (self._clock(), disk())
        return self._measured[1]

    def _too_long(self, expected: Expectation | None, running: Sequence[Expectation | None]) -> str:
        """Return in a sentence what of time and money does not suffice for a job; empty where all does."""
        wanted = expected.seconds.value if expected else 0.0
        takes = f"it takes about {in_words(wanted)}"
        for limit in self._limits():
            whole = limit.most / limit.rate * HOUR
            left = limit.left_s - _most(running)
            if wanted > whole:
                return f"{takes}, more than all of {limit.words}, which allow {in_words(whole)}: it never starts under this budget"
            if left <= 0 or wanted > left:
                busy = " beside what runs" if running else ""
                return f"{takes}; what is left of {limit.words} allows {in_words(max(0.0, left))}{busy}"
        if (wall := self.left_s) <= 0 or wanted > wall:
            return f"{takes}; what is left of the {self._settings.wall_hours:g} h of this run allows {in_words(wall)}"
        return ""


def _together(uses: Sequence[_Use]) -> _Use:
    return _Use(
        ended=max(use.ended for use in uses),
        seconds=sum(use.seconds for use in uses),
        gpu_hours=sum(use.gpu_hours for use in uses),
        money=sum(use.money for use in uses),
        tries=sum(use.tries for use in uses),
    )


def most_seconds(expected: Expectation | None) -> float:
    """Return how long a job may take at the most under a limit; without a prediction as long as there is anything left."""
    return expected.seconds.value * expected.seconds.factor**MARGIN if expected else math.inf


def _most(running: Iterable[Expectation | None]) -> float:
    return sum(map(most_seconds, running))


def in_words(seconds: float) -> str:
    """Return a time as people say it."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 2 * HOUR else f"{seconds / HOUR:.1f} h"


def hub_refusal(settings: BudgetSettings, writes: Sequence[HubWrite], *, stored_bytes: float, wanted_bytes: float) -> str:
    """Return in one sentence why a release of so many bytes may not be published now; empty where it may.

    `writes` are those of the last `DAY`, of all who share the database; `stored_bytes` is what all releases take on the Hub.
    """
    for action, words, most in (
        ("repo", "repositories were made on", settings.repos_per_day),
        ("commit", "commits were sent to", settings.commits_per_day),
    ):
        count = sum(write.action == action for write in writes)
        if most and count >= most:
            return f"{count} {words} the Hub in the last 24 hours, and {most} are allowed"
    if settings.storage_gib and stored_bytes + wanted_bytes > settings.storage_gib * GIB:
        held = f"{stored_bytes / GIB:.3g} of {settings.storage_gib:g} GiB"
        return f"the releases take {held} on the Hub, and this one would take {wanted_bytes / GIB:.3g} GiB more"
    return ""


def folder_bytes(folder: Path) -> int:
    """Return how much disk the files below a folder take, in bytes: links are not followed, a file with several names counts once.

    What vanishes meanwhile is left out; a folder that is not there holds nothing.
    """
    seen: set[tuple[int, int]] = set()
    total, folders = 0, [os.fspath(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                        continue
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode) and (facts.st_dev, facts.st_ino) not in seen:
                        seen.add((facts.st_dev, facts.st_ino))
                        total += facts.st_blocks * 512
    return total
