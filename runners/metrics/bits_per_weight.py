"""Bits stored for each weight, all overheads counted."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate, exact
from runners.observations import Observed

TITLE = "Bits per weight"
SUMMARY = "eight times the bytes of all stored tensors (scales and unpacked layers too), divided by the parameters they stand for"
UNIT = "bit"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.0


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the exact ratio; nothing where the protocol has no section on memory."""
    return [exact(8 * observed.tensor_bytes / observed.parameters)] if observed.parameters else []
