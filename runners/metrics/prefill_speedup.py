"""How much faster than its base a variant is at reading the prompt; below 1 it is slower."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.metrics._along import along, pairs
from runners.observations import Observed

TITLE = "Prefill speed, as a ratio to the base"
SUMMARY = "the base's time divided by the variant's, median over pairs of neighbouring runs that take turns in one process, after warm-up"
UNIT = "1"
HIGHER_IS_BETTER = True
PAIRED = True
TOLERANCE = 0.15


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the median ratio at each point of the curve; pairing takes out what the machine does to both."""
    return along(observed.speed, lambda point: pairs(point, lambda run: run.prefill_seconds), of="pairs of runs")
