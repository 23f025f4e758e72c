from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.domain import Job, ModelRef, Recipe, Refusal, Step, Thresholds
from hub.planner import MAX_ATTEMPTS, plan
from hub.protocol import Protocol, Quality, Text
from hub.scheduling import Plan

PROTOCOL = Protocol(name="p", text=Text(name="t", sha256="0"), quality=Quality(sequence_length=8, windows=1))


def recipe(bits: int, name: str = "") -> Recipe:
    return Recipe(
        name=name or f"w{bits}",
        title="",
        summary="",
        format="packed",
        steps=(Step(method="round", scheme=f"W{bits}"),),
        thresholds=Thresholds(kl_divergence=1, perplexity_ratio=2),
    )


MODELS = [ModelRef(repo_id=f"people/{name}", sha=name * 40) for name in "abc"]
RECIPES = [recipe(bits) for bits in (2, 3, 4, 8)]
ALL = plan(MODELS, RECIPES, PROTOCOL, ()).jobs
IDS = [job.id for job in ALL]


def ids(made: Plan) -> list[str]:
    return [job.id for job in made.jobs]


def misfit(model: ModelRef, recipe: Recipe) -> str | None:
    return "group size 128 does not divide 192" if model == MODELS[1] and recipe.name == "w3" else None


histories = st.fixed_dictionaries(
    {
        "models": st.lists(st.sampled_from(MODELS), max_size=4),
        "recipes": st.lists(st.sampled_from(RECIPES), max_size=5),
        "done": st.sets(st.sampled_from(IDS)),
        "failed": st.dictionaries(st.sampled_from(IDS), st.tuples(st.integers(1, 5), st.booleans())),
        "retry_failed": st.booleans(),
        "fits": st.sampled_from([misfit, lambda model, recipe: None]),
    }
)


def make(history: dict[str, Any]) -> Plan:
    return plan(protocol=PROTOCOL, **history)


class TestForAllHistories:
    @given(histories)
    def test_no_job_is_planned_that_is_done_and_none_twice(self, history: dict[str, Any]) -> None:
        planned = ids(make(history))
        assert not history["done"].intersection(planned)
        assert len(planned) == len(set(planned))

    @given(histories)
    def test_what_a_job_needs_is_done_or_planned_before_it(self, history: dict[str, Any]) -> None:
        there = set(history["done"])
        for job in make(history).jobs:
            if job.recipe:
                assert Job(kind="measure", base=job.base, protocol=PROTOCOL).id in there
                if job.kind == "measure":
                    assert Job(kind="press", base=job.base, recipe=job.recipe).id in there
            there.add(job.id)

    @given(histories)
    def test_same_inputs_give_the_same_plan(self, history: dict[str, Any]) -> None:
        assert make(history) == make({**history, "done": sorted(history["done"], reverse=True), "failed": dict(history["failed"])})

    @given(histories)
    def test_failures_for_good_are_planned_only_when_asked(self, history: dict[str, Any]) -> None:
        hopeless = {job for job, (attempts, retryable) in history["failed"].items() if not retryable or attempts >= MAX_ATTEMPTS}
        planned = set(ids(make({**history, "retry_failed": False})))
        assert not hopeless & planned
        asked = set(ids(make({**history, "retry_failed": True})))
        assert planned <= asked
        assert asked == set(ids(make({**history, "failed": {}})))

    @given(histories)
    @settings(max_examples=50)
    def test_doing_the_whole_plan_leaves_nothing_to_plan(self, history: dict[str, Any]) -> None:
        first = make(history)
        second = make({**history, "done": history["done"] | set(ids(first))})
        assert second.jobs == ()
        assert second.done == first.done + len(first.jobs)


def test_order_is_base_then_press_and_measure_of_each_recipe() -> None:
    labels = [job.label for job in plan(MODELS[:2], RECIPES[:2], PROTOCOL, ()).jobs]
    assert labels[:5] == ["measure a base", "press a w2", "measure a w2", "press a w3", "measure a w3"]
    assert labels[5:] == [label.replace(" a ", " b ") for label in labels[:5]]


def test_a_recipe_that_does_not_fit_is_refused_with_the_reason() -> None:
    made = plan(MODELS, RECIPES, PROTOCOL, (), fits=misfit)
    assert made.refusals == (
        Refusal(repo_id="people/b", sha="b" * 40, code="unfit", reason="group size 128 does not divide 192", recipe="w3"),
    )
    assert not [job for job in made.jobs if job.base == MODELS[1] and job.recipe and job.recipe.name == "w3"]


def test_fits_is_not_asked_about_what_is_complete() -> None:
    def never(model: ModelRef, recipe: Recipe) -> str | None:
        raise AssertionError("asked")

    assert plan(MODELS, RECIPES, PROTOCOL, IDS, fits=never) == Plan(jobs=(), refusals=(), done=len(IDS))


def test_two_names_for_the_same_recipe_are_one_variant() -> None:
    made = plan(MODELS[:1], [recipe(4), recipe(4, "four")], PROTOCOL, ())
    assert [job.label for job in made.jobs] == ["measure a base", "press a w4", "measure a w4"]
    assert [(refusal.code, refusal.recipe) for refusal in made.refusals] == [("duplicate", "four")]


@pytest.mark.parametrize(
    ("attempts", "retryable", "planned"), [(1, False, False), (1, True, True), (2, True, True), (MAX_ATTEMPTS, True, False)]
)
def test_a_failed_press_is_tried_again_only_while_it_may_help(attempts: int, retryable: bool, planned: bool) -> None:
    press = Job(kind="press", base=MODELS[0], recipe=RECIPES[0])
    made = plan(MODELS[:1], RECIPES[:1], PROTOCOL, (), failed={press.id: (attempts, retryable)})
    assert [job.label for job in made.jobs] == ["measure a base"] + ["press a w2", "measure a w2"] * planned


def test_nothing_is_pressed_of_a_base_that_cannot_be_measured() -> None:
    base = Job(kind="measure", base=MODELS[0], protocol=PROTOCOL)
    assert plan(MODELS[:1], RECIPES, PROTOCOL, (), failed={base.id: (1, False)}).jobs == ()


def test_a_further_protocol_that_the_base_cannot_take_is_taken_of_no_variant() -> None:
    tasks, curve = (replace(PROTOCOL, name=name) for name in ("tasks", "serving"))
    failed = {Job(kind="measure", base=MODELS[0], protocol=tasks).id: (1, False)}
    jobs = plan(MODELS[:1], RECIPES[:1], PROTOCOL, (), further=[tasks, curve], failed=failed).jobs
    assert [(job.kind, job.recipe is None, job.protocol) for job in jobs] == [
        ("measure", True, PROTOCOL),
        ("measure", True, curve),
        ("press", False, None),
        ("measure", False, PROTOCOL),
        ("measure", False, curve),
    ]
    assert len({job.title for job in jobs}) == len(jobs)
