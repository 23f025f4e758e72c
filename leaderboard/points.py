"""Numbers that were taken at points of a curve (batch, context, task, percentile), as rows of tables for the card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hub.domain import Measurement, Scalar
from leaderboard import text
from leaderboard.stats import Estimate

Row = tuple[str, ...]
_SPEED = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token", "time_per_output_token", "decode_speedup")
_MEMORY = ("kv_cache_memory", "activation_memory", "peak_memory")
_TASKS = {
    "accuracy": "accuracy",
    "normalized_accuracy": "accuracy, length-normalized",
    "word_perplexity": "perplexity per word",
    "byte_perplexity": "perplexity per byte",
}


@dataclass(frozen=True, kw_only=True)
class Points:
    """The numbers with conditions of one model, under one protocol or, with None, under all of them."""

    measurements: tuple[Measurement, ...]

    @classmethod
    def of(cls, measurements: Iterable[Measurement], protocol: str | None = None) -> Points:
        """Keep those that were taken at a point, the newest of each."""
        newest = {
            (one.metric, tuple(sorted(one.conditions.items()))): one
            for one in sorted(measurements, key=lambda one: one.measured_at)
            if one.conditions and protocol in (None, one.protocol)
        }
        return cls(measurements=tuple(newest.values()))

    def find(self, metric: str, **conditions: Scalar) -> Measurement | None:
        """Return the number of a metric at exactly this point."""
        return next((one for one in self.measurements if one.metric == metric and one.conditions == conditions), None)

    def places(self, *names: str) -> list[dict[str, Scalar]]:
        """Return the points that are named by exactly these conditions, in the order of their values."""
        found = {tuple(one.conditions[name] for name in names) for one in self.measurements if set(one.conditions) == set(names)}
        ordered = sorted(found, key=lambda values: [(isinstance(value, str), value) for value in values])
        return [dict(zip(names, values, strict=True)) for values in ordered]


def speed_rows(variant: Points) -> list[Row]:
    """Return mode, batch, context, then each measure of speed with its interval; the last is how many times the base's speed."""
    rows: list[Row] = []
    for place in variant.places("mode", "batch", "context"):
        cells = [_shown(variant.find(metric, **place)) for metric in _SPEED]
        rows.append((str(place["mode"]), str(place["batch"]), str(place["context"]), *cells))
    return rows


def memory_rows(variant: Points) -> list[Row]:
    """Return context, KV cache, activations and peak; an estimate is marked so."""
    rows: list[Row] = []
    for place in variant.places("context"):
        rows.append((str(place["context"]), *(_shown(variant.find(metric, **place)) for metric in _MEMORY)))
    return rows


def task_rows(variant: Points, base: Points) -> list[Row]:
    """Return task, metric, the variant's number and the base's."""
    rows: list[Row] = []
    for place in variant.places("task"):
        for metric, name in _TASKS.items():
            if mine := variant.find(metric, **place):
                rows.append((str(place["task"]), name, _shown(mine), _shown(base.find(metric, **place))))
    return rows


def percentile_words(points: Points, metric: str, wanted: Sequence[float] = (50, 90, 99, 99.9)) -> str:
    """Return how a metric spreads over single tokens, empty where that was not kept: `half of all tokens below 0.01, …`."""
    found = [(wish, points.find(metric, percentile=wish)) for wish in wanted]
    parts = [f"{wish:g} %: {text.quantity(Estimate.of(one), one.unit)}" for wish, one in found if one]
    return "; ".join(parts)


def _shown(one: Measurement | None) -> str:
    if one is None:
        return "–"
    words = text.quantity(Estimate.of(one), one.unit)
    return f"{words}, estimated" if one.basis == "estimated" else words
