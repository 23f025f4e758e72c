"""The memory that loading and running take."""

from __future__ import annotations

from runners.intervals import Estimate, centre
from runners.observations import Observed

TITLE = "Peak memory"
SUMMARY = (
    "on CUDA the most memory allocated on the device, on a CPU the most by which resident memory grows, "
    "from before loading to the end of one prompt and its decoding; median of the loads"
)
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False


def estimate(observed: Observed) -> Estimate:
    """Return the median over the loads."""
    return centre(observed.peak_bytes, of="loads")
