"""How long each further token takes."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.metrics._along import along
from runners.observations import Observed, SpeedPoint

TITLE = "Time per output token"
SUMMARY = (
    "mean seconds from one token of a sequence to its next, after the first, by run; median of the runs, after warm-up; "
    "percentiles are of all single tokens"
)
UNIT = "s"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.3


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the median time at each point of the curve; the interval is over runs, since tokens of one run depend on each other."""
    return along(observed.speed, _means, spread=_tokens)


def _means(point: SpeedPoint) -> list[float]:
    return [run.decode_seconds / len(run.token_seconds) for run in point.runs if run.token_seconds]


def _tokens(point: SpeedPoint) -> list[float]:
    return [seconds for run in point.runs for seconds in run.token_seconds]
