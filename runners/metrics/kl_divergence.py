"""Kullback-Leibler divergence of the variant's predictions from its base's, with percentiles (llama.cpp's `--kl-divergence`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, positive_mean, quantiles
from runners.observations import Chunk, Windows

TITLE = "KL divergence from the base"
SUMMARY = (
    "KL(base || variant) in nats over the whole vocabulary in float64, base and variant in the same dtype: mean over all tokens; "
    "percentiles are of single tokens, their intervals by Woodruff's method over windows"
)
UNIT = "nat/token"
HIGHER_IS_BETTER = False
PAIRED = True
TOLERANCE = 1e-4
KEEPS_TOKENS = True


def per_token(chunk: Chunk) -> Any:
    """Return KL(base || variant) at each position."""
    return chunk.divergence


def summarize(windows: Windows) -> Sequence[Estimate]:
    """Return the mean, then percentiles of single tokens; the largest one has no interval, so it is not told."""
    return [positive_mean(windows.means), *quantiles(windows.tokens, (50, 90, 95, 99, 99.9))]
