"""Speed of reading a prompt."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.metrics._along import along
from runners.observations import Observed

TITLE = "Prefill speed"
SUMMARY = "prompt tokens of a batch divided by the time of the pass over them, up to the first new token, median of the runs, after warm-up"
UNIT = "token/s"
HIGHER_IS_BETTER = True
PAIRED = False
TOLERANCE = 0.3


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return tokens per second at each point of the curve."""
    return along(
        observed.speed, lambda point: [point.batch * point.context / run.prefill_seconds for run in point.runs if run.prefill_seconds > 0]
    )
