"""The memory that the keys and values of the tokens read take."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "KV cache"
SUMMARY = (
    "bytes of the cache after reading so many tokens, batch 1; where the engine keeps it to itself or the context was not run, "
    "layers × KV heads × head dimension × 2 × bytes × tokens"
)
UNIT = "B"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.0


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the bytes at each context length."""
    return [point.kv_cache.at(context=point.context) for point in observed.memory if point.kv_cache is not None]
