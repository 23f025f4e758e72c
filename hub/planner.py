"""Decides what is to be done: base models x recipes, less what is done or has failed for good. Pure: same inputs, same plan."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from hub.domain import Job, ModelRef, Recipe, Refusal
from hub.protocol import Protocol
from hub.scheduling import Plan

MAX_ATTEMPTS = 3

Fits = Callable[[ModelRef, Recipe], str | None]
"""Says why a recipe cannot be applied to a model; None when it can."""

NOTHING_FAILED: Mapping[str, tuple[int, bool]] = MappingProxyType({})


def fits_always(_: ModelRef, __: Recipe) -> str | None:
    """Take every recipe to fit every model."""
    return None


@dataclass(frozen=True, kw_only=True)
class _Past:
    """What is known of jobs by id: which are done, and of the failed ones (attempts, whether trying again may help)."""

    done: frozenset[str]
    failed: Mapping[str, tuple[int, bool]]
    retry_failed: bool

    def is_done(self, job: Job) -> bool:
        return job.id in self.done

    def is_given_up(self, job: Job) -> bool:
        if self.retry_failed or self.is_done(job) or job.id not in self.failed:
            return False
        attempts, retryable = self.failed[job.id]
        return not retryable or attempts >= MAX_ATTEMPTS


def plan(
    models: Sequence[ModelRef],
    recipes: Sequence[Recipe],
    protocol: Protocol,
    done: Collection[str],
    *,
    further: Sequence[Protocol] = (),
    failed: Mapping[str, tuple[int, bool]] = NOTHING_FAILED,
    fits: Fits = fits_always,
    retry_failed: bool = False,
) -> Plan:
    """Return the jobs to do now, per base model: its measurement, then press and measurement of each recipe's variant.

    `further` protocols are taken of the base, and of each variant unless the base's job under it is given up; whether one of them succeeds
    decides nothing about the other jobs.

    Left out are jobs that are done (`done` holds ids); jobs that failed for good, or `MAX_ATTEMPTS` times, with all that builds on them,
    unless `retry_failed`; recipes that do not fit (refused with the reason that `fits` gives; asked only about variants not yet complete);
    and a recipe that does the same as an earlier one under another name (refused).
    """
    past = _Past(done=frozenset(done), failed=failed, retry_failed=retry_failed)
    refused: list[Refusal] = []
    wanted: list[Job] = []
    for model in dict.fromkeys(models):
        base = Job(kind="measure", base=model, protocol=protocol)
        variants = list(_variants(model, recipes, protocol))
        if past.is_given_up(base):
            wanted += [job for _, pair in variants for job in pair if past.is_done(job)]
            continue
        measurable = [one for one in further if not past.is_given_up(replace(base, protocol=one))]
        wanted += [base, *_measured(base, measurable, past)]
        first: dict[str | None, str] = {}
        for recipe, pair in variants:
            refusal = _refusal(model, recipe, first.setdefault(pair[0].variant_id, recipe.name), pair, past, fits)
            if refusal:
                refused.append(refusal)
            elif any(map(past.is_given_up, pair)):
                wanted += filter(past.is_done, pair)
            else:
                wanted += [*pair, *_measured(pair[1], measurable, past)]
    wanted = list({job.id: job for job in wanted}.values())
    due = tuple(job for job in wanted if not past.is_done(job))
    return Plan(jobs=due, refusals=tuple(dict.fromkeys(refused)), done=len(wanted) - len(due), needs=_needs(due))


def _needs(jobs: Sequence[Job]) -> dict[str, frozenset[str]]:
    """Return, by job id, the ids of those jobs that must have succeeded before it starts.

    A variant waits for its base's measurement under the same protocol, its press for that under the first protocol of the variant.
    """
    measures = [job for job in jobs if job.kind == "measure"]
    measured = {(job.base, job.protocol): job.id for job in measures if job.recipe is None}
    pressed = {job.variant_id: job.id for job in jobs if job.kind == "press"}
    first = {job.variant_id: job.protocol for job in reversed(measures)}
    needs: dict[str, frozenset[str]] = {}
    for job in jobs:
        protocol = job.protocol or first.get(job.variant_id)
        before = {measured.get((job.base, protocol)), pressed.get(job.variant_id)} if job.recipe else set()
        needs[job.id] = frozenset(job_id for job_id in before if job_id is not None) - {job.id}
    return needs


def _variants(model: ModelRef, recipes: Sequence[Recipe], protocol: Protocol) -> Iterator[tuple[Recipe, tuple[Job, Job]]]:
    for recipe in recipes:
        press = Job(kind="press", base=model, recipe=recipe)
        yield recipe, (press, Job(kind="measure", base=model, recipe=recipe, protocol=protocol))


def _measured(job: Job, further: Sequence[Protocol], past: _Past) -> Iterator[Job]:
    """Yield the measuring job under each further protocol, those left out that are given up."""
    jobs = (replace(job, protocol=protocol) for protocol in further)
    return (job for job in jobs if not past.is_given_up(job))


def _refusal(model: ModelRef, recipe: Recipe, first: str, pair: tuple[Job, Job], past: _Past, fits: Fits) -> Refusal | None:
    if first != recipe.name:
        reason = f"it does the same as {first}, under another name"
        return Refusal(repo_id=model.repo_id, sha=model.sha, code="duplicate", reason=reason, recipe=recipe.name)
    if all(map(past.is_done, pair)):
        return None
    misfit = fits(model, recipe)
    return Refusal(repo_id=model.repo_id, sha=model.sha, code="unfit", reason=misfit, recipe=recipe.name) if misfit else None
