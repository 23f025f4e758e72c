"""Speed of writing, one token at a time."""

from __future__ import annotations

from runners.intervals import Estimate, centre, inverse
from runners.observations import Observed

TITLE = "Decode speed"
SUMMARY = "new tokens divided by the median time of greedy decoding after the prompt, batch 1, with a key-value cache, after warm-up"
UNIT = "token/s"
HIGHER_IS_BETTER = True
PAIRED = False


def estimate(observed: Observed) -> Estimate:
    """Return tokens per second from the median time."""
    return inverse(centre(observed.decode_seconds), observed.new_tokens)
