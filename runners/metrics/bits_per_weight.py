"""Bits stored for each weight, all overheads counted."""

from __future__ import annotations

from runners.intervals import Estimate, exact
from runners.observations import Observed

TITLE = "Bits per weight"
SUMMARY = "eight times the bytes of all stored tensors (scales and unpacked layers too), divided by the parameters they stand for"
UNIT = "bit"
HIGHER_IS_BETTER = False
PAIRED = False


def estimate(observed: Observed) -> Estimate:
    """Return the exact ratio."""
    return exact(8 * observed.tensor_bytes / observed.parameters)
