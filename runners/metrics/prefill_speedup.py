"""How much faster than its base a variant is at reading the prompt; below 1 it is slower."""

from __future__ import annotations

from runners.intervals import Estimate, centre
from runners.observations import Observed

TITLE = "Prefill speed, as a ratio to the base"
SUMMARY = "the base's time divided by the variant's, median over pairs of runs that alternate in one process, batch 1, after warm-up"
UNIT = "1"
HIGHER_IS_BETTER = True
PAIRED = True


def estimate(observed: Observed) -> Estimate:
    """Return the median ratio; pairing takes out what the machine does to both."""
    return centre(observed.prefill_speedups, of="pairs of runs")
