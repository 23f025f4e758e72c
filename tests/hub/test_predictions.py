from __future__ import annotations

import math
import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.domain import Job, ModelRef, Recipe, Step, Thresholds
from hub.predictions import PRIOR_FACTOR, Chances, Factors, History, Takes
from hub.scheduling import Attempt, Expectation, Outcome, Prediction

GROUPS = [("press", "cpu", what, size) for what in ("gptq", "bnb") for size in ("2", "3")] + [("measure", "cpu", "p", "2")]
samples = st.lists(st.tuples(st.sampled_from(GROUPS), st.floats(-5, 5)), max_size=30)


def recipe(method: str) -> Recipe:
    limits = Thresholds(kl_divergence=1, perplexity_ratio=2)
    return Recipe(name=method, title="", summary="", format="packed", steps=(Step(method=method, scheme="W4"),), thresholds=limits)


def press(method: str, model: int = 0) -> Job:
    return Job(kind="press", base=ModelRef(repo_id=f"people/m{model}", sha="a" * 40), recipe=recipe(method))


def takes(seconds: float) -> Takes:
    return Takes(seconds=seconds, memory_bytes=1e9, disk_bytes=0)


def attempt(
    method: str, shape: float, seconds: float, *, hardware: str = "cpu", outcome: Outcome = "done", category: str | None = None
) -> Attempt:
    any_ = Prediction(value=1, factor=1, samples=0)
    expected = Expectation(
        value=0,
        popularity=0,
        gain=0,
        seconds=any_,
        memory_bytes=any_,
        disk_bytes=0,
        cost=0,
        shape_seconds=shape,
        shape_memory_bytes=1e9,
    )
    return Attempt(
        job=press(method),
        number=1,
        owner="",
        began=0,
        seconds=seconds,
        outcome=outcome,
        category=category,
        hardware=hardware,
        peak_memory_bytes=2 * 10**9 if outcome == "done" else 0,
        expected=expected,
    )


@given(samples, st.sampled_from(GROUPS))
def test_a_factor_lies_between_those_that_were_seen_and_one(history: list[tuple[tuple[str, ...], float]], path: tuple[str, ...]) -> None:
    seen = [0.0, *(value for _, value in history)]
    factor, error, jobs = Factors(history).predict(path)
    assert min(seen) - 1e-9 <= factor <= max(seen) + 1e-9
    assert math.isfinite(error)
    assert error >= 0
    assert jobs <= len(history)


@given(samples, st.sampled_from(GROUPS), st.randoms())
def test_the_order_of_history_does_not_matter(
    history: list[tuple[tuple[str, ...], float]], path: tuple[str, ...], dice: random.Random
) -> None:
    shuffled = dice.sample(history, len(history))
    assert Factors(shuffled).predict(path) == pytest.approx(Factors(history).predict(path))


@given(samples, st.floats(-5, 5), st.integers(1, 20))
def test_more_of_the_same_comes_nearer_to_the_truth(history: list[tuple[tuple[str, ...], float]], truth: float, count: int) -> None:
    path = ("press", "cpu", "new", "1")

    def off(jobs: int) -> float:
        return abs(Factors([*history, *[(path, truth)] * jobs]).predict(path)[0] - truth)

    assert off(count + 1) <= off(count) + 1e-9
    assert off(1000) < 0.01


def test_without_history_the_shape_speaks_and_says_how_far_it_may_be_off() -> None:
    forecast = History().forecast(press("gptq"), takes(100))
    assert forecast.seconds == Prediction(value=100, factor=pytest.approx(PRIOR_FACTOR), samples=0)


def test_a_group_learns_from_itself_first_and_else_from_its_kind() -> None:
    history = History([attempt("bnb", 100, 10), attempt("bnb", 100, 11), attempt("bnb", 100, 9.5), attempt("gptq", 100, 300)])
    known, other = (history.forecast(press(method), takes(100)).seconds for method in ("bnb", "awq"))
    assert 9 < known.value < 12
    assert known.samples == 3
    assert other.factor > known.factor, "of a method that never ran, less is known"
    assert 10 < other.value < 300


def test_a_size_that_never_ran_is_less_certain_than_one_that_did() -> None:
    history = History([attempt("bnb", 100, 10 + 0.1 * n) for n in range(9)])
    near, far = (history.forecast(press("bnb"), takes(shape)).seconds for shape in (100, 100_000))
    assert far.factor > 1.5 * near.factor


def test_each_hardware_has_its_own_factors_and_the_newest_counts() -> None:
    slow, fast = [attempt("bnb", 100, 200, hardware="cpu")] * 5, [attempt("bnb", 100, 2, hardware="gpu")] * 5
    assert History([*slow, *fast]).forecast(press("bnb"), takes(100)).seconds.value < 4
    assert History([*fast, *slow]).forecast(press("bnb"), takes(100)).seconds.value > 100
    assert History([*fast, *slow], hardware="gpu").forecast(press("bnb"), takes(100)).seconds.value < 4


@given(st.lists(st.floats(1, 1000), max_size=6), st.floats(1, 1e5))
def test_a_job_that_ran_out_of_time_never_makes_the_next_seem_shorter(done: list[float], had: float) -> None:
    told = [attempt("bnb", 100, seconds) for seconds in done]
    late = attempt("bnb", 100, had, outcome="failed", category="timed_out")

    def value(attempts: list[Attempt]) -> float:
        return History(attempts, hardware="cpu").forecast(press("bnb"), takes(100)).seconds.value

    assert value([*told, late]) >= value(told) * (1 - 1e-9)


@pytest.mark.parametrize(("outcome", "category"), [("failed", "bug"), ("interrupted", None), ("lost", None)])
def test_what_did_not_end_of_itself_tells_nothing_of_time(outcome: Outcome, category: str | None) -> None:
    history = History([attempt("bnb", 100, 0.1, outcome=outcome, category=category)] * 9)
    assert history.forecast(press("bnb"), takes(100)).seconds.samples == 0


def test_senseless_numbers_of_the_past_are_passed_over() -> None:
    bad = [attempt("bnb", 0, 5), attempt("bnb", 5, 0), attempt("bnb", math.inf, 5), attempt("bnb", 5, math.nan)]
    assert History(bad).forecast(press("bnb"), takes(0)).seconds.value == 0
    assert History(bad).forecast(press("bnb"), takes(9)).seconds.samples == 0


@pytest.mark.parametrize("seed", range(3))
def test_on_simulated_farms_predictions_come_true_as_often_as_they_say(seed: int) -> None:
    """Backtest, each job predicted from those before it: methods a factor of e off their shapes, jobs 30 % off their method."""
    dice = random.Random(seed)
    off = {f"method-{n}": dice.gauss(0, 1.0) for n in range(12)}
    past: list[Attempt] = []
    inside, prior, learned = [], [], []
    for number in range(400):
        method, shape = dice.choice(sorted(off)), 10 ** dice.uniform(0, 4)
        true = shape * math.exp(off[method] + dice.gauss(0, 0.3))
        if number >= 50 and number % 2:
            said = History(past).forecast(press(method), takes(shape)).seconds
            error = abs(math.log(true / said.value))
            inside.append(error <= math.log(said.factor))
            learned.append(error)
            prior.append(abs(math.log(true / shape)))
        past.append(attempt(method, shape, true))
    assert 0.55 < fmean(inside) < 0.85, "two of three"
    assert fmean(learned) < 0.5 * fmean(prior)


@given(st.dictionaries(st.sampled_from("abc"), st.tuples(st.integers(0, 20), st.integers(0, 20)).map(lambda pair: (min(pair), max(pair)))))
def test_no_chance_is_certain_and_better_records_have_better_ones(judged: dict[str, tuple[int, int]]) -> None:
    chances = Chances(judged)
    for name, (passed, count) in judged.items():
        chance = chances.of(recipe(name))
        assert 0 < chance < 1
        for other, (passes, tried) in judged.items():
            if passes >= passed and tried - passes <= count - passed:
                assert chances.of(recipe(other)) >= chance - 1e-12
