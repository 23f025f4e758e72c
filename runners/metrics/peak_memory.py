"""The memory that loading and running take."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate, centre, widened
from runners.observations import Observed

TITLE = "Peak memory"
SUMMARY = (
    "on CUDA the most memory allocated on the device, on a CPU the most by which resident memory grows, from before loading to the end "
    "of one prompt and its decoding, median of the loads; at a context length the weights, and the most that reading so many tokens in "
    "one pass adds to them, batch 1, without the gaps that an allocator leaves between blocks"
)
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.1


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the median over the loads, then the peak at each context length."""
    why = f"the {observed.peak_grain >> 20} MiB by which processes differ"
    loads = [widened(centre(observed.peak_bytes, of="loads"), observed.peak_grain, why)] if observed.peak_bytes else []
    return loads + [point.peak.at(context=point.context) for point in observed.memory if point.peak is not None]
