"""The GPU memory of the whole process, as the driver counts it."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "GPU memory of the process"
SUMMARY = (
    "GPU memory that the driver (NVML) counts for this process after a prompt of so many tokens was read in one pass, batch 1: "
    "torch's, the CUDA context and what libraries took"
)
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.05


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the bytes at each context length; nothing without a GPU, or where the driver does not tell."""
    return [point.process.at(context=point.context) for point in observed.memory if point.process is not None]
