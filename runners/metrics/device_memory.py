"""The memory in use on the whole GPU, as the driver counts it."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "GPU memory in use"
SUMMARY = "GPU memory in use by everybody, as the driver (NVML) counts it, after a prompt of so many tokens was read in one pass, batch 1"
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.05


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the bytes at each context length; nothing without a GPU, or where the driver does not tell."""
    return [point.device.at(context=point.context) for point in observed.memory if point.device is not None]
