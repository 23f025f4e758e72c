"""By how much the true token becomes more or less likely, with percentiles (Δp of llama.cpp's `--kl-divergence`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, mean, quantiles
from runners.observations import Chunk, Windows

TITLE = "Change of the true token's probability"
SUMMARY = (
    "mean over tokens of the probability of the token that really follows, variant less base in the same dtype; "
    "percentiles are of single tokens, their intervals by Woodruff's method over windows"
)
UNIT = "1"
HIGHER_IS_BETTER = True
PAIRED = True
TOLERANCE = 1e-3
KEEPS_TOKENS = True


def per_token(chunk: Chunk) -> Any:
    """Return the difference of the probabilities of each true token."""
    return (-chunk.nll).exp() - (-chunk.base_nll).exp()


def summarize(windows: Windows) -> Sequence[Estimate]:
    """Return the mean, then percentiles of single tokens: losses are on the low side, 0 is no change."""
    centre = mean(windows.means, low=-1.0, high=1.0)
    return [centre, *quantiles(windows.tokens, (1, 5, 25, 50, 75, 95, 99))]
