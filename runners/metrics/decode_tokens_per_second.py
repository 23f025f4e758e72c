"""Speed of writing, one token of each sequence at a time."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.metrics._along import along
from runners.observations import Observed

TITLE = "Decode speed"
SUMMARY = (
    "tokens of all sequences of a batch after their first ones, divided by the time of greedy decoding with a key-value cache, "
    "median of the runs, after warm-up"
)
UNIT = "token/s"
HIGHER_IS_BETTER = True
PAIRED = False
TOLERANCE = 0.3


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return tokens per second at each point of the curve."""
    return along(
        observed.speed,
        lambda point: [point.batch * len(run.token_seconds) / run.decode_seconds for run in point.runs if run.decode_seconds > 0],
    )
