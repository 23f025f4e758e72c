"""The loop: claims jobs from the queue, runs them on a farm, and stores what comes back. Any number of dispatchers share a queue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from hub import owners
from hub.budget import Budget
from hub.domain import Failure, Job, JobKind, JobResult, ModelRef
from hub.errors import ModelPressError
from hub.leases import Leases
from hub.queue import LEASE_S
from hub.scheduling import Claim, Renewal
from hub.settings import BudgetSettings
from hub.settling import Ending, Run, Settler, unforeseen
from hub.spool import Spool
from hub.store import Store

KINDS: tuple[JobKind, ...] = ("press", "measure")
SOON_S = 3600.0
"""A job that is put off for longer is not waited for."""
_TICK_S = 0.5
_LOOK_S = 2.0
_END_S = 15.0
_RECOUNT_S = 60.0
_LOOK_AHEAD = 32
"""So many jobs that the budget refuses are passed over for one that fits; then nothing more is asked for."""


class Farm(Protocol):
    """Where jobs run: `slots` at once; where it `exclusive_measures`, a measuring job runs alone, as it takes time."""

    @property
    def slots(self) -> int:
        """How many jobs run at once."""

    @property
    def exclusive_measures(self) -> bool:
        """Whether a measuring job must run alone here."""

    def run(self, job: Job, *, folder: Path | None = None, economy: int = 0, timeout_s: float | None = None) -> JobResult | Failure:
        """Run one job and wait for it; called from several threads."""

    def cancel(self, job_id: str) -> None:
        """End a running job: its `run` returns a failure of the class killed."""


class Progress(Protocol):
    """Who is told how it goes; called from the thread that dispatches."""

    def started(self, job: Job) -> None:
        """A job has started."""

    def finished(self, job: Job, result: JobResult) -> None:
        """A job gave a result, which is stored."""

    def failed(self, job: Job, failure: Failure) -> None:
        """A job failed, which is stored, and is not tried again."""

    def ended(self, job: Job, why: str) -> None:
        """A job ended without a result of its own: it is tried again later, was cancelled, interrupted, or is another's by now."""

    def waiting(self, why: str) -> None:
        """Nothing runs, and nothing can start yet."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What came of a dispatch: jobs done, failed for good, tries that are tried again, jobs cancelled, put back, and lost to others.

    `not_started` counts the planned jobs that were left: `budget`, `paused`, `put_off` (until later than is waited for), `blocked` (what
    they need is not done), `ready` (it was stopped). `reasons` says for the first two why, in a sentence.
    """

    done: int = 0
    failed: int = 0
    retried: int = 0
    cancelled: int = 0
    interrupted: int = 0
    lost: int = 0
    not_started: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def dispatch(
    farm: Farm,
    store: Store,
    progress: Progress,
    *,
    budget: Budget | None = None,
    owner: str | None = None,
    kinds: Collection[JobKind] = KINDS,
    lease_s: float = LEASE_S,
    max_attempts: int = 3,
    stop: threading.Event | None = None,
    spool: Spool | None = None,
    patience_s: float = 60.0,
    pause_s: float = 3600.0,
) -> Counts:
    """Run planned jobs until none is left that could still be done, and return what came of them.

    Waits for jobs that are put off (`SOON_S` at the most), for other dispatchers' jobs (its own may wait for them, and who runs them may
    be gone), and through a pause (`pause_s`), but never for longer than the budget lets this run last. A job's failure, and an unforeseen
    exception of the farm, is stored and ends nothing; `hub.retries` says what is tried again. What the budget refuses stays planned; so
    does what it ends, which is not started again here. Cancelled jobs are ended; what a job brings whose claim is lost is dropped.

    When `stop` is set, nothing starts any more, running jobs are ended and put back, and it returns. Where the store refuses a result, it
    is tried again for `patience_s`, then kept in the `spool` and taken in later: now, or by the next dispatch. Raises what the store, or
    the farm, raised last where it does not come back; running jobs end first. An interruption puts running jobs back; whoever owns the
    farm then closes it.
    """
    settler = Settler(
        store=store,
        progress=progress,
        budget=budget or Budget(BudgetSettings()),
        owner=owner or owners.own(),
        max_attempts=max_attempts,
        patience_s=patience_s,
        stop=stop or threading.Event(),
        spool=spool,
    )
    loop = _Loop(farm, settler, tuple(kinds), lease_s=lease_s, pause_s=pause_s)
    try:
        return loop.run()
    except BaseException:
        loop.abandon()
        raise


class _Loop:
    """One dispatch. This thread alone decides, stores and reports; one thread a job waits for the farm, and one renews the leases."""

    def __init__(self, farm: Farm, settler: Settler, kinds: tuple[JobKind, ...], *, lease_s: float, pause_s: float) -> None:
        self._farm, self._settler, self._kinds, self._lease_s, self._pause_s = farm, settler, kinds, lease_s, pause_s
        self._queue, self._owner, self._budget, self._progress = settler.store.queue, settler.owner, settler.budget, settler.progress
        self._leases = Leases(self._queue, self._owner, lease_s, self._learn)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._running: dict[str, Run] = {}
        self._held: Claim | None = None
        self._refused: dict[str, str] = {}
        self._base: ModelRef | None = None
        self._elsewhere = 0
        self._look_at = self._recount_at = 0.0
        self._newest = 0  # the latest attempt of another dispatcher that the budget knows
        self._trouble_since: float | None = None
        self._paused_since: float | None = None
        self._said = ""

    def run(self) -> Counts:
        with self._leases:
            self._settler.take_in()
            while not self._settler.stop.is_set():
                if self._look_at <= time.monotonic() and not self._look():
                    return self._sum()
                self._listen(_TICK_S)
            self._wind_down()
            return self._sum()

    def abandon(self) -> None:
        """Put unsettled jobs back and end them; what they bring is dropped."""
        for run in [*self._running.values(), *(run for run, _, _ in self._settler.unsettled.values())]:
            with suppress(Exception):
                self._farm.cancel(run.claim.job.id)
            with suppress(ModelPressError):  # a store that fails now: recover() puts them back later
                self._queue.put_back(run.claim.job, self._owner)
        self._let_go()

    # What can be started

    def _look(self) -> bool:
        """Start what can start; False when nothing runs and nothing is left that is worth waiting for."""
        self._look_at = time.monotonic() + _LOOK_S
        try:
            if self._settler.unsettled:
                self._settler.take_in()
            self._recount()
            self._fill()
            going_on = bool(self._running) or self._worth_waiting()
        except ModelPressError as error:
            now = time.monotonic()
            self._trouble_since = self._trouble_since or now
            if not self._running and now - self._trouble_since >= self._settler.patience_s:
                raise
            self._say(f"{error.message}; it is tried again for a while")
            return True
        self._trouble_since = None
        return going_on

    def _fill(self) -> None:
        while self._room():
            claim = self._held or self._claim()
            if claim is None:
                return
            self._held = claim
            if self._running and self._alone(claim.job):
                return  # it holds back all after it until the others have ended
            self._begin(claim)
            self._held = None

    def _room(self) -> bool:
        alone = any(self._alone(run.claim.job) for run in self._running.values())
        return not alone and len(self._running) < self._farm.slots and not self._refused_enough()

    def _refused_enough(self) -> bool:
        return len(self._refused.keys() - self._settler.overrun.keys()) >= _LOOK_AHEAD

    def _ask_anew(self) -> None:
        """Ask the budget again for what it refused, but for what it ended."""
        self._refused = dict(self._settler.overrun)

    def _alone(self, job: Job) -> bool:
        return self._farm.exclusive_measures and job.kind == "measure"

    def _claim(self) -> Claim | None:
        exclude = {*self._running, *self._refused}
        claim = self._queue.claim(self._owner, kinds=self._kinds, prefer=self._base, exclude=exclude, lease_s=self._lease_s)
        if claim is not None:
            self._leases.hold(claim)
        return claim

    def _begin(self, claim: Claim) -> None:
        """Start a claimed job, if the budget allows it, and if it is not one that no dispatcher outlives."""
        job = claim.job
        if self._settler.give_up(claim):
            self._leases.drop(job.id)
            return
        # First what others run, then what was spent: a job that ends in between counts twice, not never.
        running = [run.claim.expected for run in self._running.values()] + self._queue.expected_elsewhere(self._owner)
        self._recount()
        allowance = self._budget.allow(claim.expected, running=running)
        if refusal := allowance.reason or self._settler.too_short(claim, allowance.timeout_s):
            self._decline(claim)
            self._refused[job.id] = refusal
            return
        run = self._running[job.id] = Run(claim=claim, began=time.monotonic(), allowed_s=allowance.timeout_s)
        self._base, self._said, self._paused_since = job.base, "", None
        self._progress.started(job)

        def attempt() -> None:
            outcome = _attempt(self._farm, claim, allowance.timeout_s)
            self._inbox.put(lambda: self._settle(run, outcome))

        threading.Thread(target=attempt, name=f"job {job.id}", daemon=True).start()

    def _worth_waiting(self) -> bool:
        """Whether something is left to do though nothing runs and nothing could be claimed: say what is waited for."""
        seen = self._queue.outlook(self._owner, kinds=self._kinds)
        now = time.monotonic()
        if not self._budget.left_s:
            return False
        if seen.paused is not None:
            self._paused_since = self._paused_since or now
            left = seen.ready + seen.put_off + seen.elsewhere
            self._say(f"paused: {seen.paused}; modelpress resume lets it go on")
            return left > 0 and now - self._paused_since < self._pause_s
        self._paused_since = None
        if seen.elsewhere != self._elsewhere:  # what others spend and free has changed, so the budget is asked again
            self._elsewhere, self._recount_at = seen.elsewhere, 0.0
            self._ask_anew()
            return True
        if self._refused_enough():
            return False
        if seen.elsewhere:
            self._queue.recover()
            self._say(f"other dispatchers run the last jobs, {seen.elsewhere} of them")
            return True
        if seen.due_in_s is not None and seen.due_in_s <= min(SOON_S, self._budget.left_s):
            self._look_at = min(self._look_at, now + seen.due_in_s)
            self._say(f"waiting for {seen.put_off} jobs that are tried again, the first in {seen.due_in_s:.0f} s")
            return True
        return seen.ready > len(self._refused)  # became ready, or was locked, as it was asked for

    def _recount(self) -> None:
        """Have the budget count what all dispatchers spent, where another has ended a job, and every now and then."""
        newest = self._queue.newest_elsewhere(self._owner)
        if newest != self._newest or time.monotonic() >= self._recount_at:
            self._budget.recount(self._queue.attempts(since=self._budget.since))
            self._newest, self._recount_at = newest, time.monotonic() + _RECOUNT_S

    def _say(self, why: str) -> None:
        if why.partition(",")[0] != self._said:
            self._said = why.partition(",")[0]
            self._progress.waiting(why)

    # What happens meanwhile

    def _listen(self, seconds: float) -> None:
        with suppress(queue.Empty):
            self._inbox.get(timeout=seconds)()

    def _learn(self, renewal: Renewal, held: dict[str, Claim]) -> None:
        """Pass on what the thread that renews leases was told."""
        self._inbox.put(lambda: self._heed(renewal, held))

    def _heed(self, renewal: Renewal, held: dict[str, Claim]) -> None:
        if renewal.paused:
            self._let_go()
        endings: tuple[tuple[frozenset[str], Ending], ...] = ((renewal.lost, "lost"), (renewal.cancelled, "cancelled"))
        for job_id, why in ((job_id, why) for job_ids, why in endings for job_id in job_ids):
            if self._held is held[job_id]:
                self._let_go()
            run = self._running.get(job_id)
            if run and run.claim is held[job_id]:
                run.ending = run.ending or why
                self._farm.cancel(job_id)  # again with each renewal: the first may have come before the farm knew of the job

    def _settle(self, run: Run, outcome: JobResult | Failure) -> None:
        """Store what an attempt came to, and look anew at what can start: the budget may have more left than was thought."""
        self._settler.settle(run, outcome)
        self._leases.drop(run.claim.job.id)
        del self._running[run.claim.job.id]
        self._ask_anew()
        self._look_at = 0.0

    # The end

    def _wind_down(self) -> None:
        """End what runs, store what comes in time, put the rest back."""
        self._let_go()
        for job_id, run in self._running.items():
            run.ending = run.ending or "interrupted"
            self._farm.cancel(job_id)
        deadline = time.monotonic() + _END_S
        while self._running and (left := deadline - time.monotonic()) > 0:
            self._listen(min(left, _LOOK_S))
            for job_id in self._running:
                self._farm.cancel(job_id)  # again: the first may have come before the farm knew of the job
        with suppress(ModelPressError):  # recover() puts them back later
            for run in self._running.values():
                self._settler.put_back(run)
            self._settler.take_in()
        self._running.clear()

    def _let_go(self) -> None:
        """Give the held claim back: it was not begun."""
        if self._held is not None:
            with suppress(ModelPressError):
                self._decline(self._held)
                self._held = None

    def _decline(self, claim: Claim) -> None:
        self._queue.decline(claim.job, self._owner)
        self._leases.drop(claim.job.id)

    def _sum(self) -> Counts:
        """Return the counts, with what is left and why."""
        left: dict[str, int] = {}
        reasons: dict[str, str] = {}
        with suppress(ModelPressError):
            seen = self._queue.outlook(self._owner, kinds=self._kinds)
            left = {"ready": seen.ready, "put_off": seen.put_off, "blocked": seen.blocked}
            if seen.paused is not None:
                left["paused"], reasons["paused"] = left.pop("ready"), seen.paused
            elif self._refused:
                left["budget"], reasons["budget"] = left.pop("ready"), next(iter(self._refused.values()))
        return Counts(**self._settler.counts, not_started={why: count for why, count in left.items() if count}, reasons=reasons)


def _attempt(farm: Farm, claim: Claim, timeout_s: float | None) -> JobResult | Failure:
    """Run a job; whatever the farm raises becomes a failure."""
    began = time.monotonic()
    try:
        return farm.run(claim.job, economy=claim.economy, timeout_s=timeout_s)
    except BaseException as error:
        return unforeseen(claim.job, error, time.monotonic() - began)
