"""The memory that the loaded weights take."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "Weights in memory"
SUMMARY = (
    "bytes of all parameters and buffers of the loaded model, memory that several share counted once; "
    "for engines that keep the weights to themselves, the resident memory that loading adds"
)
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.02


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the bytes; nothing where the protocol did not ask."""
    return [observed.weight_bytes] if observed.weight_bytes is not None else []
