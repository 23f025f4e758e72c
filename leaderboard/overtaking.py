"""At which batch the base overtakes a variant: told from the curve of decode speeds taken in turns, and no more than it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hub.domain import Measurement
from hub.protocol import Speed
from leaderboard import stats
from leaderboard.stats import Estimate
from leaderboard.text import Markdown, code, times

_PLACE = {"mode", "batch", "context"}


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A decode speed as a ratio to the base's, both timed in turns, at a batch."""

    batch: int
    ratio: Estimate

    @property
    def behind(self) -> bool:
        """Whether the base is surely faster."""
        return self.ratio.high < 1

    @property
    def ahead(self) -> bool:
        """Whether the variant is surely faster."""
        return self.ratio.low > 1


def sentences(measurements: Sequence[Measurement], protocol: str | None, speed: Speed | None) -> list[Markdown]:
    """Return a sentence for each mode and context of the curve; those that say the same are one. Nothing where nothing was timed in turns.

    `speed` is the protocol's section, which says at which batch, context and mode the headline number was taken.
    """
    told: dict[str, list[tuple[str, int]]] = {}
    for place, points in _curves(measurements, protocol, speed).items():
        told.setdefault(_sentence(points), []).append(place)
    return [Markdown(f"{_where(places)}: {sentence}") for sentence, places in told.items()]


def _curves(measurements: Sequence[Measurement], protocol: str | None, speed: Speed | None) -> dict[tuple[str, int], list[Timed]]:
    """Return the points by mode and context, smallest batch first."""
    found: dict[tuple[str, int], dict[int, Timed]] = {}
    for one in stats.curve(measurements, "decode_speedup", protocol):
        if set(one.conditions) == _PLACE:
            batch, place = int(one.conditions["batch"]), (str(one.conditions["mode"]), int(one.conditions["context"]))
            found.setdefault(place, {})[batch] = Timed(batch=batch, ratio=Estimate.of(one))
    headline = stats.find(measurements, "decode_speedup", protocol) if protocol else None
    if headline and speed:
        place = speed.modes[0], speed.contexts[0]
        found.setdefault(place, {})[speed.batches[0]] = Timed(batch=speed.batches[0], ratio=Estimate.of(headline))
    return {place: [by_batch[batch] for batch in sorted(by_batch)] for place, by_batch in sorted(found.items())}


def _sentence(points: Sequence[Timed]) -> str:
    measured = _listed([point.batch for point in points])
    behind = [point for point in points if point.behind]
    ahead = [point for point in points if point.ahead]
    if not behind:
        return f"the base does not overtake within the batches measured ({measured})."
    if len(behind) == len(points):
        return f"the base is faster at every batch measured ({measured})."
    first = behind[0]
    if any(point.batch > first.batch for point in ahead):
        fast, slow = _listed([point.batch for point in ahead]), _listed([point.batch for point in behind])
        return f"the base is faster at batch {slow}, the variant at batch {fast} (measured: {measured})."
    last = max((point for point in ahead if point.batch < first.batch), key=lambda point: point.batch, default=None)
    before = (
        f"; at batch {last.batch} the variant is ahead ({times(last.ratio)})" if last else "; at smaller ones no difference can be told"
    )
    return f"**the base overtakes at batch {first.batch}** ({times(first.ratio)}) of those measured ({measured}){before}."


def _listed(batches: Sequence[int]) -> str:
    return ", ".join(map(str, batches))


def _where(places: Sequence[tuple[str, int]]) -> str:
    """Return mode and contexts: `eager, contexts 256 and 2048`; several modes are divided by semicolons."""
    by_mode: dict[str, list[str]] = {}
    for mode, context in places:
        by_mode.setdefault(mode, []).append(f"{context:,}")
    parts = (f"mode {code(mode)}, context {' and '.join(contexts)}" for mode, contexts in by_mode.items())
    where = "; ".join(parts)
    return f"{where[:1].upper()}{where[1:]}"
