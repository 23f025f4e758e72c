"""Numbers taken at points of a curve (mode, batch and context; task; percentile), as rows of the card's tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hub.codec import to_json
from hub.domain import Measurement, Scalar
from leaderboard import stats, text
from leaderboard.stats import Estimate

Row = tuple[str, ...]
SPEED = ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token", "time_per_output_token", "decode_speedup")
MEMORY = ("kv_cache_memory", "activation_memory", "peak_memory")
TASKS = {
    "accuracy": "accuracy",
    "normalized_accuracy": "accuracy by length-normalized likelihood",
    "word_perplexity": "perplexity per word",
    "byte_perplexity": "perplexity per byte",
    "target_perplexity": "perplexity of the answer",
}


def speed_rows(measurements: Sequence[Measurement], protocol: str | None) -> list[Row]:
    """Return mode, batch and context of each point, then the numbers of `SPEED` there."""
    return _rows(measurements, SPEED, protocol, ("mode", "batch", "context"))


def memory_rows(measurements: Sequence[Measurement], base: Sequence[Measurement], protocol: str | None) -> list[Row]:
    """Return the context length of each point, the numbers of `MEMORY` there, and the base's peak; an estimate is marked so."""
    theirs = _by_place(stats.curve(base, MEMORY[-1], protocol))
    rows = _rows(measurements, MEMORY, protocol, ("context",))
    return [(f"{int(row[0]):,}", *row[1:], _shown(theirs.get(_key({"context": int(row[0])})))) for row in rows]


def task_rows(measurements: Sequence[Measurement], base: Sequence[Measurement]) -> list[Row]:
    """Return task, what is counted, the variant's number, the base's, and the protocol, for every protocol with tasks."""
    rows: list[Row] = []
    for metric, name in TASKS.items():
        for protocol in sorted({one.protocol for one in measurements if one.metric == metric}):
            theirs = _by_place(stats.curve(base, metric, protocol))
            for one in stats.curve(measurements, metric, protocol):
                rows.append((str(one.conditions["task"]), name, _shown(one), _shown(theirs.get(_key(one.conditions))), protocol))
    return sorted(rows)


def percentile_words(measurements: Sequence[Measurement], metric: str, protocol: str | None) -> str:
    """Return how a metric spreads over single tokens: `50 %: 0.004 …; 99 %: …`; empty where that is not known."""
    points = stats.curve(measurements, metric, protocol)
    return "; ".join(f"{one.conditions['percentile']:g} %: {_shown(one)}" for one in points if "percentile" in one.conditions)


def _rows(measurements: Sequence[Measurement], metrics: Sequence[str], protocol: str | None, names: tuple[str, ...]) -> list[Row]:
    curves = [_by_place(stats.curve(measurements, metric, protocol)) for metric in metrics]
    places = {key: one.conditions for curve in curves for key, one in curve.items() if set(one.conditions) == set(names)}
    return [
        (*(str(conditions[name]) for name in names), *(_shown(curve.get(key)) for curve in curves)) for key, conditions in places.items()
    ]


def _by_place(points: Iterable[Measurement]) -> dict[str, Measurement]:
    return {_key(one.conditions): one for one in points}


def _key(conditions: Mapping[str, Scalar]) -> str:
    return to_json(conditions)


def _shown(one: Measurement | None) -> str:
    if one is None:
        return "–"
    words = text.quantity(Estimate.of(one), one.unit)
    return f"{words}, estimated" if one.basis == "estimated" else words
