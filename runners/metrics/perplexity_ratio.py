"""The variant's perplexity divided by its base's, paired window by window (as llama.cpp's `--kl-divergence` reports it)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, exp_mean
from runners.observations import Chunk, Windows

TITLE = "Perplexity, as a ratio to the base"
SUMMARY = "exp of the mean difference of negative log-likelihoods, variant less base in the same dtype, paired by window: 1 is no loss"
UNIT = "1"
HIGHER_IS_BETTER = False
PAIRED = True
TOLERANCE = 1e-5


def per_token(chunk: Chunk) -> Any:
    """Return by how many nats each token became less likely than under the base."""
    return chunk.nll - chunk.base_nll


def summarize(windows: Windows) -> Sequence[Estimate]:
    """Return exp of the mean difference; pairing takes out what a text's difficulty adds to both."""
    return [exp_mean(windows.means)]
