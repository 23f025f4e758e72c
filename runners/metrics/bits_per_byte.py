"""Bits that the model needs for a byte of the text: a loss that does not depend on the tokenizer (The Pile, arXiv 2101.00027)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, ratio
from runners.observations import Chunk, Windows

TITLE = "Bits per byte"
SUMMARY = "negative log-likelihood of all scored tokens in bits, divided by the UTF-8 bytes that they stand for"
UNIT = "bit/byte"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 1e-5


def per_token(chunk: Chunk) -> Any:
    """Return each token's negative log-likelihood in bits."""
    return chunk.nll / math.log(2)


def summarize(windows: Windows) -> Sequence[Estimate]:
    """Return the ratio of sums; nothing where the tokenizer does not tell which bytes a token stands for."""
    bits = [mean * count for mean, count in zip(windows.means, windows.scored, strict=True)]
    return [ratio(bits, windows.bytes)] if windows.bytes else []
