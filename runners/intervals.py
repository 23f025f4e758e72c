"""Values with 95 % intervals: means by Student's t, medians by order statistics, exact counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist, fmean, median, stdev

from hub.domain import Basis, Scalar

LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value, its interval, how that was found, and from how many samples; the last three are those of `hub.domain.Measurement`."""

    value: float
    low: float
    high: float
    interval: str
    samples: int
    conditions: Mapping[str, Scalar] = field(default_factory=dict)
    percentiles: Mapping[str, float] = field(default_factory=dict)
    basis: Basis = "measured"

    def at(self, **conditions: Scalar) -> Estimate:
        """Return the same estimate under these conditions."""
        return replace(self, conditions=conditions)


def exact(value: float) -> Estimate:
    """Return a value that is counted, not sampled: its interval has no width."""
    return Estimate(value=value, low=value, high=value, interval="exact", samples=1)


def mean(samples: Sequence[float], *, of: str = "windows", low: float = -math.inf, high: float = math.inf) -> Estimate:
    """Return the mean with Student's t interval over independent samples; `low` and `high` are the ends of what is possible.

    Neighbouring windows of one text are not quite independent, so the interval is a little too narrow where the text's style lasts
    longer than a window.
    """
    _need(samples, 2)
    centre = fmean(samples)
    half = student_t(len(samples) - 1) * stdev(samples) / math.sqrt(len(samples))
    return Estimate(
        value=centre,
        low=max(low, centre - half),
        high=min(high, centre + half),
        interval=f"95 %, Student's t over {len(samples)} {of}",
        samples=len(samples),
    )


def exp_mean(samples: Sequence[float], *, of: str = "windows") -> Estimate:
    """Return exp(mean) with the ends of the mean's interval exponentiated too.

    To first order this is the delta method, exp(m) ± t · exp(m) · s / √n; unlike it, it never reaches below zero. What is too large for
    a float is infinite.
    """
    plain = mean(samples, of=of)
    return Estimate(
        value=_exp(plain.value),
        low=_exp(plain.low),
        high=_exp(plain.high),
        interval=f"{plain.interval}, on the log scale",
        samples=plain.samples,
    )


def centre(samples: Sequence[float], *, of: str = "runs") -> Estimate:
    """Return the median with the narrowest symmetric interval of order statistics that covers it with at least 95 %.

    No distribution is assumed. With fewer than six samples no such interval reaches 95 %: then it is the whole range, with the
    coverage that it really has.
    """
    _need(samples, 1)
    ordered = sorted(samples)
    count = len(ordered)
    if count == 1:
        return Estimate(value=ordered[0], low=ordered[0], high=ordered[0], interval="one run, spread unknown", samples=1)
    rank = max((k for k in range(count // 2) if _coverage(count, k) >= LEVEL), default=0)
    return Estimate(
        value=median(ordered),
        low=ordered[rank],
        high=ordered[count - 1 - rank],
        interval=f"{100 * _coverage(count, rank):.1f} %, order statistics {rank + 1} and {count - rank} of {count} {of}",
        samples=count,
    )


def inverse(estimate: Estimate, numerator: float) -> Estimate:
    """Return `numerator / estimate`, as for a rate from a time; monotone, so the interval's ends just change places."""
    return Estimate(
        value=numerator / estimate.value,
        low=numerator / estimate.high,
        high=numerator / estimate.low,
        interval=estimate.interval,
        samples=estimate.samples,
    )


def student_t(freedom: int, level: float = LEVEL) -> float:
    """Return the two-sided quantile of Student's t (Hill's Algorithm 396; better than 1 % for one degree, 1e-5 from ten on)."""
    if freedom < 1:
        raise ValueError(f"Student's t needs at least one degree of freedom, not {freedom}")
    if freedom == 1:
        return math.tan(math.pi * level / 2)
    if freedom == 2:
        return math.sqrt(2 / (1 - level * level) - 2) if level else 0.0
    n, tail = float(freedom), 1 - level
    a: float = 1 / (n - 0.5)
    b = 48 / (a * a)
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d: float = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * n
    y = math.pow(d * tail, 2 / n)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(tail / 2)
        y = x * x
        if freedom < 5:
            c += 0.3 * (n - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = a * y * y
        y = math.expm1(y)
    else:
        y = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1) / (n + 2) + 1 / y
    return math.sqrt(n * y)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _coverage(count: int, rank: int) -> float:
    """Probability that the median lies between the order statistics `rank` and `count - 1 - rank` (from 0)."""
    return 1 - 2 * sum(math.comb(count, k) for k in range(rank + 1)) / (1 << count)


def _need(samples: Sequence[float], least: int) -> None:
    if len(samples) < least:
        raise ValueError(f"an interval needs at least {least} samples, not {len(samples)}")
