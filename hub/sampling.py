"""How much a sample tells of a mean: Student's t, and how many independent ones a series of windows is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

LEVEL = 0.95
_TELLING = 16  # windows


def student_t(freedom: float, level: float = LEVEL) -> float:
    """Return the two-sided quantile of Student's t for so many degrees of freedom."""
    from scipy.special import stdtrit

    if freedom < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, not {freedom}")
    return float(stdtrit(freedom, (1 + level) / 2))


def independent(samples: Sequence[float]) -> float:
    """Return how many independent samples tell as much of the mean as these windows, which stand in their text's order.

    An article lasts longer than a window, so neighbours go together: on WikiText-2 in windows of 512 tokens, a small model's losses with
    0.43, those eight windows apart still with 0.12. n is divided by 1 + 2 · (r1 + r2 + ...), the autocorrelations up to the first that is
    not positive (after Geyer, Statistical Science 7, 1992), each freed of its bias of 1/n. Independent windows lose some percent to this.
    On windows that go together like WikiText-2's, intervals of 95 % cover 79 % with 40 windows and 89 % with 140 (54 % without).
    Fewer than 16 windows do not tell how they go together and are taken as independent.
    """
    count, middle = len(samples), fmean(samples)
    away = [sample - middle for sample in samples]
    total = math.fsum(one * one for one in away)
    if count < _TELLING or not total:
        return count
    worth = 1.0
    for lag in range(1, count // 4 + 1):
        together = math.fsum(a * b for a, b in zip(away, away[lag:], strict=False)) / total + 1 / count
        if together <= 0:
            break
        worth += 2 * together
    return count / worth
