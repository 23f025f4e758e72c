"""Runs a plan: jobs go to a farm as what they need is there, and what comes back goes into the store."""

from __future__ import annotations

import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from hub.domain import Failure, Job, JobResult
from hub.errors import BadDocument, ModelPressError, UsageError
from hub.scheduling import Plan
from hub.store import Store

LOG_TAIL = 4000


class Farm(Protocol):
    """Where jobs run."""

    def run(self, job: Job, *, folder: Path | None = None) -> JobResult | Failure:
        """Run one job and wait for it; called from several threads."""


class Progress(Protocol):
    """Who is told how it goes; called from the thread that dispatches."""

    def started(self, job: Job) -> None:
        """A job has started."""

    def finished(self, job: Job, result: JobResult) -> None:
        """A job gave a result, which is stored."""

    def failed(self, job: Job, failure: Failure) -> None:
        """A job failed, which is stored."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many jobs were done, failed, or were skipped: what they need failed, or another process has them."""

    done: int
    failed: int
    skipped: int


def dispatch(plan: Plan, farm: Farm | None, store: Store, progress: Progress, *, workers: int) -> Counts:
    """Run all jobs of a plan, in its order, up to `workers` at a time; a `measure` job runs alone, as it takes time.

    A variant is pressed when its base is measured, and measured when it is pressed; what needs a job that failed is skipped. A job's
    failure, and an unforeseen exception of the farm, is stored and ends nothing. An interruption, or a store that fails, puts running
    jobs back to planned and is raised; whoever owns the farm then closes it. No farm is needed for a plan without jobs.
    """
    if not plan.jobs:
        return Counts(done=0, failed=0, skipped=0)
    if farm is None:
        raise UsageError(f"{len(plan.jobs)} jobs are planned, but no farm was given to run them", hint="open a farm first")
    loop = _Loop(plan, farm, store, progress, max(1, workers))
    try:
        return loop.run()
    except BaseException:
        loop.abandon()
        raise


class _Loop:
    """One dispatch. This thread alone decides, stores and reports; the pool's threads only wait for the farm."""

    def __init__(self, plan: Plan, farm: Farm, store: Store, progress: Progress, workers: int) -> None:
        self._farm, self._store, self._progress, self._workers = farm, store, progress, workers
        self._waiting = {job.id: job for job in plan.jobs}
        self._needs = {job.id: plan.needs.get(job.id, frozenset()) for job in plan.jobs}
        self._running: dict[Future[JobResult | Failure], Job] = {}
        self._claimed: dict[str, Job] = {}
        self._done = self._failed = self._skipped = 0
        self._met: set[str] = set()
        self._unmet: set[str] = set()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="farm")

    def run(self) -> Counts:
        while self._waiting or self._running:
            self._skip()
            while job := self._next():
                self._launch(job)
            if self._running:
                for future in wait(self._running, return_when=FIRST_COMPLETED).done:
                    self._settle(self._running.pop(future), future.result())
        self._pool.shutdown()
        return Counts(done=self._done, failed=self._failed, skipped=self._skipped)

    def abandon(self) -> None:
        """Put unsettled jobs back. Their threads end when the farm does, and what they bring is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        for job in self._claimed.values():
            with suppress(ModelPressError):  # a store that fails now: recover() puts them back later
                self._store.put_back(job)

    def _skip(self) -> None:
        """Drop jobs that need one that failed; `_waiting` is in order, so a job comes after what it needs."""
        for job_id in list(self._waiting):
            if self._needs[job_id] & self._unmet:
                del self._waiting[job_id]
                self._unmet.add(job_id)
                self._skipped += 1

    def _next(self) -> Job | None:
        """Return the first job that can start now; one that must run alone holds back all after it until the others have ended."""
        job = next((job for job_id, job in self._waiting.items() if self._needs[job_id] <= self._met), None)
        if job is None or len(self._running) >= self._workers:
            return None
        alone = job.kind == "measure" or any(other.kind == "measure" for other in self._running.values())
        return None if alone and self._running else job

    def _launch(self, job: Job) -> None:
        del self._waiting[job.id]
        self._claimed[job.id] = job
        if self._store.start(job):
            self._progress.started(job)
            self._running[self._pool.submit(_attempt, self._farm, job)] = job
            return
        del self._claimed[job.id]
        self._skipped += 1
        (self._met if job.id in self._store.done() else self._unmet).add(job.id)

    def _settle(self, job: Job, outcome: JobResult | Failure) -> None:
        if isinstance(outcome, JobResult):
            try:
                self._store.finish(job, outcome)
            except BadDocument as error:
                outcome = _failure(job, error, outcome.seconds)
            else:
                self._met.add(job.id)
                self._done += 1
                self._progress.finished(job, outcome)
        if isinstance(outcome, Failure):
            outcome = replace(outcome, job_id=job.id)
            self._store.fail(job, outcome)
            self._unmet.add(job.id)
            self._failed += 1
            self._progress.failed(job, outcome)
        del self._claimed[job.id]


def _attempt(farm: Farm, job: Job) -> JobResult | Failure:
    """Run a job; whatever the farm raises becomes a failure."""
    began = time.monotonic()
    try:
        return farm.run(job)
    except BaseException as error:
        return _failure(job, error, time.monotonic() - began)


def _failure(job: Job, error: BaseException, seconds: float) -> Failure:
    """Return an error as a failure; one that nobody foresaw is tried again only where the machine, not the job, may be at fault."""
    if isinstance(error, ModelPressError):
        reason, hint, retryable, category = error.message, error.hint, error.retryable, error.category
    else:
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
    )
