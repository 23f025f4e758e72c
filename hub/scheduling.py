"""The words of the scheduler as frozen types: what a job is expected to bring and to take, a plan, a claim, an attempt, what was spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hub.domain import Job, Refusal

Outcome = Literal["done", "failed", "interrupted", "lost"]
"""How an attempt ended: with a result, with a failure, put back by its dispatcher, or with its dispatcher gone."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A number that is expected, from `samples` attempts of the farm's own history; 0 samples: from the model's shape alone.

    `factor` is the error: two of three times the true number lies between `value / factor` and `value * factor`.
    """

    value: float
    factor: float
    samples: int


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """What a job is expected to bring and to take, as it was planned.

    `value` is popularity x gain / cost (`hub.planner` states the formula). `shape_seconds` and `shape_memory_bytes` are what the model's
    shape alone says: predictions are learned as factors on them. `cost` is money, in the settings' currency. `reason` is one sentence for
    people: why it is pressed, and why now.
    """

    value: float
    popularity: float
    gain: float
    seconds: Prediction
    memory_bytes: Prediction
    disk_bytes: int
    cost: float
    shape_seconds: float
    shape_memory_bytes: float
    parameters: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done now, in order: jobs, what was refused, and how many planned jobs are done already.

    `needs` holds, by job id, the ids of those jobs that must be done before it starts; `expected`, by job id, what it brings and takes.
    """

    jobs: tuple[Job, ...]
    refusals: tuple[Refusal, ...]
    done: int
    needs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    expected: Mapping[str, Expectation] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A job that this dispatcher alone may run until its lease ends. `attempt` counts from 1; `economy` from 0: see `JobOrder`."""

    job: Job
    attempt: int
    economy: int = 0
    expected: Expectation | None = None


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What a dispatcher learns when it renews its leases: jobs that are no longer its own, jobs that people cancelled, and a pause."""

    lost: frozenset[str] = frozenset()
    cancelled: frozenset[str] = frozenset()
    paused: bool = False


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at a job: when (epoch seconds), by whom, what it took and how it ended. `gpus` and `cost` are what it used and cost.

    `category` is the class of a failure; an interrupted one that has the class `timed_out` was ended by the budget. `job` is None where
    another version of this program wrote it.
    """

    job: Job | None
    number: int
    owner: str
    began: float
    seconds: float
    outcome: Outcome
    category: str | None = None
    reason: str = ""
    hardware: str = ""
    peak_memory_bytes: int = 0
    gpus: float = 0.0
    cost: float = 0.0
    expected: Expectation | None = None


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What an attempt used: GPUs (a number of them, while it ran) and money."""

    gpus: float = 0.0
    cost: float = 0.0


NOTHING_SPENT = Spent()


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """Whether a budget lets a job start now, why not in one sentence, and how many seconds it may take at the most (None: no limit)."""

    allowed: bool
    reason: str = ""
    timeout_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is left for a dispatcher: planned jobs by what holds them, and how many run `elsewhere`, under other dispatchers.

    `ready` could start now, `put_off` are to be tried again later (the first in `due_in_s` seconds), `blocked` wait for jobs that are not
    done. `paused` is the reason of a pause; None: there is none.
    """

    ready: int
    put_off: int
    blocked: int
    elsewhere: int
    due_in_s: float | None = None
    paused: str | None = None
