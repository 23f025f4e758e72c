"""What the 95 % intervals really cover, by simulation: seeded windows as texts give them, for every kind of interval.

A window's text is harder or easier than the next one's, so tokens within a window go together; losses are near to normal, divergences
and squared differences of probabilities spread over orders of magnitude.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from runners import intervals
from runners.intervals import Estimate

Draw = Callable[[np.random.Generator, int], tuple[Estimate, float]]

TOKENS = 128
SIZES = (8, 40, 140)
BETWEEN, WITHIN = 0.4, 2.0  # spread of log divergences between windows, and between the tokens of one


def losses(rng: np.random.Generator, windows: int) -> tuple[Estimate, float]:
    """Window means of negative log-likelihoods."""
    return intervals.mean(rng.normal(3.2, 0.35, windows).tolist()), 3.2


def perplexity(rng: np.random.Generator, windows: int) -> tuple[Estimate, float]:
    return intervals.exp_mean(rng.normal(3.2, 0.35, windows).tolist()), math.exp(3.2)


def delta_perplexity(rng: np.random.Generator, windows: int) -> tuple[Estimate, float]:
    """The base's losses and a variant's that are worse by a little, more so where the text is hard."""
    base = rng.normal(3.2, 0.35, windows)
    variant = base + 0.02 + 0.03 * (base - 3.2) + rng.normal(0, 0.01, windows)
    return intervals.exp_difference(list(zip(variant.tolist(), base.tolist(), strict=True))), math.exp(3.22) - math.exp(3.2)


def bits_per_byte(rng: np.random.Generator, windows: int) -> tuple[Estimate, float]:
    """A window of dense text has fewer bytes and more bits each."""
    sizes = rng.normal(500, 60, windows)
    return intervals.ratio((sizes * 1.1 + rng.normal(0, 50, windows)).tolist(), sizes.tolist()), 1.1


def divergence(rng: np.random.Generator, windows: int) -> tuple[Estimate, float]:
    """Window means of heavy-tailed divergences."""
    spread = 0.5
    return intervals.positive_mean(np.exp(spread * rng.normal(size=windows) - 4).tolist()), math.exp(spread**2 / 2 - 4)


def rms(rng: np.random.Generator, windows: int) -> tuple[Estimate, float]:
    spread = 0.5
    return intervals.root_mean(np.exp(spread * rng.normal(size=windows) - 6).tolist()), math.exp((spread**2 / 2 - 6) / 2)


def share(rng: np.random.Generator, windows: int) -> tuple[Estimate, float]:
    """Shares of equal first choices, whose rate itself differs by window."""
    hits = rng.binomial(TOKENS, rng.beta(45, 5, windows))
    return intervals.mean((hits / TOKENS).tolist(), low=0.0, high=1.0), 0.9


def median_of_runs(rng: np.random.Generator, runs: int) -> tuple[Estimate, float]:
    """Times of runs: a floor, and a long tail above it."""
    return intervals.centre((1 + rng.lognormal(-3, 1, runs)).tolist()), 1 + math.exp(-3)


KINDS: dict[str, Draw] = {
    "mean": losses,
    "exp of a mean": perplexity,
    "difference of exps": delta_perplexity,
    "ratio estimator": bits_per_byte,
    "positive mean": divergence,
    "root of a mean": rms,
    "share": share,
    "median": median_of_runs,
}
# Few windows of skewed values cover less; the docstring of `positive_mean` says so.
LEAST = {8: 0.91, 40: 0.93, 140: 0.93}


@pytest.mark.parametrize("windows", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_intervals_cover_what_they_say(kind: str, windows: int) -> None:
    rng = np.random.default_rng([windows, *kind.encode()])
    hits = repeats = 2000
    for _ in range(repeats):
        estimate, true = KINDS[kind](rng, windows)
        hits -= not estimate.low <= true <= estimate.high
    print(f"{kind:20} {windows:4} windows: covers {100 * hits / repeats:.1f} %")
    assert hits / repeats >= LEAST[windows]


@pytest.mark.parametrize("windows", SIZES)
def test_intervals_of_percentiles_cover_what_they_say(windows: int) -> None:
    """Woodruff's, on tokens that go together within their window; the truth is the lognormal mixture's, in closed form."""
    from scipy.special import ndtri

    percents = (5.0, 50.0, 90.0, 99.0, 99.9)
    rng, repeats = np.random.default_rng([windows, 99]), 400 if windows == 140 else 1200
    spread = math.hypot(BETWEEN, WITHIN)
    hits = dict.fromkeys(percents, 0)
    told = dict.fromkeys(percents, 0)
    for _ in range(repeats):
        clusters = np.exp(BETWEEN * rng.normal(size=(windows, 1)) + WITHIN * rng.normal(size=(windows, TOKENS)))
        for estimate in intervals.quantiles(list(clusters), percents):
            percent = float(estimate.conditions["percentile"])
            told[percent] += 1
            hits[percent] += estimate.low <= math.exp(spread * ndtri(percent / 100)) <= estimate.high
    assert all(count in (0, repeats) for count in told.values())
    assert (told[99.9] == 0) == (windows == 8), "of 1024 tokens about one is beyond: no interval"
    for percent in (one for one in percents if told[one]):
        print(f"percentile {percent:9} {windows:4} windows: covers {100 * hits[percent] / repeats:.1f} %")
        assert hits[percent] / repeats >= LEAST[windows]


def together(rng: np.random.Generator, windows: int, share: float, lasting: float) -> list[float]:
    """Losses of windows of variance 1, a share of which is a topic's, whose autocorrelation falls by `lasting` with every window."""
    topic = rng.normal(size=windows)
    for index in range(1, windows):
        topic[index] = lasting * topic[index - 1] + math.sqrt(1 - lasting**2) * topic[index]
    return list(math.sqrt(share) * topic + math.sqrt(1 - share) * rng.normal(size=windows))


# (share, lasting): autocorrelations 0.34, 0.12, 0.04 ... as the default text's, and 0.39, 0.34, 0.30 ... as WikiText-2's.
TEXTS = {"standard library": (1.0, 0.34), "WikiText-2": (0.45, 0.87)}


@pytest.mark.parametrize(
    ("text", "windows", "least", "alone"),
    [
        ("standard library", 40, 0.92, 0.85),
        ("standard library", 140, 0.93, 0.85),
        ("WikiText-2", 40, 0.78, 0.60),
        ("WikiText-2", 140, 0.86, 0.60),
    ],
)
def test_windows_that_go_together_widen_the_interval(text: str, windows: int, least: float, alone: float) -> None:
    """The interval knows most of what neighbours share; one that takes them as independent falls far short of what it says."""
    rng, repeats = np.random.default_rng(windows), 1500
    hits = without = 0
    for _ in range(repeats):
        samples = together(rng, windows, *TEXTS[text])
        knowing, naive = intervals.mean(samples), intervals.mean(samples, of="runs")
        hits += knowing.low <= 0 <= knowing.high
        without += naive.low <= 0 <= naive.high
    print(f"{text:20} {windows:4} windows: covers {100 * hits / repeats:.1f} %, taken as independent {100 * without / repeats:.1f} %")
    assert hits / repeats >= least
    assert without / repeats < alone


def test_an_interval_of_the_wrong_width_would_be_seen() -> None:
    """The simulation has the power to tell 95 % from an interval a quarter too narrow."""
    rng, hits, repeats = np.random.default_rng(0), 0, 2000
    for _ in range(repeats):
        estimate, true = losses(rng, 40)
        half = (estimate.high - estimate.low) / 2 * 0.75
        hits += abs(estimate.value - true) <= half
    assert hits / repeats < LEAST[40]


def test_the_interval_says_what_its_windows_are_worth() -> None:
    slow = [math.sin(index / 5) for index in range(40)]
    assert "Student's t over 40 windows, worth" in intervals.mean(slow).interval
    assert intervals.mean(slow, of="documents").interval == "95 %, Student's t over 40 documents"
    assert intervals.mean([1.0, -1.0] * 20).interval == "95 %, Student's t over 40 windows"
    assert intervals.mean(slow[:15]).interval == "95 %, Student's t over 15 windows"


def test_percentiles_are_those_of_the_sorted_values() -> None:
    clusters: list[Any] = [np.arange(1.0, 51.0), np.arange(51.0, 101.0)]
    found = {estimate.conditions["percentile"]: estimate for estimate in intervals.quantiles(clusters, (1, 5, 50, 95, 99))}
    assert {percent: estimate.value for percent, estimate in found.items()} == {5: 5.0, 50: 50.0, 95: 95.0}
    assert found[50].low == 1.0, "two windows that lie apart tell next to nothing"
    assert found[50].high == 100.0
    alike: list[Any] = [np.arange(1.0, 101.0)] * 6
    assert [(one.low, one.value, one.high) for one in intervals.quantiles(alike, (50,))] == [(50.0, 50.0, 50.0)]


def test_paired_and_ratio_intervals_by_hand() -> None:
    difference = intervals.exp_difference([(1.0, 0.0), (1.0, 0.0), (1.0, 0.0)])
    assert (difference.low, difference.value, difference.high) == pytest.approx((math.e - 1,) * 3)
    for large in (708.0, 800.0):  # an exponential that fits in a float, though its product with a loss does not; one that does not fit
        assert not math.isfinite(intervals.exp_difference([(large, 0.0), (large + 1, 0.0)]).high), "no number"
    quotient = intervals.ratio([1.0, 2.0, 6.0], [1.0, 2.0, 3.0])
    # R = 1.5; residuals (-0.5, -1, 1.5) / 2, their standard deviation sqrt(1.75) / 2, Student's t of 2 degrees 4.302653
    half = 4.302653 * math.sqrt(1.75) / 2 / math.sqrt(3)
    assert (quotient.low, quotient.value, quotient.high) == pytest.approx((1.5 - half, 1.5, 1.5 + half), rel=1e-6)
    assert intervals.positive_mean([0.0, 0.0]).high == 0.0
    root = intervals.root_mean([4.0, 4.0])
    assert (root.low, root.value, root.high) == (2.0, 2.0, 2.0)
