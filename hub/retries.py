"""Decides whether a job that failed is tried again: only where another try can help, later each time, and not for ever. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from hub.domain import Failure

MOST_ECONOMY = 2
LONGEST_S = 600.0
DAY_S = 86_400.0
_FIRST_S = {"hub": 10.0, "disk": 30.0, "killed": 2.0, "bug": 2.0}
"""Seconds until the second try, by class of failure: a Hub or a disk that is full mends itself more slowly than a process that died."""


@dataclass(frozen=True, kw_only=True)
class Retry:
    """Another try: in how many seconds at the earliest, and how sparing with memory (`JobOrder.economy`)."""

    after_s: float
    economy: int


def decide(failure: Failure, attempt: int, economy: int, max_attempts: int) -> Retry | None:
    """Say when and how a job is tried again whose try number `attempt` (from 1), with this economy, ended so; None: it is not.

    Out of memory: at once, one step more sparing each time, where there is a more sparing way; never the same again. Timed out: once more,
    as a try on a quieter machine, or one that goes on from a checkpoint, may end in time. Killed: the same again, then more sparing,
    because a system that is short of memory kills without saying so. Hub and disk: where the error says that another try may help, or
    room may be made. A fault that nobody foresaw: only where the machine, not the job, may be at fault. Unsupported, unstable,
    calibration, gated, licence: never. None comes before the Hub wants to be asked again (`Failure.retry_after_s`; a day at the most).
    """
    if attempt >= max_attempts:
        return None
    match failure.category:
        case "out_of_memory":
            smaller = failure.retryable and economy < MOST_ECONOMY
            return Retry(after_s=0.0, economy=economy + 1) if smaller else None
        case "timed_out":
            return Retry(after_s=0.0, economy=economy) if attempt == 1 else None
        case "killed":
            return Retry(after_s=_after(failure, attempt), economy=min(economy + (attempt > 1), MOST_ECONOMY))
        case "disk":
            return Retry(after_s=_after(failure, attempt), economy=economy)
        case "hub" | "bug":
            return Retry(after_s=_after(failure, attempt), economy=economy) if failure.retryable else None
        case _:
            return None


def _after(failure: Failure, attempt: int) -> float:
    """Return the wait before the next try in seconds: doubled each time, shortened by up to half so that jobs do not come back together,
    and as long as the Hub asks for.
    """
    longest = min(LONGEST_S, _FIRST_S[failure.category] * 2 ** min(attempt - 1, 30))
    part = random.Random(f"{failure.job_id}:{attempt}").uniform(0.5, 1.0)  # noqa: S311 - it spreads tries, and guards nothing
    return max(float(longest * part), min(failure.retry_after_s, DAY_S))
