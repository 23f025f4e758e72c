"""What came of the work: the gate's verdicts, releases, and all that the store remembers of a job, a base model, a variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hub.domain import Artifact, Candidate, Environment, Failure, Job, LayerError, Measurement, ModelRef, Recipe

JobState = Literal["planned", "running", "done", "failed"]
Stage = Literal["artifact", "release"]


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
    """An artifact published at a commit; `verified_at` is set when the downloaded bytes passed the gate."""

    variant_id: str
    repo_id: str
    sha: str
    artifact_digest: str
    url: str
    released_at: str
    verified_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class JobRecord:
    """A job as the store knows it."""

    job: Job
    state: JobState
    attempts: int
    updated_at: str
    seconds: float | None = None
    failure: Failure | None = None
    stages: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BaseRecord:
    """A base model with its own measurements, as the store knows it."""

    candidate: Candidate
    rank: int
    measurements: tuple[Measurement, ...]
    environment: Environment | None


@dataclass(frozen=True, kw_only=True)
class VariantRecord:
    """A variant with all that happened to it, as the store knows it."""

    variant_id: str
    base: ModelRef
    recipe: Recipe
    artifact: Artifact | None
    press_seconds: float | None
    press_peak_memory_bytes: int | None
    measurements: tuple[Measurement, ...]
    environment: Environment | None
    verdicts: tuple[Verdict, ...]
    release: Release | None
    failure: Failure | None
    layers: tuple[LayerError, ...] = ()
