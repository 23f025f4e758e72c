"""Kullback-Leibler divergence of the variant's predictions from its base's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runners.intervals import Estimate, mean
from runners.observations import Chunk

TITLE = "KL divergence from the base"
SUMMARY = "mean over tokens of KL(base || variant) in nats, over the whole vocabulary in float64, base and variant in the same dtype"
UNIT = "nat/token"
HIGHER_IS_BETTER = False
PAIRED = True


def per_token(chunk: Chunk) -> Any:
    """Return KL(base || variant) at each position."""
    return (chunk.base_log_probs.exp() * (chunk.base_log_probs - chunk.log_probs)).sum(-1)


def summarize(windows: Sequence[float]) -> Estimate:
    """Return the mean; a divergence is never under zero, so neither is its interval."""
    return mean(windows, low=0.0)
