"""Bytes that a checkpoint takes on disk."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate, exact
from runners.observations import Observed

TITLE = "Size on disk"
SUMMARY = "bytes of weights, configuration and tokenizer; documentation, licences and the manifest are not counted"
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.0


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the exact count; nothing where the protocol has no section on memory."""
    return [exact(float(observed.disk_bytes))] if observed.disk_bytes else []
