"""What people look at, on SQLite and on PostgreSQL: counts and lines agree with what was written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hub import owners
from hub.overview import Wish
from hub.scheduling import Plan, Spent
from hub.store import Store

if TYPE_CHECKING:
    from .conftest import Words


@pytest.fixture
def url(either: str) -> str:
    return either


@pytest.mark.parametrize("postponed", [False, True])
def test_an_overview_of_every_state(store: Store, words: Words, *, postponed: bool) -> None:
    base, press, measure, other = (
        words.measure(),
        words.press(),
        words.measure(recipe=words.recipe()),
        words.press(words.model("other", "b" * 40)),
    )
    needs = {press.id: frozenset({base.id}), measure.id: frozenset({press.id, base.id})}
    store.record_plan(Plan(jobs=(base, press, measure, other), refusals=(), done=0, needs=needs))
    store.start(base)
    store.fail(base, words.failure(base), retry_after=500.0 if postponed else None)
    store.start(other)
    seen = store.reader.overview()
    assert seen.states == ({"planned": 3, "running": 1} if postponed else {"planned": 2, "running": 1, "failed": 1})
    assert [line.id for line in seen.running] == [other.id]
    assert seen.running[0].since == pytest.approx(seen.at, abs=60)
    assert seen.running[0].owner == owners.own()
    if postponed:
        assert [line.due for line in seen.waiting] == [pytest.approx(seen.at + 500, abs=60)]
        assert seen.blocked == ()
    else:
        assert seen.failures == {"bug": 1}
        assert [(held.job.id, held.jobs) for held in seen.blocked] == [(base.id, 2)], "the one that waits for both counts once"


def test_lines_are_what_the_jobs_are_called_and_can_be_chosen(store: Store, words: Words) -> None:
    jobs = (words.measure(), words.press(), words.press(words.model("a_b")), words.press(words.model("axb")))
    store.record_plan(Plan(jobs=jobs, refusals=(), done=0))
    lines = store.reader.lines()
    assert [(line.id, line.label, line.title) for line in lines] == [(job.id, job.label, job.title) for job in jobs]
    assert store.reader.ids(Wish(model="a_b")) == [jobs[2].id], "no letter of a name is a wildcard"
    assert store.reader.count(Wish(kind="press")) == len(store.reader.lines(Wish(kind="press"))) == 3
    assert store.reader.count(Wish(recipe=words.recipe().name, state="done")) == 0
    assert store.reader.wanted().bases == {words.model(), words.model("a_b"), words.model("axb")}


def test_detail_and_use_of_what_was_tried(store: Store, words: Words) -> None:
    job, waiting = words.press(), words.measure(recipe=words.recipe())
    store.record_plan(Plan(jobs=(job, waiting), refusals=(), done=0, needs={waiting.id: frozenset({job.id})}))
    store.start(job)
    store.fail(job, words.failure(job), spent=Spent(gpus=2.0, cost=0.25))
    store.queue.retry([job.id])
    store.start(job)
    store.queue.put_back(job, owners.own(), spent=Spent(gpus=1.0, cost=0.0))
    detail = store.reader.detail(job.id)
    assert detail is not None
    assert [one.outcome for one in detail.tries] == ["failed", "interrupted"]
    assert [line.id for line in detail.wanted_by] == [waiting.id]
    assert detail.wanted_by_count == 1
    assert store.reader.detail("f" * 16) is None
    store.record_hub_write("repo", "press/tiny", 0)
    store.record_hub_write("commit", "press/tiny", 7)
    used = store.reader.used(period_s=3600, hub_period_s=3600)
    assert (used.jobs, used.money, used.repos, used.commits) == (2, 0.25, 1, 1)
    assert used.job_hours == pytest.approx(0.5 / 3600, abs=0.01)
    assert used.gpu_hours == pytest.approx(1.0 / 3600, abs=0.01)
    assert used.unpriced_hours == 0, "its GPU was noted, though it cost nothing"
    store.start(job)
    store.put_back(job)
    assert store.reader.used(period_s=3600, hub_period_s=3600).unpriced_hours > 0
