"""What came of the work: the gate's verdicts, releases, and all that the store remembers of a job, a base model, a variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hub.domain import Artifact, Candidate, Environment, Failure, Job, LayerError, Measurement, ModelRef, Recipe, Scalar, Scores
from hub.protocol import Protocol
from hub.scheduling import Expectation

JobState = Literal["planned", "running", "done", "failed", "cancelled"]
Stage = Literal["artifact", "release"]
ChangeKind = Literal["released", "replaced", "card", "retired"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One question of the gate and its answer."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The gate's answer on an artifact (`stage` artifact) or on downloaded bytes (`stage` release)."""

    variant_id: str
    stage: Stage
    subject: str
    checks: tuple[Check, ...]
    judged_at: str

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class Release:
    """An artifact published at a commit; `verified_at` is set when the downloaded bytes passed the gate.

    `sha` is the newest commit of ours that holds it: a new card makes another one. `card_sha256` is that of the README.md there, None of an
    older program's. `retired_at` and `retired_why`: it was deprecated, not deleted. `new_version`: the repository to take in its place.
    """

    variant_id: str
    repo_id: str
    sha: str
    artifact_digest: str
    url: str
    released_at: str
    verified_at: str | None = None
    card_sha256: str | None = None
    retired_at: str | None = None
    retired_why: str | None = None
    new_version: str | None = None


@dataclass(frozen=True, kw_only=True)
class ReleaseChange:
    """A line of a repository's changelog: when (ISO-8601), what became of it, in a sentence.

    `content` says what the commit was to hold but for the card (the artifact, then a hash of what is written beside it): by that a change
    is found again whose commit landed while its sender died. `sha` is the commit, None until that is known.
    """

    repo_id: str
    at: str
    kind: ChangeKind
    what: str
    content: str
    sha: str | None = None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """A published release looked at again: downloaded at `sha`, loaded with the `libraries` of that day, a sample of it measured again.

    `reason` says what broke, empty where all passed; `measurements` are those taken again, and with the condition `of` = `record` what the
    record gives for that sample.
    """

    variant_id: str
    repo_id: str
    sha: str
    at: str
    passed: bool
    reason: str
    libraries: Mapping[str, str]
    measurements: tuple[Measurement, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as the store knows it; `id` is the store's, which commands take. Lease and `not_before` are in epoch seconds.

    `position` is its place in the plan, `waits_for` how many of its needs are not done, `economy` how sparing its next try is, `cancel`
    that people cancelled it: where it runs still, its dispatcher is about to end it.
    """

    job: Job
    state: JobState
    attempts: int
    updated_at: str
    seconds: float | None = None
    failure: Failure | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    id: str = ""
    position: int = 0
    waits_for: int = 0
    not_before: float = 0.0
    economy: int = 0
    cancel: bool = False
    owner: str | None = None
    lease_until: float | None = None
    expected: Expectation | None = None


@dataclass(frozen=True, kw_only=True)
class UnreadableJob:
    """A job whose row this program cannot read, as another version wrote it or it is damaged; `why` says what is wrong."""

    id: str
    state: JobState
    why: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """How popular a model was at one time (ISO-8601). `rank` 1 is the best of that listing, 0 that of a model that policy refused."""

    at: str
    downloads: int
    likes: int
    trending_score: float
    rank: int
    score: float | None


@dataclass(frozen=True, kw_only=True)
class HubWrite:
    """Something sent to the Hub, for its limits a day: a repository made or a commit (`action`), and its size; `at` in epoch seconds."""

    at: float
    action: str
    repo_id: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class MeasuredJob:
    """A measuring job that is done, with what it gave; `id` is the store's: that of an older program's protocol was hashed otherwise."""

    id: str
    job: Job
    started_at: str
    environment: Environment
    measurements: tuple[Measurement, ...]
    notes: tuple[str, ...] = ()
    state: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What was measured of a model: `environment` is that of the newest numbers, `environments` have those of each protocol by name."""

    measurements: tuple[Measurement, ...]
    environment: Environment | None
    environments: Mapping[str, Environment] = field(default_factory=dict)

    def environment_under(self, protocol: str | None) -> Environment | None:
        """Return where the newest numbers of a protocol were taken; those of all protocols where it has none, or is None."""
        return self.environments.get(protocol or "", self.environment)


@dataclass(frozen=True, kw_only=True)
class BaseRecord(_Measured):
    """A base model with its own measurements, as the store knows it."""

    candidate: Candidate
    rank: int


@dataclass(frozen=True, kw_only=True)
class VariantRecord(_Measured):
    """A variant with all that happened to it, as the store knows it."""

    variant_id: str
    base: ModelRef
    recipe: Recipe
    artifact: Artifact | None
    press_seconds: float | None
    press_peak_memory_bytes: int | None
    verdicts: tuple[Verdict, ...]
    release: Release | None
    failure: Failure | None
    layers: tuple[LayerError, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MeasurementFile:
    """What `modelpress measure --json` prints: the numbers of a folder with all that it takes to take them again.

    `folder` and `base` (None: measured for itself) are folders or ids on the Hub; their `sha` is a commit, or `local-<hash>` of a folder's
    content; empty where it was not noted.
    """

    folder: str
    base: str | None
    protocol: Protocol
    environment: Environment
    measurements: tuple[Measurement, ...]
    layers: tuple[LayerError, ...] = ()
    scores: tuple[Scores, ...] = ()
    notes: tuple[str, ...] = ()
    state: Mapping[str, Scalar] = field(default_factory=dict)
    folder_sha: str = ""
    base_sha: str = ""
