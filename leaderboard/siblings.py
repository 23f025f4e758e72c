"""A variant among those of the same base: who stands beside it in its card, and in which order nothing is claimed that was not measured.

All of them are set beside the base under the card's one protocol: numbers of two protocols never stand in one column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from hub.history import BaseRecord, VariantRecord
from leaderboard import notices, stats, text, words
from leaderboard.card_tables import shown
from leaderboard.gate import let_through
from leaderboard.stats import Comparison, Estimate
from leaderboard.text import Markdown, link, markdown

MOST = 12
Row = tuple[str, ...]


def family(record: VariantRecord, siblings: Sequence[VariantRecord]) -> list[VariantRecord]:
    """Return the variants of the same base that passed the gate, this one among them, in a fixed order."""
    others = {other.variant_id: other for other in siblings if other.base == record.base and let_through(other)}
    return sorted({**others, record.variant_id: record}.values(), key=_order)


def offered(members: Sequence[VariantRecord], recommended: Collection[str] | None = None) -> list[VariantRecord]:
    """Return what a card may recommend: those of the members that are not deprecated, and among `recommended` (ids; None: all)."""
    return [item for item in members if not _deprecated(item) and (recommended is None or item.variant_id in recommended)]


def _deprecated(item: VariantRecord) -> bool:
    release = notices.standing(item)
    return release is not None and release.retired_at is not None


def shortlist(record: VariantRecord, base: BaseRecord, members: Sequence[VariantRecord], protocol: str | None) -> list[VariantRecord]:
    """Of a large family, return what no other beats on both size and divergence, spread over the sizes, and the record itself."""
    if len(members) <= MOST:
        return list(members)
    found = [(item, stats.compare(item, base, protocol=protocol)) for item in members if item.recipe.track == "serving"]
    measured = [(beside.size.value, beside.kl_divergence.value, item) for item, beside in found if beside.size and beside.kl_divergence]
    front: list[VariantRecord] = []
    least = math.inf
    for _, divergence, item in sorted(measured, key=lambda entry: entry[:2]):
        if divergence < least:
            least = divergence
            front.append(item)
    step = max(1.0, len(front) / (MOST - 1))
    chosen = {item.variant_id: item for item in (front[int(place * step)] for place in range(min(len(front), MOST - 1)))}
    return sorted({**chosen, record.variant_id: record}.values(), key=_order)


def _order(item: VariantRecord) -> tuple[str, str]:
    return item.recipe.name, item.variant_id


def table(
    record: VariantRecord, base: BaseRecord, members: Sequence[VariantRecord], protocol: str | None, address: Callable[[str], str | None]
) -> list[Row]:
    """Return a row for the base and for each member; `address` gives a variant's page by its id, None where it has none."""
    ref = base.candidate.ref
    rows: list[Row] = [(link(f"{ref.name} (base)", address(ref.repo_id)), "–", "1 ×", "±0", "0", "1 ×", "1 ×")]
    for item in members:
        beside = stats.compare(item, base, protocol=protocol)
        engine = stats.other_engine(item.measurements, base.measurements, protocol)
        label = link(item.recipe.name, address(item.variant_id))
        if item.variant_id == record.variant_id:
            label = Markdown(f"**{markdown(item.recipe.name)}** (this one)")
        rows.append(
            (
                Markdown(f"{label} (deprecated)") if _deprecated(item) else label,
                " → ".join(f"{step.method} {step.scheme}" for step in item.recipe.steps),
                shown(beside.size, text.times),
                shown(beside.perplexity_ratio, text.percent_change),
                shown(beside.kl_divergence, text.uncertain),
                f"{shown(beside.decode, text.times)}{f', in {engine[0]}' if engine and beside.decode else ''}",
                shown(beside.memory, text.times),
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class Rung:
    """With at least so much memory (bytes), what is closest to the base; `variant` None: the base itself."""

    memory: float
    variant: VariantRecord | None
    divergence: Estimate | None


def ladder(base: BaseRecord, members: Sequence[VariantRecord], protocol: str | None) -> list[Rung]:
    """Return which serving variant to take for which memory, least memory first, each surely closer to the base than the one before.

    The memory is the upper end of the interval of the measured peak. What was measured on other hardware than the base is left out, and
    what is dense and as large as the base; where nothing surely needs less than the base, nothing is returned.
    """
    theirs = stats.find(base.measurements, "peak_memory", protocol)
    if theirs is None or protocol is None:
        return []
    whole = Rung(memory=max(theirs.ci_high, theirs.value), variant=None, divergence=None)
    found: list[Rung] = []
    for item in members:
        beside: Comparison = stats.compare(item, base, protocol=protocol)
        mine = stats.find(item.measurements, "peak_memory", protocol)
        if item.recipe.track != "serving" or words.same_work(item.recipe, beside.size):
            continue
        if beside.memory and beside.memory.high < 1 and beside.kl_divergence and mine:
            found.append(Rung(memory=max(mine.ci_high, mine.value), variant=item, divergence=beside.kl_divergence))
    rungs: list[Rung] = []
    for rung in sorted(found, key=lambda rung: (rung.memory, rung.divergence.value if rung.divergence else 0.0)):
        last = rungs[-1].divergence if rungs else None
        if last is None or (rung.divergence and stats.surely_better(rung.divergence, last)):
            rungs.append(rung)
    return [*rungs, whole] if rungs else []


def ladder_rows(
    record: VariantRecord, base: BaseRecord, members: Sequence[VariantRecord], protocol: str | None, address: Callable[[str], str | None]
) -> list[Row]:
    """Return the ladder as rows: free memory, what to take, its divergence from the base."""
    rows: list[Row] = []
    for rung in ladder(base, members, protocol):
        if rung.variant is None:
            name: str = link(f"{base.candidate.ref.name} (base)", address(base.candidate.ref.repo_id))
        elif rung.variant.variant_id == record.variant_id:
            name = Markdown(f"**{markdown(record.recipe.name)}** (this one)")
        else:
            name = link(rung.variant.recipe.name, address(rung.variant.variant_id))
        rows.append((text.size(rung.memory), name, text.uncertain(rung.divergence) if rung.divergence else "0"))
    return rows


def addresses(base: BaseRecord, members: Sequence[VariantRecord], repos: Mapping[str, str], hub_url: str) -> Callable[[str], str | None]:
    """Return the `address` that `table` asks: the base's page, the release's, or where a variant will be released (`repos`, by id)."""
    pages = {base.candidate.ref.repo_id: base.candidate.ref.repo_id, **repos}
    pages |= {item.variant_id: item.release.repo_id for item in members if item.release}
    return lambda key: f"{hub_url}/{pages[key]}" if key in pages else None
