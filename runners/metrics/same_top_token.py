"""How often the variant's first choice is its base's first choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, mean
from runners.observations import Chunk, Windows

TITLE = "Same top token as the base"
SUMMARY = "share of positions where the most likely token (of equals the first) is the base's most likely token, both in the same dtype"
UNIT = "1"
HIGHER_IS_BETTER = True
PAIRED = True
TOLERANCE = 1e-3


def per_token(chunk: Chunk) -> Any:
    """Return 1 where the most likely tokens agree and 0 elsewhere."""
    return (chunk.top == chunk.base_top).double()


def summarize(windows: Windows) -> Sequence[Estimate]:
    """Return the mean share, its interval kept within 0 and 1."""
    return [mean(windows.means, low=0.0, high=1.0)]
