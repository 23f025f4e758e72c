"""What planned jobs are expected to bring and to take: popularity, predictions, chances and the budget, from one open work folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hub.budget import Budget, folder_bytes
from hub.domain import Job, ModelRef, Recipe, variant_id
from hub.errors import BadCheckpoint, HubError, HubNotFound, HubRefused, HubUnreachable, ModelPressError, PolicyRefusal, UnfitModel
from hub.planner import Worth
from hub.predictions import Chances, History, Takes
from hub.protocol import Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hub.history import BaseRecord
    from hub.predictions import Forecast
    from modelpress.session import Session
    from runners.checkpoint import ModelShape
    from runners.needs import Needs

HISTORY_S = 90 * 86_400.0
"""How far back attempts tell of those to come: libraries and machines change."""
_MODEL_FAULTS = (UnfitModel, BadCheckpoint, HubNotFound, HubRefused)
"""What is wrong with one model or recipe, and stops no other."""


class Estimates:
    """What jobs take, from shapes and the farm's history. Each model's shape is read once, each recipe reckoned once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._history = History(session.store.queue.attempts(since=time.time() - HISTORY_S))
        self._presses: dict[str, Needs] = {}
        self._measures: dict[tuple[ModelRef, Protocol, bool], Needs] = {}
        self._faults: dict[ModelRef, ModelPressError] = {}

    def misfit(self, model: ModelRef, recipe: Recipe) -> str | None:
        """Return why a recipe cannot be applied to a model here, from its config and safetensors headers alone; None when it can."""
        from runners.needs import too_large

        try:
            reason = too_large(self._press(model, recipe), self._session.memory_bytes)
            return f"{recipe.name} {reason}" if reason else None
        except _MODEL_FAULTS as error:
            return error.message

    def forecast(self, job: Job) -> Forecast | None:
        """Return what a job will take; None where its model's shape is not to be had."""
        try:
            return self._history.forecast(job, self._takes(job))
        except _MODEL_FAULTS:
            return None

    def _takes(self, job: Job) -> Takes:
        from runners.needs import LIBRARIES_BYTES

        shape = self._shape(job.base)
        saved = 0.0
        if job.kind == "press" and job.recipe:
            needs = self._press(job.base, job.recipe)
            saved = 1 - needs.made_bytes / max(1, shape.bytes)
        else:
            assert job.protocol is not None
            needs = self._measure(job.base, job.protocol, paired=job.recipe is not None)
        return Takes(
            seconds=needs.seconds(self._session.threads),
            memory_bytes=LIBRARIES_BYTES + needs.memory_bytes,
            disk_bytes=needs.disk_bytes,
            parameters=shape.parameters,
            base_bytes=shape.bytes,
            saved=saved,
        )

    def _press(self, model: ModelRef, recipe: Recipe) -> Needs:
        from runners.needs import needs

        key = variant_id(model, recipe)
        if key not in self._presses:
            with _sane(model):
                self._presses[key] = needs(recipe, self._shape(model))
        return self._presses[key]

    def _measure(self, model: ModelRef, protocol: Protocol, *, paired: bool) -> Needs:
        from runners.needs import measuring

        key = (model, protocol, paired)
        if key not in self._measures:
            shape = self._shape(model)
            with _sane(model):
                self._measures[key] = measuring(protocol, shape, beside=shape if paired else None)
        return self._measures[key]

    def _shape(self, model: ModelRef) -> ModelShape:
        """Return a model's shape; what is wrong with it is asked of the hub once, not for each recipe."""
        if model in self._faults:
            raise self._faults[model]
        try:
            return self._session.shape(model)
        except HubUnreachable:
            raise
        except (*_MODEL_FAULTS, HubError, PolicyRefusal) as error:
            fault = error if isinstance(error, _MODEL_FAULTS) else BadCheckpoint(error.message, hint=error.hint)
            self._faults[model] = fault
            raise fault from error


@contextmanager
def _sane(model: ModelRef) -> Iterator[None]:
    """Take sizes that cannot be reckoned with, however they came into a config, for a fault of that model alone."""
    try:
        yield
    except (ArithmeticError, TypeError, ValueError) as error:
        raise BadCheckpoint(f"{model.repo_id}: its config.json has sizes that cannot be.", hint="Choose another base model.") from error


def worth(session: Session, bases: Sequence[BaseRecord], estimates: Estimates) -> Worth:
    """Return all that the planner orders jobs by."""
    return Worth(
        popularity=popularity(session, bases),
        forecast=estimates.forecast,
        chances=chances(session),
        price_per_hour=session.settings.budget.price_per_hour,
    )


def popularity(session: Session, bases: Sequence[BaseRecord]) -> dict[ModelRef, float]:
    """Return by model the downloads of 30 days that are to be expected in a week: what they are now, moved on as they rise or fall."""
    from hub import catalog

    now = datetime.now(UTC)
    ranked = catalog.rank([base.candidate for base in bases], now, session.store.popularity(since=catalog.since(now)))
    return {one.candidate.ref: one.score.expected_downloads for one in ranked}


def chances(session: Session) -> Chances:
    """Return how often variants of each recipe got through: past the gate, of all that were judged or failed for good."""
    from leaderboard.gate import artifact_verdict

    judged: dict[str, tuple[int, int]] = {}
    for record in session.store.variants():
        verdict = artifact_verdict(record)
        if verdict is None and (record.failure is None or record.failure.retryable):
            continue
        passed, count = judged.get(record.recipe.name, (0, 0))
        judged[record.recipe.name] = (passed + bool(verdict and verdict.passed), count + 1)
    return Chances(judged)


def budget(session: Session) -> Budget:
    """Return what may be spent, with what all dispatchers spent counted; a job of this machine with a GPU uses one."""
    settings = session.settings
    spending = Budget(settings.budget, gpus=gpus(session), disk=lambda: folder_bytes(session.folder))
    spending.recount(session.store.queue.attempts(since=spending.since))
    return spending


def gpus(session: Session) -> float:
    """Return how many GPUs a job is counted with: what the settings name, else the one of this machine where their hours are limited."""
    farm, limits = session.settings.farm, session.settings.budget
    if farm.gpus or farm.kind != "local" or not limits.gpu_hours:
        return farm.gpus
    from runners import nvml

    return float(nvml.device() is not None)
