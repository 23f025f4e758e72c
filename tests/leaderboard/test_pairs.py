from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hub.domain import Scores
from hub.errors import BadDocument, UsageError
from leaderboard.pairs import Scored, compare, mean_difference

RANDOM = random.Random(7)
HARD = [RANDOM.gauss(3.0, 0.5) for _ in range(40)]
"""How hard each of 40 windows is: what two models of one text share."""


def windows(shift: float, noise: float = 0.01, *, kl: float | None = None, seed: int = 0, fingerprint: str = "f") -> Scores:
    drawn = random.Random(seed)
    values: dict[str, tuple[float, ...]] = {"perplexity": tuple(hard + shift + drawn.gauss(0, noise) for hard in HARD)}
    if kl is not None:
        values["kl_divergence"] = tuple(kl + drawn.gauss(0, kl / 20) for _ in HARD)
        values["same_top_token"] = tuple(0.9 + drawn.gauss(0, 0.01) for _ in HARD)
    return Scores(source="windows", fingerprint=fingerprint, tokenizer_sha256="t", values=values, sizes={"tokens": (511,) * 40})


def scored(name: str, *scores: Scores, reference: str = "base", protocol: str = "p") -> Scored:
    return Scored(name=name, identity=name, reference=reference, protocol=protocol, scores=scores)


def answers(right: Sequence[bool], fingerprint: str = "q") -> Scores:
    return Scores(source="boolq", fingerprint=fingerprint, tokenizer_sha256="t", values={"accuracy": tuple(map(float, right))})


class TestStatistics:
    def test_is_the_paired_t_test(self) -> None:
        from scipy.stats import ttest_rel

        first = [RANDOM.gauss(0.1, 1) for _ in range(17)]
        second = [RANDOM.gauss(0, 1) for _ in range(17)]
        exact = ttest_rel(first, second)
        low, high = exact.confidence_interval(0.95)
        centre, half, p_value = mean_difference(first, second)
        assert (centre - half, centre + half, p_value) == pytest.approx((low, high, exact.pvalue))
        assert mean_difference(first, second, [9] * 17) == pytest.approx((centre, half, p_value))

    def test_weights_give_the_mean_over_tokens(self) -> None:
        centre, half, _ = mean_difference([1.0, 2.0, 4.0], [0.0, 0.0, 0.0], [100, 100, 200])
        assert centre == pytest.approx((100 + 200 + 800) / 400)
        assert half > 0

    def test_a_weighted_interval_covers_the_truth_as_often_as_it_says(self) -> None:
        drawn, inside, tries = random.Random(3), 0, 600
        for _ in range(tries):
            sizes = [drawn.choice((50, 200, 500)) for _ in range(30)]
            gaps = [0.02 + drawn.gauss(0, 1) / math.sqrt(size) for size in sizes]
            centre, half, _ = mean_difference(gaps, [0.0] * 30, sizes)
            inside += abs(centre - 0.02) <= half
        print(f"coverage {inside / tries:.3f}")
        assert 0.92 <= inside / tries <= 0.98

    def test_what_never_differs_cannot_be_told_apart(self) -> None:
        assert mean_difference([1.0, 2.0], [1.0, 2.0]) == (0.0, 0.0, 1.0)
        assert mean_difference([1.0, 1.0], [0.5, 0.5]) == (0.5, 0.0, 0.0)


class TestCompare:
    def test_a_small_difference_between_two_variants_is_seen_in_pairs(self) -> None:
        """Unpaired, 40 windows that spread by half a nat would hide one hundredth."""
        found = compare([scored("a", windows(0.03, kl=0.05, seed=11))], [scored("b", windows(0.02, kl=0.04, seed=12))])
        pairs = {pair.metric: pair for pair in found.pairs}
        assert list(pairs) == ["perplexity", "kl_divergence", "same_top_token"]
        ratio = pairs["perplexity"]
        assert (ratio.kind, ratio.samples, ratio.protocols) == ("ratio", 40, ("p", "p"))
        assert ratio.low < math.exp(0.01) < ratio.high
        assert ratio.told_apart
        assert ratio.first_is_better is False
        assert pairs["kl_divergence"].value == pytest.approx(0.01, abs=0.002)
        assert pairs["kl_divergence"].first_is_better is False
        assert pairs["same_top_token"].first_is_better is None
        assert found.notes == ()

    def test_the_other_way_round_says_the_same(self) -> None:
        a, b = scored("a", windows(0.03, kl=0.05, seed=1)), scored("b", windows(0.02, kl=0.04, seed=2))
        for there, back in zip(compare([a], [b]).pairs, compare([b], [a]).pairs, strict=True):
            assert there.told_apart == back.told_apart
            if there.kind == "ratio":
                assert (1 / there.high, 1 / there.low) == pytest.approx((back.low, back.high))
            else:
                assert (-there.high, -there.low) == pytest.approx((back.low, back.high))
            assert back.first_is_better == (None if there.first_is_better is None else not there.first_is_better)

    def test_a_base_has_no_divergence_from_itself(self) -> None:
        variant, base = scored("a", windows(0.1, kl=0.05, seed=1)), scored("base", windows(0.0))
        divergence = next(pair for pair in compare([variant], [base]).pairs if pair.metric == "kl_divergence")
        assert divergence.value == pytest.approx(sum(variant.scores[0].values["kl_divergence"]) / 40)
        stranger = replace(base, name="other", identity="other", reference="other")
        assert [pair.metric for pair in compare([variant], [stranger]).pairs] == ["perplexity"]

    def test_divergences_from_different_bases_are_not_compared(self) -> None:
        a, b = scored("a", windows(0.1, kl=0.05)), scored("b", windows(0.0, kl=0.05), reference="another base")
        found = compare([a], [b])
        assert [pair.metric for pair in found.pairs] == ["perplexity"]
        assert found.notes == ("windows: the divergences of the two are from different bases, so they are not compared",)

    def test_tasks_are_paired_by_document(self) -> None:
        easy = [True] * 60 + [False] * 40
        better = [True] * 70 + [False] * 30
        (pair,) = compare([scored("a", answers(better))], [scored("b", answers(easy))]).pairs
        assert (pair.metric, pair.source, pair.kind, pair.samples) == ("accuracy", "boolq", "difference", 100)
        assert pair.value == pytest.approx(0.1)
        assert pair.first_is_better is True
        (same,) = compare([scored("a", answers(easy))], [scored("b", answers([True] * 61 + [False] * 39))]).pairs
        assert same.first_is_better is None

    def test_the_newest_of_each_counts_and_what_is_alone_is_told(self) -> None:
        new, old = scored("a", windows(0.5), protocol="new"), scored("a", windows(0.0), answers([True, False]), protocol="old")
        found = compare([new, old], [scored("b", windows(0.0))])
        assert [(pair.metric, pair.protocols) for pair in found.pairs] == [("perplexity", ("new", "p"))]
        assert found.notes == ("boolq: not the same windows or documents were scored, or by one of the two alone",)

    def test_what_did_not_score_the_same_is_refused(self) -> None:
        with pytest.raises(UsageError, match=r"did not score the same.*windows aaaa.*windows bbbb") as caught:
            compare([scored("a", windows(0, fingerprint="aaaa"))], [scored("b", windows(0, fingerprint="bbbb"))])
        assert "same tokenizer" in caught.value.hint

    def test_what_has_no_scores_or_broken_ones_is_refused(self) -> None:
        good = scored("a", windows(0))
        with pytest.raises(BadDocument, match="No scores"):
            compare([good], [scored("b")])
        nan = replace(windows(0), values={"perplexity": (math.nan,) * 40})
        short = replace(windows(0), sizes={"tokens": (511,)})
        fewer = replace(windows(0), values={"perplexity": (1.0, 2.0)}, sizes={})
        for broken in (nan, short, fewer):
            with pytest.raises(BadDocument, match=r"finite number|and 2 scores"):
                compare([good], [scored("b", broken)])
