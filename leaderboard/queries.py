"""What the site shows, read from the store once: base models with their ranked rows, choices, jobs, protocols and environments."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from hub.codec import content_id
from hub.domain import Environment, Measurement, Recipe, Refusal
from hub.history import BaseRecord, JobRecord, JobState, UnreadableJob, VariantRecord
from hub.protocol import Protocol
from hub.store import Store
from leaderboard.choices import Choice, choose
from leaderboard.families import FAMILIES, TITLES, family
from leaderboard.looks import Look, lasts
from leaderboard.rows import Row, base_row, ranked, safe_name, variant_row
from leaderboard.stats import QUALITY, Estimate, headlines, pareto_front

T = TypeVar("T")
Measured = TypeVar("Measured", BaseRecord, VariantRecord)


MOST_ROWS = 16
"""The most rows of one base model that the front page shows; its own page has all of them."""

STATES: tuple[JobState, ...] = ("failed", "running", "planned", "cancelled", "done")
"""The states of jobs in the order in which the Jobs page shows them."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A base model's rows under one protocol, the only rows whose quality may be ordered; `protocol` None: not measured yet."""

    protocol: str | None
    rows: tuple[Row, ...]
    choices: tuple[Choice, ...]

    @property
    def anchor(self) -> str:
        """The id of the group on its page."""
        return f"protocol-{safe_name(self.protocol or 'none')}"

    @property
    def families(self) -> list[tuple[str, str]]:
        """The families of the rows' recipes, by name and title, in their fixed order."""
        present = {row.family for row in self.rows}
        return [(name, TITLES[name]) for name in FAMILIES if name in present]

    @property
    def best(self) -> tuple[Row, ...]:
        """All rows where they are few; else the base, the answers to every aim, and what no row beats on size and quality by value."""
        if len(self.rows) <= MOST_ROWS:
            return self.rows
        chosen = {choice.row.anchor for choice in self.choices}
        least = math.inf
        for row in sorted((row for row in self.rows if row.bytes and row.loss), key=lambda row: (row.bytes, row.loss and row.loss.value)):
            if row.loss and row.loss.value < least:
                least = row.loss.value
                chosen.add(row.anchor)
        return tuple(row for row in self.rows if row.is_base or row.anchor in chosen)


@dataclass(frozen=True, kw_only=True)
class BasePage:
    """A base model, its variants, and its rows by protocol, best-sampled protocol first."""

    record: BaseRecord
    slug: str
    variants: tuple[VariantRecord, ...]
    groups: tuple[Group, ...]
    refusals: tuple[Refusal, ...]

    @property
    def refused(self) -> list[tuple[str, list[str]]]:
        """Why recipes do not fit: each reason once, with the recipes that it holds for."""
        return reasons(self.refusals)

    @property
    def by_family(self) -> list[tuple[str, list[VariantRecord]]]:
        """The variants under their families' titles, each in the order of the rows."""
        ordered = self.ordered
        found = [(TITLES[name], [variant for variant in ordered if family(variant.recipe) == name]) for name in FAMILIES]
        return [(title, variants) for title, variants in found if variants]

    @property
    def main(self) -> Group:
        """The group that the front page shows."""
        return self.groups[0]

    @property
    def ordered(self) -> list[VariantRecord]:
        """The variants in the order of their rows."""
        order = {row.variant_id: index for index, row in enumerate(row for group in self.groups for row in group.rows)}
        return sorted(self.variants, key=lambda variant: order[variant.variant_id])

    def row(self, variant_id: str) -> Row:
        """Return the variant's row under the best-sampled protocol that it was measured with."""
        return next(row for group in self.groups for row in group.rows if row.variant_id == variant_id)


@dataclass(frozen=True, kw_only=True)
class RecipePage:
    """A recipe with its row on every base model, best-sampled protocol each."""

    recipe: Recipe
    rows: tuple[tuple[BasePage, Row], ...]

    @property
    def family(self) -> str:
        """The family that the recipe is listed under."""
        return family(self.recipe)


@dataclass(frozen=True, kw_only=True)
class Board:
    """Everything the site shows; `as_of` is the time of the newest thing in it, empty when there is nothing."""

    as_of: str
    pages: tuple[BasePage, ...]
    recipes: tuple[RecipePage, ...]
    jobs: Mapping[str, tuple[JobRecord, ...]]
    unreadable: tuple[UnreadableJob, ...]
    refusals: tuple[Refusal, ...]
    protocols: tuple[Protocol, ...]
    environments: tuple[Environment, ...]

    @property
    def refused(self) -> list[tuple[str, str, str, list[str]]]:
        """What is refused: model, code, reason and recipes, each reason once a model."""
        found: dict[tuple[str, str], list[Refusal]] = {}
        for refusal in self.refusals:
            found.setdefault((refusal.repo_id, refusal.code), []).append(refusal)
        return [(repo, code, reason, recipes) for (repo, code), group in found.items() for reason, recipes in reasons(group)]

    @property
    def states(self) -> Counter[str]:
        """How many variants are in which state, whatever protocol they were measured with."""
        return Counter(page.row(variant.variant_id).state.code for page in self.pages for variant in page.variants)

    @property
    def shortened(self) -> bool:
        """Whether the front page leaves rows to the models' own pages."""
        return any(len(page.main.best) < len(page.main.rows) for page in self.pages)

    @property
    def families(self) -> list[tuple[str, str]]:
        """The families of all variants' recipes, by name and title."""
        present = {entry.family for entry in self.recipes}
        return [(name, TITLES[name]) for name in FAMILIES if name in present]

    @property
    def recipes_by_family(self) -> list[tuple[str, list[RecipePage]]]:
        """The recipes under their families' titles."""
        found = [(TITLES[name], [entry for entry in self.recipes if entry.family == name]) for name in FAMILIES]
        return [(title, entries) for title, entries in found if entries]

    @property
    def measurements(self) -> int:
        """How many numbers the database holds, points of curves aside."""
        return sum(len(headlines(_measurements(page.record, page.variants))) for page in self.pages)


def reasons(refusals: Iterable[Refusal]) -> list[tuple[str, list[str]]]:
    """Return each reason once with the recipes (`all`: the model itself) that were refused for it."""
    found: dict[str, list[str]] = {}
    for refusal in refusals:
        found.setdefault(refusal.reason, []).append(refusal.recipe or "all")
    return list(found.items())


def read_board(store: Store) -> Board:
    """Read the whole board from the store."""
    bases, variants, refusals = store.bases(), store.variants(), store.refusals()
    jobs, unreadable = store.jobs_apart()
    slugs: set[str] = set()
    looks = lasts(store, variants)
    pages = tuple(
        _base_page(base, variants, refusals, slugs, looks) for base in sorted(bases, key=lambda b: (b.rank, b.candidate.ref.repo_id))
    )
    return Board(
        as_of=max(_times(bases, variants, jobs), default=""),
        pages=pages,
        recipes=_recipe_pages(pages),
        jobs={state: tuple(j for j in jobs if j.state == state) for state in STATES},
        unreadable=tuple(unreadable),
        refusals=tuple(refusals),
        protocols=_unique(record.job.protocol for record in jobs),
        environments=_unique(place for one in (*bases, *variants) for place in (one.environment, *one.environments.values())),
    )


def _slug(base: BaseRecord, taken: set[str]) -> str:
    """Return `owner--name`; a second commit of the same repository gets its short sha as well."""
    owner, _, name = base.candidate.ref.repo_id.rpartition("/")
    plain = f"{owner}--{name}" if owner and "--" not in owner + name and "/" not in owner else base.candidate.ref.repo_id
    slug = safe_name(plain)
    if slug.lower() in taken:
        slug = f"{slug}--{safe_name(base.candidate.ref.sha[:8])}"
    taken.add(slug.lower())
    return slug


def _base_page(
    base: BaseRecord, variants: Sequence[VariantRecord], refusals: Iterable[Refusal], slugs: set[str], looks: Mapping[str, Look]
) -> BasePage:
    mine = tuple(v for v in variants if v.base == base.candidate.ref)
    slug = _slug(base, slugs)
    return BasePage(
        record=base,
        slug=slug,
        variants=mine,
        groups=tuple(_group(base, mine, protocol, slug, looks, main=index == 0) for index, protocol in enumerate(_protocols(base, mine))),
        refusals=tuple(r for r in refusals if r.repo_id == base.candidate.ref.repo_id and r.recipe),
    )


def _protocols(base: BaseRecord, variants: Sequence[VariantRecord]) -> list[str | None]:
    """Return the protocols that gave any headline number, that with the most samples of quality first; `[None]` when none did.

    Quality comes first because rows are ranked by it; a run of speed may have more repeats than a text has windows.
    """
    samples: defaultdict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for measurement in headlines(_measurements(base, variants)):
        of_quality, of_any = samples[measurement.protocol]
        taken = measurement.samples if measurement.metric in QUALITY else 0
        samples[measurement.protocol] = (max(of_quality, taken), max(of_any, measurement.samples))
    names = sorted(samples, key=lambda name: (*(-count for count in samples[name]), name))
    return [*names] or [None]


def _measurements(base: BaseRecord, variants: Sequence[VariantRecord]) -> list[Measurement]:
    return [*base.measurements, *(m for v in variants for m in v.measurements)]


def _group(
    base: BaseRecord, variants: Sequence[VariantRecord], protocol: str | None, slug: str, looks: Mapping[str, Look], *, main: bool
) -> Group:
    here = _under(base, protocol)
    rows = [base_row(here, protocol, slug)]
    for variant in variants:
        if protocol in {m.protocol for m in headlines(variant.measurements)} or (main and not headlines(variant.measurements)):
            rows.append(variant_row(_under(variant, protocol), here, protocol, slug, looks.get(variant.variant_id)))
    rows = _with_front(ranked(rows))
    return Group(protocol=protocol, rows=tuple(rows), choices=choose(rows))


def _under(record: Measured, protocol: str | None) -> Measured:
    """Return a base or a variant with the numbers of one protocol alone, and where those were taken."""
    measured = tuple(m for m in record.measurements if m.protocol == protocol)
    return replace(record, measurements=measured, environment=record.environment_under(protocol))


def _with_front(rows: Sequence[Row]) -> list[Row]:
    """Mark the rows that no other row beats on size and quality."""
    points = [(row, (Estimate(value=row.bytes, low=row.bytes, high=row.bytes), row.loss)) for row in rows if row.bytes and row.loss]
    front = {points[index][0].anchor for index in pareto_front([point for _, point in points])}
    return [replace(row, on_front=row.anchor in front) for row in rows]


def _recipe_pages(pages: Iterable[BasePage]) -> tuple[RecipePage, ...]:
    """Gather recipes by what they do; the same name with other steps is another recipe."""
    recipes: dict[str, tuple[Recipe, list[tuple[BasePage, Row]]]] = {}
    for page in pages:
        for variant in page.variants:
            _, rows = recipes.setdefault(
                content_id((variant.recipe.name, variant.recipe.format, variant.recipe.steps)), (variant.recipe, [])
            )
            rows.append((page, page.row(variant.variant_id)))
    ordered = sorted(recipes.values(), key=lambda entry: (entry[0].track != "serving", entry[0].name))
    return tuple(RecipePage(recipe=recipe, rows=tuple(rows)) for recipe, rows in ordered)


def _times(bases: Iterable[BaseRecord], variants: Iterable[VariantRecord], jobs: Iterable[JobRecord]) -> Iterable[str]:
    yield from (m.measured_at for b in bases for m in b.measurements)
    yield from (job.updated_at for job in jobs)
    for variant in variants:
        yield from (m.measured_at for m in variant.measurements)
        yield from (verdict.judged_at for verdict in variant.verdicts)
        if variant.release:
            yield from (variant.release.released_at, variant.release.verified_at or "")


def _unique(values: Iterable[T | None]) -> tuple[T, ...]:
    """Return the values without repetition, in order of first appearance."""
    return tuple({content_id(value): value for value in values if value is not None}.values())
