"""How long a user waits for the first token."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.metrics._along import along
from runners.observations import Observed

TITLE = "Time to first token"
SUMMARY = "seconds of one pass over the prompts of a batch, the choice of the first tokens included, median of the runs, after warm-up"
UNIT = "s"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.3


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the median time at each point of the curve."""
    return along(observed.speed, lambda point: [run.prefill_seconds for run in point.runs])
