"""Stores what attempts came to: a result, a failure with another try or without, a job put back; and counts them."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from hub import retries
from hub.budget import Budget, in_words
from hub.domain import Failure, Job, JobResult
from hub.errors import BadDocument, HubUnreachable, JobDied, ModelPressError, OutOfDisk, StoreError
from hub.scheduling import Claim

if TYPE_CHECKING:
    from hub.dispatch import Progress
    from hub.spool import Spool
    from hub.store import Store

LOG_TAIL = 4000
DEADLY = 5
"""A job is given up when so many dispatchers one after the other died while it ran: it may be what kills them."""
OVERRUNS = 3
"""A job that the budget ended so often starts only where it allows it more time than it ever had."""
Ending = Literal["", "cancelled", "lost", "interrupted"]


@dataclass
class Run:
    """A job that runs: since when (monotonic seconds), for how many the budget lets it, and why its dispatcher is ending it, if it is."""

    claim: Claim
    began: float
    allowed_s: float | None = None
    ending: Ending = ""


@dataclass(kw_only=True)
class Settler:
    """What a dispatch stores, for one owner. `stop` set: there is no time to be patient with a store that refuses.

    `counts` are of jobs done, failed, retried, cancelled, interrupted and lost. What the store refuses is `unsettled`, by job; results
    of it that are `spooled` lie in the spool, too, so that the end of this process does not lose them. `overrun` says of the jobs that the
    budget ended why they are not started again under it.
    """

    store: Store
    progress: Progress
    budget: Budget
    owner: str
    max_attempts: int
    patience_s: float
    stop: threading.Event
    spool: Spool | None
    counts: Counter[str] = field(default_factory=Counter)
    unsettled: dict[str, tuple[Run, JobResult | Failure, float]] = field(default_factory=dict)
    spooled: set[str] = field(default_factory=set)
    overrun: dict[str, str] = field(default_factory=dict)

    def settle(self, run: Run, outcome: JobResult | Failure) -> None:
        """Store what an attempt came to; what the store refuses for long is kept."""
        seconds = time.monotonic() - run.began
        self.budget.add(seconds)
        try:
            self._stored(lambda: self._settle(run, outcome, seconds))
        except (StoreError, OutOfDisk) as error:
            self._keep(run, outcome, seconds)
            self.progress.ended(run.claim.job, f"what it came to is kept until the database can be used: {error.message}")

    def put_back(self, run: Run) -> None:
        """Mark the job as planned again: its try counts for nothing."""
        self.store.queue.put_back(run.claim.job, self.owner, spent=self.budget.spent(time.monotonic() - run.began))
        self.counts["interrupted"] += 1
        self.progress.ended(run.claim.job, "interrupted, and put back")

    def give_up(self, claim: Claim) -> bool:
        """Record a job as failed during which dispatcher after dispatcher died; False, and nothing is done, where that is not so."""
        tries = [one.outcome for one in self.store.queue.attempts_of(claim.job.id)][-DEADLY:]
        if len(tries) < DEADLY or set(tries) != {"lost"}:
            return False
        error = JobDied(
            f"{DEADLY} dispatchers one after the other died while it ran, so it is taken to be the reason.",
            hint="Look into the system's log (its memory may have run out); modelpress retry tries it again.",
        )
        failure = replace(unforeseen(claim.job, error, 0.0), log_tail="", retryable=False)
        if self.store.fail(claim.job, failure, owner=self.owner, economy=claim.economy):
            self.counts["failed"] += 1
            self.progress.failed(claim.job, failure)
        return True

    def too_short(self, claim: Claim, allowed_s: float | None) -> str:
        """Return in a sentence why a job is not started that the budget ended again and again; empty where it may be."""
        if allowed_s is None:
            return ""
        tries = self.store.queue.attempts_of(claim.job.id)
        had = [one.seconds for one in tries if one.outcome == "interrupted" and one.category == "timed_out"]
        if len(had) < OVERRUNS or allowed_s > max(had):
            return ""
        return f"the budget ended it {len(had)} times, once after {in_words(max(had))}, and now allows it {in_words(allowed_s)}"

    def take_in(self) -> None:
        """Store what was kept, of earlier dispatches too; raises what the store raises, and what is not stored stays kept."""
        for job, result, taken in self.spool.take_in(self.store) if self.spool else ():
            self.spooled.discard(job.id)
            if taken == "stored":
                self.unsettled.pop(job.id, None)
                self.counts["done"] += 1
                self.progress.finished(job, result)
        for job_id in self.spooled:  # another dispatcher has taken it in, and counts it
            self.unsettled.pop(job_id, None)
        self.spooled.clear()
        while self.unsettled:
            job_id = next(iter(self.unsettled))
            self._settle(*self.unsettled[job_id])
            del self.unsettled[job_id]

    def _keep(self, run: Run, outcome: JobResult | Failure, seconds: float) -> None:
        job = run.claim.job
        self.unsettled[job.id] = (run, outcome, seconds)
        if self.spool and isinstance(outcome, JobResult):
            with suppress(OSError):  # the disk is full to the last byte: then memory alone has it
                self.spool.keep(job, outcome, self.budget.spent(seconds))
                self.spooled.add(job.id)

    def _settle(self, run: Run, outcome: JobResult | Failure, seconds: float) -> None:
        if isinstance(outcome, JobResult):
            try:
                return self._settle_result(run, outcome, seconds)
            except BadDocument as error:
                outcome = unforeseen(run.claim.job, error, seconds)
        try:
            self._settle_failure(run, replace(outcome, job_id=run.claim.job.id), seconds)
        except BadDocument as error:  # what it says of itself cannot be stored either
            self._settle_failure(run, replace(unforeseen(run.claim.job, error, seconds), log_tail=""), seconds)

    def _settle_result(self, run: Run, result: JobResult, seconds: float) -> None:
        job, spent = run.claim.job, self.budget.spent(seconds)
        if self.store.finish(job, result, owner=self.owner, spent=spent):
            self.counts["done"] += 1
            self.progress.finished(job, result)
        else:
            self._lose(job)

    def _settle_failure(self, run: Run, failure: Failure, seconds: float) -> None:
        claim, job = run.claim, run.claim.job
        if run.ending == "interrupted" and failure.category == "killed":
            self.put_back(run)
            return
        if run.ending in ("", "interrupted") and failure.category == "timed_out" and seconds >= (run.allowed_s or math.inf):
            self._cut_short(run, failure, seconds)
            return
        retry = None if run.ending in ("cancelled", "lost") else retries.decide(failure, claim.attempt, claim.economy, self.max_attempts)
        after, economy = (retry.after_s, retry.economy) if retry else (None, claim.economy)
        spent = self.budget.spent(seconds)
        if not self.store.fail(job, failure, owner=self.owner, spent=spent, retry_after=after, economy=economy):
            self._lose(job)
        elif run.ending == "cancelled":
            self.counts["cancelled"] += 1
            self.progress.ended(job, "cancelled")
        elif retry:
            self.counts["retried"] += 1
            sparing = "with less memory " if retry.economy > claim.economy else ""
            self.progress.ended(job, f"{failure.error}: {failure.reason} It is tried again {sparing}in {retry.after_s:.0f} s.")
        else:
            self.counts["failed"] += 1
            self.progress.failed(job, failure)

    def _cut_short(self, run: Run, failure: Failure, seconds: float) -> None:
        """Put a job back that the budget ended: that is no failure of its own."""
        job = run.claim.job
        why = f"the budget ended it after {in_words(seconds)}: it allowed it no more"
        self.store.queue.put_back(job, self.owner, spent=self.budget.spent(seconds), why=replace(failure, reason=why))
        self.overrun[job.id] = why
        self.counts["interrupted"] += 1
        self.progress.ended(job, f"{why}, and it is put back")

    def _lose(self, job: Job) -> None:
        self.counts["lost"] += 1
        self.progress.ended(job, "its claim was lost, so what it brought is dropped")

    def _stored(self, write: Callable[[], None]) -> None:
        """Write to the store, again for some time where it refuses; a machine that is taken away has no such time."""
        import tenacity

        patience = tenacity.stop_after_delay(self.patience_s)
        tenacity.Retrying(
            retry=tenacity.retry_if_exception_type((StoreError, OutOfDisk)),
            stop=lambda state: self.stop.is_set() or patience(state),
            wait=tenacity.wait_exponential(multiplier=0.1, max=2),
            reraise=True,
        )(write)


def unforeseen(job: Job, error: BaseException, seconds: float) -> Failure:
    """Return an error as a failure; one that nobody foresaw is tried again only where the machine, not the job, may be at fault."""
    if isinstance(error, ModelPressError):
        reason, hint, retryable, category = error.message, error.hint, error.retryable, error.category
        wait = error.retry_after or 0.0 if isinstance(error, HubUnreachable) else 0.0
    else:
        wait = 0.0
        reason, hint = f"unexpected {type(error).__name__}: {error}", "look at the end of the job's log; report it if it comes again"
        retryable, category = isinstance(error, OSError | MemoryError), "bug"
    return Failure(
        job_id=job.id,
        error=type(error).__name__,
        reason=reason,
        hint=hint,
        log_tail="".join(traceback.format_exception(error))[-LOG_TAIL:],
        seconds=seconds,
        retryable=retryable,
        category=category,
        retry_after_s=wait,
    )
