"""A work folder whose database is filled without pressing anything, and the command in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from hub.domain import Environment, Failure, Job, ModelRef
from hub.scheduling import Expectation, Plan, Prediction
from hub.store import Store
from modelpress.cli import app
from runners import protocols, recipes

BASE, OTHER = ModelRef(repo_id="people/tiny", sha="a" * 40), ModelRef(repo_id="people/large", sha="b" * 40)
PROTOCOL = protocols.load("stdlib-heldout@512")
MACHINE = Environment(
    hardware="a CPU", device="cpu", cores=2, memory_bytes=2**33, system="Linux", python="3.11", libraries={"torch": "2"}
)  # fmt: skip
AT = "2026-01-02T03:04:05+00:00"


def press(recipe: str, base: ModelRef = BASE) -> Job:
    return Job(kind="press", base=base, recipe=recipes.load(recipe))


def measure(recipe: str | None = None, base: ModelRef = BASE) -> Job:
    return Job(kind="measure", base=base, recipe=recipes.load(recipe) if recipe else None, protocol=PROTOCOL)


def failure(job: Job, category: Any = "out_of_memory", log: str = "…") -> Failure:
    return Failure(
        job_id=job.id,
        error="OutOfMemory",
        reason="It needs 9 GB.",
        hint="Use less.",
        log_tail=log,
        seconds=3.0,
        retryable=True,
        category=category,
    )


def expected(seconds: float = 60.0) -> Expectation:
    guess = Prediction(value=seconds, factor=2.0, samples=3)
    return Expectation(
        value=1.0,
        popularity=1.0,
        gain=1.0,
        seconds=guess,
        memory_bytes=guess,
        disk_bytes=10,
        cost=0.0,
        shape_seconds=1.0,
        shape_memory_bytes=1.0,
    )


@dataclass
class Press:
    """A user's folder with a database, and the command in this process."""

    path: Path
    store: Store
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.path / "press"

    def call(self, *words: str) -> Result:
        return CliRunner().invoke(app, list(words))

    def says(self, *words: str, code: int = 0) -> str:
        result = self.call(*words)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    def json(self, *words: str) -> Any:
        result = self.call(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def plan(self, jobs: Sequence[Job], needs: dict[str, frozenset[str]] | None = None) -> None:
        self.store.record_plan(
            Plan(jobs=tuple(jobs), refusals=(), done=0, needs=needs or {}, expected={job.id: expected() for job in jobs})
        )

    def state(self, job: Job) -> str:
        return {record.id: record.state for record in self.store.jobs()}[job.id]
