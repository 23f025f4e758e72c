"""Perplexity of held-out text, by the protocol of the quantization papers (GPTQ, arXiv 2210.17323)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, exp_mean
from runners.observations import Chunk, Windows

TITLE = "Perplexity"
SUMMARY = "exp of the mean negative log-likelihood per token in float64, non-overlapping windows; a window's first token is context only"
UNIT = "1"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 1e-5


def per_token(chunk: Chunk) -> Any:
    """Return each token's negative log-likelihood in nats."""
    return chunk.nll


def summarize(windows: Windows) -> Sequence[Estimate]:
    """Return exp of the mean; all windows are equally long, so the mean of window means is the mean over tokens."""
    return [exp_mean(windows.means)]
