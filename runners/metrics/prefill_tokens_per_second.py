"""Speed of reading a prompt."""

from __future__ import annotations

from runners.intervals import Estimate, centre, inverse
from runners.observations import Observed

TITLE = "Prefill speed"
SUMMARY = "prompt tokens divided by the median time of one forward pass over the prompt, batch 1, after warm-up"
UNIT = "token/s"
HIGHER_IS_BETTER = True
PAIRED = False


def estimate(observed: Observed) -> Estimate:
    """Return tokens per second from the median time."""
    return inverse(centre(observed.prefill_seconds), observed.prompt_tokens)
