"""How far the probability of the true token moves: RMS Δp of llama.cpp's `--kl-divergence`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, root_mean
from runners.observations import Chunk, Windows

TITLE = "Change of the true token's probability, root mean square"
SUMMARY = "root of the mean squared difference of the probability of the token that really follows, variant less base in the same dtype"
UNIT = "1"
HIGHER_IS_BETTER = False
PAIRED = True
TOLERANCE = 1e-4


def per_token(chunk: Chunk) -> Any:
    """Return the squared difference of the probabilities of each true token."""
    return ((-chunk.nll).exp() - (-chunk.base_nll).exp()).square()


def summarize(windows: Windows) -> Sequence[Estimate]:
    """Return the root of the mean square."""
    return [root_mean(windows.means)]
