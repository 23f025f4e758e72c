"""What people look at while the work goes on, as frozen types: jobs as lines, all at a glance, everything about one job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hub import owners
from hub.domain import FailureClass, Job, JobKind, ModelRef, Scalar
from hub.history import JobState
from hub.scheduling import Expectation


@dataclass(frozen=True, kw_only=True)
class JobLine:
    """A job as one line of a list.

    `since`: when a running one started; `due`: when a planned one may be tried again, if that is ahead; both in epoch seconds.
    `waits_for` counts the jobs that must be done first, `cancel` says that its end is asked for, `owner` which dispatcher runs it.
    """

    id: str
    kind: JobKind
    repo_id: str
    recipe: str | None
    protocol: str | None
    state: JobState
    attempts: int
    economy: int
    waits_for: int
    due: float | None
    cancel: bool
    owner: str | None
    since: float | None
    updated_at: str
    seconds: float | None
    category: FailureClass | None
    error: str | None
    reason: str | None
    hint: str | None
    expected: Expectation | None

    @property
    def label(self) -> str:
        """The job's short name, as `Job.label`."""
        return f"{self.kind} {self.repo_id.rsplit('/', 1)[-1]} {self.recipe or 'base'}"

    @property
    def title(self) -> str:
        """The label and the protocol, as `Job.title`."""
        return f"{self.label}, {self.protocol}" if self.protocol else self.label

    @property
    def abandoned(self) -> bool:
        """Whether it is marked running, but by a process of this machine that lives no more."""
        return self.state == "running" and (self.owner is None or owners.lives(self.owner) is False)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Which jobs are asked for; None: any. `model` is `owner/name` or the name alone, `recipe` a recipe's name."""

    state: JobState | None = None
    category: FailureClass | None = None
    model: str | None = None
    recipe: str | None = None
    kind: JobKind | None = None


ANY = Wish()


@dataclass(frozen=True, kw_only=True)
class Blocked:
    """A job that failed or was cancelled, and how many planned ones wait for it, directly or not."""

    job: JobLine
    jobs: int


@dataclass(frozen=True, kw_only=True)
class Overview:
    """All at a glance, at the time `at` (epoch seconds). `states` and `failures` (by class) count jobs.

    `paused` is the reason of a pause, None without one; `waiting` are the first of the `waiting_count` jobs that are to be tried again.
    """

    at: float
    states: Mapping[str, int]
    failures: Mapping[str, int]
    running: tuple[JobLine, ...]
    waiting: tuple[JobLine, ...]
    waiting_count: int
    blocked: tuple[Blocked, ...]
    paused: str | None
    paused_at: str | None
    releases: int
    verified: int
    refused: int


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Planned and running jobs by id, and the variants and base models that they are about."""

    jobs: frozenset[str]
    variants: frozenset[str]
    bases: frozenset[ModelRef]


@dataclass(frozen=True, kw_only=True)
class Used:
    """What attempts that ended since some time used, and those that run; what was put on the Hub since some time, and in all.

    `unpriced_hours` are of tries that run, or whose dispatcher is gone: nobody noted what they cost.
    """

    jobs: int
    job_hours: float
    gpu_hours: float
    money: float
    unpriced_hours: float
    repos: int
    commits: int
    stored_bytes: int


@dataclass(frozen=True, kw_only=True)
class Try:
    """One attempt at a job: `began` in epoch seconds; `outcome` done, failed, interrupted or lost."""

    number: int
    began: float
    seconds: float
    owner: str
    outcome: str
    category: str | None
    reason: str
    hardware: str
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class MadeArtifact:
    """What a press job made: where its release lies, if it was released, and in which folder of the artifacts it was put."""

    variant_id: str
    digest: str
    bytes: int
    made_at: str
    release: str | None


@dataclass(frozen=True, kw_only=True)
class JobDetail:
    """Everything about one job; of `needs` and of those that it is `wanted_by`, at most 100 are read."""

    line: JobLine
    job: Job
    position: int
    hardware: str | None
    peak_memory_bytes: int | None
    stages: Mapping[str, float]
    notes: tuple[str, ...]
    log_tail: str
    tries: tuple[Try, ...]
    needs: tuple[JobLine, ...]
    wanted_by: tuple[JobLine, ...]
    wanted_by_count: int
    artifact: MadeArtifact | None
    machine: Mapping[str, Scalar] = field(default_factory=dict)
