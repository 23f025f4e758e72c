"""The variant's perplexity less its base's, paired window by window (Δppl of llama.cpp's `--kl-divergence`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, exp_difference
from runners.observations import Chunk, Windows

TITLE = "Perplexity, less that of the base"
SUMMARY = "difference of the two perplexities, variant less base in the same dtype, its interval paired by window: 0 is no loss"
UNIT = "1"
HIGHER_IS_BETTER = False
PAIRED = True
TOLERANCE = 1e-4


def per_token(chunk: Chunk) -> Any:
    """Return each token's negative log-likelihood under the variant and under the base: two columns."""
    import torch

    return torch.stack((chunk.nll, chunk.base_nll), dim=1)


def summarize(windows: Windows) -> Sequence[Estimate]:
    """Return the difference; its interval is of the differences within the windows, not of two perplexities that lie beside each other."""
    return [exp_difference(windows.means)]
