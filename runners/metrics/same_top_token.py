"""How often the variant's first choice is its base's first choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, mean
from runners.observations import Chunk

TITLE = "Same top token as the base"
SUMMARY = "share of positions where the most likely token is the base's most likely token, base and variant in the same dtype"
UNIT = "1"
HIGHER_IS_BETTER = True
PAIRED = True


def per_token(chunk: Chunk) -> Any:
    """Return 1 where the most likely tokens agree and 0 elsewhere."""
    return (chunk.logits.argmax(-1) == chunk.base_logits.argmax(-1)).double()


def summarize(windows: Sequence[float]) -> Estimate:
    """Return the mean share, its interval kept within 0 and 1."""
    return mean(windows, low=0.0, high=1.0)
