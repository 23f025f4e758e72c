"""The GPU memory that torch holds, in use or not."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "Reserved by torch"
SUMMARY = "the most GPU memory that torch's allocator reserved while a prompt of so many tokens was read in one pass, batch 1"
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.05


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the bytes at each context length; nothing without a GPU."""
    return [point.reserved.at(context=point.context) for point in observed.memory if point.reserved is not None]
