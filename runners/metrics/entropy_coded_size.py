"""Bytes of all tensors after Huffman coding: what Deep Compression's last stage would store."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate, exact
from runners.observations import Observed

TITLE = "Entropy-coded size"
SUMMARY = "bytes of all stored tensors after Huffman coding, each by itself, with code tables and headers; no engine runs them coded"
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.0


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the exact count; nothing where the protocol has no section on memory."""
    return [exact(float(observed.coded_bytes))] if observed.coded_bytes else []
