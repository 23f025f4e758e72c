"""What the metrics of speed share: one estimate a point of the curve, the headline's first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import quantiles

from runners.intervals import Estimate, centre
from runners.observations import Run, SpeedPoint

Of = Callable[[SpeedPoint], Sequence[float]]


def along(points: Sequence[SpeedPoint], samples: Of, *, spread: Of | None = None, of: str = "runs") -> list[Estimate]:
    """Return for each point the median of its samples, with the interval of order statistics and percentiles of the samples.

    `spread`: what the percentiles are taken over instead. A point without samples gives none.
    """
    ordered = sorted(points, key=lambda point: not point.headline)
    found = ((point, samples(point), (spread or samples)(point)) for point in ordered)
    return [
        replace(centre(values, of=of), conditions=point.conditions, percentiles=percentiles(wide))
        for point, values, wide in found
        if values
    ]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Return p5, p50, p95 and p99, interpolated linearly between neighbours; none of a single value."""
    if len(values) < 2:
        return {}
    cuts = quantiles(values, n=100, method="inclusive")
    return {f"p{percent}": cuts[percent - 1] for percent in (5, 50, 95, 99)}


def pairs(point: SpeedPoint, seconds: Callable[[Run], float]) -> list[float]:
    """Return the base's seconds over the model's, by neighbouring runs, where both took any."""
    times = ((seconds(run), seconds(base)) for run, base in zip(point.runs, point.base_runs, strict=False))
    return [base / own for own, base in times if own > 0 and base > 0]
