from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.domain import Failure, FailureClass
from hub.retries import DAY_S, LONGEST_S, MOST_ECONOMY, Retry, decide

NEVER = ("unsupported", "unstable", "calibration", "gated", "licence")


def failure(category: FailureClass, *, retryable: bool = True, job_id: str = "a1") -> Failure:
    return Failure(job_id=job_id, error="E", reason="", hint="", log_tail="", seconds=1.0, retryable=retryable, category=category)


@pytest.mark.parametrize("category", NEVER)
@pytest.mark.parametrize("retryable", [True, False])
def test_what_no_other_try_can_help_is_never_tried_again(category: FailureClass, retryable: bool) -> None:
    assert decide(failure(category, retryable=retryable), 1, 0, 99) is None


def test_out_of_memory_goes_down_in_steps_and_stops() -> None:
    assert decide(failure("out_of_memory", retryable=False), 1, 0, 99) is None, "no smaller way is known"
    assert [decide(failure("out_of_memory"), 1 + step, step, 99) for step in range(3)] == [
        Retry(after_s=0.0, economy=1),
        Retry(after_s=0.0, economy=2),
        None,
    ]


def test_the_hub_is_left_alone_for_as_long_as_it_asks() -> None:
    asked = [replace(failure("hub"), retry_after_s=seconds) for seconds in (0.0, 300.0, 1e9)]
    waits = [retry.after_s for one in asked if (retry := decide(one, 1, 0, 3))]
    assert 0 < waits[0] < 300
    assert waits[1:] == [300.0, DAY_S]  # whatever it asks for, it is asked again the next day


def test_too_long_is_tried_once_more() -> None:
    assert decide(failure("timed_out"), 1, 1, 99) == Retry(after_s=0.0, economy=1)
    assert decide(failure("timed_out"), 2, 1, 99) is None


def test_a_killed_job_takes_less_memory_from_the_third_try_on() -> None:
    economies = [decided.economy for attempt in (1, 2, 3) if (decided := decide(failure("killed"), attempt, 0, 99))]
    assert economies == [0, 1, 1]


@pytest.mark.parametrize("category", ["hub", "bug"])
def test_the_hub_and_the_unforeseen_only_where_the_error_says_that_it_may_help(category: FailureClass) -> None:
    assert decide(failure(category), 1, 0, 2)
    assert decide(failure(category, retryable=False), 1, 0, 2) is None


@given(st.sampled_from(get_args(FailureClass)), st.booleans(), st.integers(1, 10_000), st.integers(0, MOST_ECONOMY), st.integers(1, 10_000))
def test_tries_end_waits_are_bounded_and_the_same_failure_gives_the_same_answer(
    category: FailureClass, retryable: bool, attempt: int, economy: int, limit: int
) -> None:
    one = failure(category, retryable=retryable)
    decided = decide(one, attempt, economy, limit)
    assert decided == decide(one, attempt, economy, limit)
    if attempt >= limit:
        assert decided is None
    if decided:
        assert 0 <= decided.after_s <= LONGEST_S
        assert economy <= decided.economy <= MOST_ECONOMY


def test_waits_grow_and_differ_between_jobs() -> None:
    waits = [decided.after_s for attempt in range(1, 9) if (decided := decide(failure("hub"), attempt, 0, 99))]
    assert all(4 * early >= late for early, late in itertools.pairwise(waits))
    assert waits[0] < waits[3] < waits[6]
    assert len({decide(failure("hub", job_id=str(number)), 1, 0, 9) for number in range(20)}) == 20
