"""Decides what is to be done, and in which order: base models x recipes, less what is done or has failed for good. Pure.

The value of a variant is popularity x gain / cost: downloads in 30 days, times the share of bytes that it saves and the chance that it is
published, by the hours that its jobs still take with its share of the base's measurements. (Money is proportional to hours, so it would
give the same order.) Jobs of one base model stay together, as download, calibration and the base's states are shared: base models come
by their best variant's value, their variants by value, and what a job needs before it. Docs: docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from hub.domain import Job, ModelRef, Recipe, Refusal, variant_id
from hub.predictions import Chances, Forecast
from hub.protocol import Protocol
from hub.scheduling import Expectation, Plan

HOUR = 3600.0
MAX_ATTEMPTS = 3

Fits = Callable[[ModelRef, Recipe], str | None]
"""Says why a recipe cannot be applied to a model; None when it can."""

NOTHING_FAILED: Mapping[str, tuple[int, bool]] = MappingProxyType({})


def fits_always(_: ModelRef, __: Recipe) -> str | None:
    """Take every recipe to fit every model."""
    return None


@dataclass(frozen=True, kw_only=True)
class Worth:
    """What jobs bring and take: downloads in 30 days by model, what each job is predicted to take (None: not known), chances, a price."""

    popularity: Mapping[ModelRef, float]
    forecast: Callable[[Job], Forecast | None]
    chances: Chances = field(default_factory=Chances)
    price_per_hour: float = 0.0


class _Item:
    """A job with its id and its variant's, which are dear to compute."""

    __slots__ = ("id", "job", "variant")

    def __init__(self, job: Job, variant: str | None = None) -> None:
        self.job, self.id, self.variant = job, job.id, variant


@dataclass(kw_only=True)
class _Variant:
    """The jobs of a variant, its press first."""

    recipe: Recipe
    items: list[_Item]
    value: float = 0.0


@dataclass(kw_only=True)
class _Family:
    """The jobs of a base model: its measurements, and its variants."""

    model: ModelRef
    measures: list[_Item] = field(default_factory=list)
    variants: list[_Variant] = field(default_factory=list)
    value: float = 0.0

    @property
    def items(self) -> list[_Item]:
        return [*self.measures, *(item for variant in self.variants for item in variant.items)]


@dataclass(frozen=True, kw_only=True)
class _Past:
    """What is known of jobs by id: which are done, and of the failed ones (attempts, whether trying again may help)."""

    done: frozenset[str]
    failed: Mapping[str, tuple[int, bool]]
    retry_failed: bool
    max_attempts: int

    def is_done(self, item: _Item) -> bool:
        return item.id in self.done

    def is_given_up(self, item: _Item) -> bool:
        if self.retry_failed or self.is_done(item) or item.id not in self.failed:
            return False
        attempts, retryable = self.failed[item.id]
        return not retryable or attempts >= self.max_attempts


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
    max_attempts: int = MAX_ATTEMPTS,
    worth: Worth | None = None,
) -> Plan:
    """Return the jobs to do now, per base model: its measurement, then press and measurement of each recipe's variant.

    A base model that no recipe fits is not measured, unless nothing but its measurement is asked for (no recipes are given).

    In order of value where `worth` tells it, with what is expected of each job; else models and recipes keep the order they are given in.

    `further` protocols are taken of the base, and of each variant unless the base's job under it is given up; whether one of them succeeds
    decides nothing about the other jobs.

    Left out are jobs that are done (`done` holds ids); jobs that failed for good, or `max_attempts` times, with all that builds on them,
    unless `retry_failed`; recipes that do not fit (refused with the reason that `fits` gives; asked only about variants not yet complete);
    and a recipe that does the same as an earlier one under another name (refused).
    """
    past = _Past(done=frozenset(done), failed=failed, retry_failed=retry_failed, max_attempts=max_attempts)
    refused: list[Refusal] = []
    families = [_family(model, recipes, (protocol, *further), past, fits, refused) for model in dict.fromkeys(models)]
    expected: dict[str, Expectation] = {}
    if worth:
        for family in families:
            expected.update(_Judge(worth, past).order(family))
        families.sort(key=lambda family: -family.value)  # stable: equal ones stay as they are given
    wanted = list({item.id: item for family in families for item in family.items}.values())
    due = [item for item in wanted if not past.is_done(item)]
    return Plan(
        jobs=tuple(item.job for item in due),
        refusals=tuple(dict.fromkeys(refused)),
        done=len(wanted) - len(due),
        needs=_needs(due),
        expected=expected,
    )


def _family(
    model: ModelRef, recipes: Sequence[Recipe], protocols: Sequence[Protocol], past: _Past, fits: Fits, refused: list[Refusal]
) -> _Family:
    """Return what is wanted of a base model, done or not; add the recipes that are refused on it to `refused`."""
    first = _Item(Job(kind="measure", base=model, protocol=protocols[0]))
    hopeless = past.is_given_up(first)
    others = [_Item(replace(first.job, protocol=protocol)) for protocol in protocols[1:]]
    others = [item for item in others if not past.is_given_up(item)]
    family = _Family(model=model, measures=[] if hopeless else [first, *others])
    names: dict[str, str] = {}
    refusals = 0
    for recipe in recipes:
        variant = variant_id(model, recipe)
        jobs = (Job(kind="press", base=model, recipe=recipe), Job(kind="measure", base=model, recipe=recipe, protocol=protocols[0]))
        pair = [_Item(job, variant) for job in jobs]
        same_as = names.setdefault(variant, recipe.name)
        refusal = None if hopeless else _refusal(model, recipe, same_as, pair, past, fits)
        items: list[_Item] = []
        if hopeless or (refusal is None and any(map(past.is_given_up, pair))):
            items = [item for item in pair if past.is_done(item)]
        elif refusal is None:
            more = [_Item(replace(pair[1].job, protocol=item.job.protocol), variant) for item in others]
            items = [*pair, *(item for item in more if not past.is_given_up(item))]
        if refusal:
            refused.append(refusal)
            refusals += 1
        family.variants.append(_Variant(recipe=recipe, items=items))
    if recipes and refusals == len(recipes):
        family.measures = [item for item in family.measures if past.is_done(item)]
    return family


class _Judge:
    """Finds what the jobs of base models are worth."""

    def __init__(self, worth: Worth, past: _Past) -> None:
        self._worth, self._past = worth, past

    def order(self, family: _Family) -> dict[str, Expectation]:
        """Put a family's variants in order of value, and return by job id what is expected of each job that is due."""
        popularity = self._worth.popularity.get(family.model, 0.0)
        measures = self._forecasts(family.measures)
        due = [variant for variant in family.variants if not all(map(self._past.is_done, variant.items))]
        share = sum(one.seconds.value for one in measures.values()) / max(1, len(due))
        expected: dict[str, Expectation] = {}
        best_gain, best = 0.0, None
        for variant in due:
            own = self._forecasts(variant.items)
            press = own.get(variant.items[0].id) or self._worth.forecast(variant.items[0].job)
            if press is None or not own:
                continue
            chance = self._worth.chances.of(variant.recipe)
            saved = max(0.0, press.takes.saved)
            gain = saved * chance
            variant.value = popularity * gain * HOUR / (share + sum(one.seconds.value for one in own.values()))
            if best is None or variant.value > family.value:
                family.value, best_gain, best = variant.value, gain, variant
            why = f"{popularity:,.0f} downloads in 30 days, saves {saved:.0%} of {_size(press.takes.base_bytes)}, chance {chance:.0%}"
            for item in variant.items:
                if item.id in own:
                    reason = why if item is variant.items[0] else f"tells what {variant.recipe.name} costs and gains"
                    expected[item.id] = self._expectation(own[item.id], variant.value, popularity, gain, reason)
        family.variants.sort(key=lambda variant: -variant.value)
        first = f"; first {best.recipe.name}" if best else ""
        reason = f"{len(due)} variants are compared with it{first}" if due else "asked for of the base model itself"
        for job_id, forecast in measures.items():
            expected[job_id] = self._expectation(forecast, family.value, popularity, best_gain, reason)
        return expected

    def _forecasts(self, items: Sequence[_Item]) -> dict[str, Forecast]:
        found = ((item.id, self._worth.forecast(item.job)) for item in items if not self._past.is_done(item))
        return {job_id: forecast for job_id, forecast in found if forecast}

    def _expectation(self, forecast: Forecast, value: float, popularity: float, gain: float, reason: str) -> Expectation:
        return Expectation(
            value=value,
            popularity=popularity,
            gain=gain,
            seconds=forecast.seconds,
            memory_bytes=forecast.memory_bytes,
            disk_bytes=forecast.takes.disk_bytes,
            cost=self._worth.price_per_hour * forecast.seconds.value / HOUR,
            shape_seconds=forecast.takes.seconds,
            shape_memory_bytes=forecast.takes.memory_bytes,
            parameters=forecast.takes.parameters,
            reason=reason,
        )


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _needs(items: Sequence[_Item]) -> dict[str, frozenset[str]]:
    """Return, by job id, the ids of those jobs that must have succeeded before it starts.

    A variant waits for its base's measurement under the same protocol, its press for that under the first protocol of the variant.
    """
    measures = [item for item in items if item.job.kind == "measure"]
    measured = {(item.job.base, item.job.protocol): item.id for item in measures if item.job.recipe is None}
    pressed = {item.variant: item.id for item in items if item.job.kind == "press"}
    first = {item.variant: item.job.protocol for item in reversed(measures)}
    needs: dict[str, frozenset[str]] = {}
    for item in items:
        protocol = item.job.protocol or first.get(item.variant)
        before = {measured.get((item.job.base, protocol)), pressed.get(item.variant)} if item.job.recipe else set()
        needs[item.id] = frozenset(job_id for job_id in before if job_id is not None) - {item.id}
    return needs


def _refusal(model: ModelRef, recipe: Recipe, first: str, pair: Sequence[_Item], past: _Past, fits: Fits) -> Refusal | None:
    if first != recipe.name:
        reason = f"it does the same as {first}, under another name"
        return Refusal(repo_id=model.repo_id, sha=model.sha, code="duplicate", reason=reason, recipe=recipe.name)
    if all(map(past.is_done, pair)):
        return None
    misfit = fits(model, recipe)
    return Refusal(repo_id=model.repo_id, sha=model.sha, code="unfit", reason=misfit, recipe=recipe.name) if misfit else None
