"""The memory that reading a prompt takes beside weights and cache."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "Activations"
SUMMARY = (
    "the most memory in use while a prompt of so many tokens is read in one pass, less weights and KV cache, batch 1: "
    "resident on a CPU (without the gaps that the C library leaves between blocks), allocated by torch on CUDA; "
    "contexts that were not run by a line or parabola through those that were"
)
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.1


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the bytes at each context length."""
    return [point.activations.at(context=point.context) for point in observed.memory if point.activations is not None]
