"""The queue on SQLite and on PostgreSQL: claims, needs, leases, retries, what people ask for, plans beside running jobs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from hub import owners
from hub.domain import Job
from hub.errors import UsageError
from hub.planner import plan as make_plan
from hub.scheduling import Expectation, Plan, Prediction, Spent
from hub.store import Store
from hub.tables import Table

KINDS = ("press", "measure")
ELSEWHERE = "another-host:1:0.00"
GUESS = Prediction(value=10.0, factor=2.0, samples=0)
EXPECTED = Expectation(
    value=1.0,
    popularity=1.0,
    gain=1.0,
    seconds=GUESS,
    memory_bytes=GUESS,
    disk_bytes=1,
    cost=0.5,
    shape_seconds=1.0,
    shape_memory_bytes=1.0,
)


@pytest.fixture
def url(either: str) -> str:
    return either


def write(url: str, statement: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def states(store: Store) -> dict[str, str]:
    return {record.job.label: record.state for record in store.jobs()}


def waits(store: Store) -> dict[str, int]:
    return {record.job.label: record.waits_for for record in store.jobs() if record.state != "done"}


@pytest.fixture
def planned(store: Store, words: Any) -> Plan:
    """The plan of one model with two recipes, recorded: a measurement, then two presses and their measurements."""
    made = make_plan([words.model()], [words.recipe(4), words.recipe(8)], words.protocol, ())
    made = replace(made, expected={job.id: EXPECTED for job in made.jobs[:1]})
    store.record_plan(made)
    return made


class TestClaims:
    def test_jobs_come_in_the_plans_order_as_their_needs_are_done(self, store: Store, farm: Any, planned: Plan) -> None:
        seen = []
        while claim := store.queue.claim("me", kinds=KINDS):
            assert store.queue.claim("you", kinds=KINDS, exclude=[job.id for job in planned.jobs[1:4]]) is None
            seen.append(claim.job)
            assert (claim.attempt, claim.expected) == (1, planned.expected.get(claim.job.id))
            assert store.finish(claim.job, farm.run(claim.job), owner="me")
        assert seen == list(planned.jobs)
        assert [(try_.outcome, try_.owner, try_.expected) for try_ in store.queue.attempts_of(planned.jobs[0].id)] == [
            ("done", "me", EXPECTED)
        ]

    def test_the_preferred_base_goes_first_and_kinds_and_exclusions_hold(self, store: Store, words: Any) -> None:
        one, two = words.model("one"), words.model("two")
        jobs = [words.measure(one), words.measure(two), words.press(one)]
        store.record_plan(Plan(jobs=tuple(jobs), refusals=(), done=0))
        claim = store.queue.claim("me", kinds=KINDS, prefer=two)
        assert claim is not None
        assert claim.job == jobs[1]
        store.queue.decline(claim.job, "me")
        assert store.queue.attempts() == []
        many = [jobs[0].id, *(f"{n:016x}" for n in range(70_000))]  # more than either database takes parameters
        claim = store.queue.claim("me", kinds=("measure",), exclude=many, prefer=words.model("none"))
        assert claim is not None
        assert claim.job == jobs[1]
        assert store.queue.claim("me", kinds=("measure",), exclude=many) is None

    def test_a_pause_lets_nothing_start(self, store: Store, planned: Plan) -> None:
        store.queue.pause("the power\0 is dear")
        assert store.queue.claim("me", kinds=KINDS) is None
        assert store.queue.paused() == store.queue.outlook("me", kinds=KINDS).paused == "the power\ufffd is dear"
        assert store.queue.renew("me", []).paused
        assert (store.queue.resume(), store.queue.resume()) == (True, False)
        assert store.queue.claim("me", kinds=KINDS) is not None

    @pytest.mark.parametrize("document", ["{}", "not JSON", '{"kind": "press"}', "another job"])
    def test_a_job_that_cannot_be_read_fails_and_holds_up_nobody(self, store: Store, words: Any, url: str, document: str) -> None:
        bad, good = words.measure(words.model("bad")), words.measure(words.model("good"))
        store.record_plan(Plan(jobs=(bad, good), refusals=(), done=0))
        other = json.dumps({"kind": "press", "base": {"repo_id": "a/b", "sha": "c"}})
        document = other if document == "another job" else document
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("UPDATE jobs SET document = :document WHERE id = :id"), {"document": document, "id": bad.id})
        engine.dispose()
        claim = store.queue.claim("me", kinds=KINDS)
        assert claim is not None
        assert claim.job == good
        assert store.queue.counts() == {"failed": 1, "running": 1}

    def test_two_threads_never_have_one_job(self, store: Store, words: Any) -> None:
        jobs = tuple(words.measure(words.model(f"m{n}")) for n in range(40))
        store.record_plan(Plan(jobs=jobs, refusals=(), done=0))

        def take(owner: str) -> list[str]:
            found = []
            while claim := store.queue.claim(owner, kinds=KINDS):
                found.append(claim.job.id)
            return found

        with ThreadPoolExecutor(4) as pool:
            taken = [job for found in pool.map(take, "abcd") for job in found]
        assert sorted(taken) == sorted(job.id for job in jobs)


class TestFencing:
    def test_what_a_lost_claim_brings_is_dropped(self, store: Store, farm: Any, words: Any, planned: Plan, url: str) -> None:
        job = planned.jobs[0]
        assert store.queue.claim(ELSEWHERE, kinds=KINDS, lease_s=60)
        assert store.recover() == 0
        write(url, "UPDATE jobs SET lease_until = lease_until - 61, began = began - 61 WHERE state = 'running'")
        assert store.recover() == 1
        assert not store.fail(job, words.failure(job), owner=ELSEWHERE)
        assert not store.finish(job, farm.run(job), owner=ELSEWHERE)
        assert store.queue.renew(ELSEWHERE, [job.id]).lost == {job.id}
        store.queue.put_back(job, ELSEWHERE)
        assert store.queue.claim("me", kinds=KINDS)
        assert not store.finish(job, farm.run(job), owner=ELSEWHERE)
        assert [(try_.outcome, round(try_.seconds)) for try_ in store.queue.attempts()] == [("lost", 60)]
        assert store.finish(job, farm.run(job), owner="me", spent=Spent(gpus=1.0, cost=0.25))
        last = store.queue.attempts()[-1]
        assert (last.outcome, last.gpus, last.cost, last.number, last.peak_memory_bytes) == ("done", 1.0, 0.25, 1, 2**20)

    def test_a_forgotten_job_is_not_made_again_by_its_late_result(self, store: Store, farm: Any, words: Any) -> None:
        job = words.press()
        assert not store.finish(job, farm.run(job), owner="me")
        assert not store.fail(job, words.failure(job), owner="me")
        assert store.jobs() == []

    def test_a_renewed_lease_is_kept(self, store: Store, planned: Plan, url: str) -> None:
        assert store.queue.claim(ELSEWHERE, kinds=KINDS, lease_s=-1.0)
        renewal = store.queue.renew(ELSEWHERE, [planned.jobs[0].id, "unknown"])
        assert (renewal.lost, renewal.cancelled, renewal.paused) == ({"unknown"}, frozenset(), False)
        assert store.recover() == 0

    def test_a_living_process_of_this_host_keeps_its_job_whatever_the_clock_says(self, store: Store, planned: Plan) -> None:
        assert store.queue.claim(owners.own(), kinds=KINDS, lease_s=-1e9)
        assert store.recover() == 0
        store.queue.put_back(planned.jobs[0], owners.own())
        assert store.queue.claim(f"{owners.host()}:999999999:0.00", kinds=KINDS, lease_s=1e9)
        assert store.recover() == 1


class TestRetries:
    def test_a_job_is_put_off_and_tells_when_it_is_due(self, store: Store, words: Any, planned: Plan, url: str) -> None:
        claim = store.queue.claim("me", kinds=KINDS)
        assert claim is not None
        assert store.fail(claim.job, words.failure(claim.job), owner="me", retry_after=100, economy=1)
        assert store.queue.claim("me", kinds=KINDS) is None
        seen = store.queue.outlook("me", kinds=KINDS)
        assert (seen.ready, seen.put_off, seen.blocked, seen.elsewhere) == (0, 1, 4, 0)
        assert seen.due_in_s is not None
        assert 50 < seen.due_in_s <= 100
        write(url, "UPDATE jobs SET not_before = not_before - 101 WHERE not_before > 0")
        again = store.queue.claim("me", kinds=KINDS)
        assert again is not None
        assert (again.job, again.attempt, again.economy) == (claim.job, 2, 1)
        assert store.queue.outlook("you", kinds=KINDS).elsewhere == 1

    @pytest.mark.parametrize("jump", [-3600.0, -86400.0, 86400.0])
    def test_a_clock_that_jumps_holds_nothing_up(
        self, store: Store, words: Any, planned: Plan, monkeypatch: pytest.MonkeyPatch, jump: float
    ) -> None:
        claim = store.queue.claim("me", kinds=KINDS)
        assert claim is not None
        store.fail(claim.job, words.failure(claim.job), owner="me", retry_after=30)
        true_clock = store._database.clock
        monkeypatch.setattr(store._database, "clock", lambda session: true_clock(session) + jump)
        assert store.queue.claim("me", kinds=KINDS) is not None


class TestPeople:
    def test_a_planned_job_is_cancelled_until_it_is_retried(self, store: Store, planned: Plan) -> None:
        base = planned.jobs[0]
        assert store.queue.cancel([base.id, "unknown"]) == 1
        assert store.queue.cancel([base.id]) == 0
        store.record_plan(planned)
        assert states(store)["measure tiny base"] == "cancelled"
        assert store.queue.claim("me", kinds=KINDS) is None
        assert store.queue.outlook("me", kinds=KINDS).blocked == 4
        assert store.queue.retry([base.id]) == 1
        assert store.queue.claim("me", kinds=KINDS) is not None
        assert store.queue.retry([job.id for job in planned.jobs]) == 0

    @pytest.mark.parametrize("end", ["fail", "put back", "lost", "finish"])
    def test_a_running_job_is_cancelled_as_it_ends(self, store: Store, farm: Any, words: Any, planned: Plan, url: str, end: str) -> None:
        job = planned.jobs[0]
        store.queue.claim(ELSEWHERE, kinds=KINDS)
        assert store.queue.cancel([job.id]) == 1
        assert store.queue.cancel([job.id]) == 0
        assert store.queue.renew(ELSEWHERE, [job.id]).cancelled == {job.id}
        if end == "fail":
            store.fail(job, words.failure(job, retryable=True), owner=ELSEWHERE, retry_after=1.0)
        elif end == "put back":
            store.queue.put_back(job, ELSEWHERE)
        elif end == "lost":
            write(url, "UPDATE jobs SET lease_until = 0 WHERE state = 'running'")
            store.recover()
        else:
            store.finish(job, farm.run(job), owner=ELSEWHERE)
        assert states(store)[job.label] == ("done" if end == "finish" else "cancelled")
        assert store.queue.retry([job.id]) == (0 if end == "finish" else 1)

    def test_a_failed_job_is_retried_as_if_it_were_new(self, store: Store, words: Any, planned: Plan) -> None:
        claim = store.queue.claim("me", kinds=KINDS)
        assert claim is not None
        store.fail(claim.job, words.failure(claim.job), owner="me")
        assert store.queue.retry([job.id for job in planned.jobs]) == 1
        claim = store.queue.claim("me", kinds=KINDS)
        assert claim is not None
        assert (claim.attempt, claim.economy) == (1, 0)

    def test_jobs_are_found_by_the_names_that_people_see(self, store: Store, planned: Plan) -> None:
        base, press = planned.jobs[0], planned.jobs[1]
        assert [record.id for record in store.queue.find(press.id[:6])] == [press.id]
        for name in (press.label, "press tiny round-w4"):
            assert [record.job for record in store.queue.find(name)] == [press]
        assert [record.job for record in store.queue.find(base.title)] == [base]
        assert [record.job.kind for record in store.queue.find("tiny-round-w4")] == ["press", "measure"]
        assert len(store.queue.find("people/tiny")) == 5
        for name in ("", "%", "press", "press tiny", "zz", "press %"):
            assert store.queue.find(name) == []
        record = store.queue.find(base.id)[0]
        assert (record.position, record.waits_for, record.expected, record.owner) == (1, 0, EXPECTED, None)


class TestPlans:
    def test_the_same_plan_again_changes_nothing(self, store: Store, planned: Plan) -> None:
        before = [replace(record, updated_at="") for record in store.jobs()]
        store.record_plan(planned)
        assert [replace(record, updated_at="") for record in store.jobs()] == before

    def test_a_plan_beside_running_jobs_touches_none_of_them(self, store: Store, farm: Any, words: Any, planned: Plan) -> None:
        claim = store.queue.claim(ELSEWHERE, kinds=KINDS)
        assert claim is not None
        before = [record for record in store.jobs() if record.state == "running"]
        store.record_plan(Plan(jobs=(words.press(recipe=words.recipe(2)),), refusals=(), done=0))
        assert [record for record in store.jobs() if record.state == "running"] == before
        assert states(store) == {"measure tiny base": "running", "press tiny round-w2": "planned"}
        store.record_plan(planned)
        assert waits(store)["press tiny round-w4"] == 1
        assert store.finish(claim.job, farm.run(claim.job), owner=ELSEWHERE)
        assert waits(store)["press tiny round-w4"] == 0

    def test_a_job_that_was_tried_and_is_left_out_is_cancelled_until_a_plan_names_it(self, store: Store, words: Any, planned: Plan) -> None:
        claim = store.queue.claim("me", kinds=KINDS)
        assert claim is not None
        store.fail(claim.job, words.failure(claim.job), owner="me", retry_after=1000.0)
        store.record_plan(Plan(jobs=(), refusals=(), done=0))
        assert states(store) == {"measure tiny base": "cancelled"}
        assert len(store.queue.attempts()) == 1
        store.record_plan(planned)
        assert set(states(store).values()) == {"planned"}
        again = store.queue.claim("me", kinds=KINDS)
        assert again is not None
        assert again.attempt == 2

    def test_what_a_cancelled_job_needs_is_not_lost_with_a_plan(self, store: Store, planned: Plan) -> None:
        press, measure = planned.jobs[1], planned.jobs[2]
        store.queue.cancel([measure.id])
        store.record_plan(Plan(jobs=(), refusals=(), done=0))
        store.queue.retry([measure.id])
        assert waits(store)[measure.label] == 2
        assert states(store)[press.label] == "cancelled"

    def test_a_need_that_nobody_knows_is_refused_and_leaves_the_plan_as_it_was(self, store: Store, words: Any, planned: Plan) -> None:
        job = words.press(recipe=words.recipe(2))
        with pytest.raises(UsageError, match="neither planned nor recorded"):
            store.record_plan(Plan(jobs=(job,), refusals=(), done=0, needs={job.id: frozenset({"0" * 16})}))
        assert len(store.jobs()) == 5

    def test_what_is_forgotten_is_waited_for_again(self, store: Store, farm: Any, words: Any, planned: Plan) -> None:
        for job in planned.jobs[:2]:
            store.finish(job, farm.run(job))
        assert waits(store)[planned.jobs[2].label] == 0
        store.forget(planned.jobs[1].variant_id or "")
        assert states(store)["press tiny round-w4"] == "cancelled"
        store.record_plan(make_plan([words.model()], [words.recipe(4)], words.protocol, store.done()))
        assert (states(store)["press tiny round-w4"], waits(store)) == ("planned", {"press tiny round-w4": 0, "measure tiny round-w4": 1})
        assert [try_.outcome for try_ in store.queue.attempts_of(planned.jobs[1].id)] == ["done"]


MOVES = st.lists(
    st.tuples(
        st.sampled_from(["claim", "finish", "fail", "retry", "cancel", "put back", "plan", "short plan", "forget"]), st.integers(0, 4)
    ),
    max_size=12,
)


@pytest.mark.parametrize("either", ["sqlite"], indirect=True)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(moves=MOVES)
def test_needs_are_counted_right_after_any_order_of_events(store: Store, farm: Any, words: Any, url: str, moves: list[Any]) -> None:
    with store._database.writing() as session:
        for table in reversed(Table.metadata.sorted_tables):
            session.execute(table.delete())
    recipes = [words.recipe(4), words.recipe(8)]
    jobs = make_plan([words.model()], recipes, words.protocol, ()).jobs
    for move, number in [("plan", 0), *moves]:
        job: Job = jobs[number]
        if move == "claim":
            claim = store.queue.claim("me", kinds=KINDS)
            assert claim is None or open_needs(url)[claim.job.id] == 0
        elif move == "finish":
            store.finish(job, farm.run(job), owner="me") if states(store).get(job.label) == "running" else None
        elif move == "fail":
            store.fail(job, words.failure(job), owner="me", retry_after=0.0 if number % 2 else None)
        elif move == "retry":
            store.queue.retry([job.id])
        elif move == "cancel":
            store.queue.cancel([job.id])
        elif move == "put back":
            store.queue.put_back(job, "me")
        elif move == "forget" and job.variant_id in {record.variant_id for record in store.variants()}:
            store.forget(job.variant_id or "")
        else:
            store.record_plan(make_plan([words.model()], recipes[: 1 if move == "short plan" else 2], words.protocol, store.done()))
        assert {record.id: record.waits_for for record in store.jobs() if record.state != "done"} == open_needs(url)


def open_needs(url: str) -> dict[str, int]:
    """Count, by the states alone, how many needs of each job that is not done are not done."""
    engine = create_engine(url)
    with engine.connect() as connection:
        jobs = {row.id: row.state for row in connection.execute(text("SELECT id, state FROM jobs"))}
        pairs = connection.execute(text("SELECT job_id, needs FROM job_needs")).all()
    engine.dispose()
    return {job: sum(jobs[need] != "done" for other, need in pairs if other == job) for job, state in jobs.items() if state != "done"}


def test_what_was_sent_to_the_hub_is_kept(store: Store) -> None:
    store.record_hub_write("commit", "us/a", 2**40)
    began = store.hub_writes(0)[0].at
    store.record_hub_write("repo", "us/b", 0)
    assert [(one.action, one.repo_id, one.bytes) for one in store.hub_writes(0)] == [("commit", "us/a", 2**40), ("repo", "us/b", 0)]
    assert store.hub_writes(began + 3600) == []


def test_the_popularity_of_every_listed_model_is_kept(store: Store, words: Any) -> None:
    one, two = words.candidate(words.model("one"), 5), words.candidate(words.model("two"), 9)
    newer = replace(one, ref=replace(one.ref, sha="b" * 40))
    first, second = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"
    store.record_models([one], first, scores={"people/one": 0.5, "people/two": 0.75}, refused=[two])
    store.record_models([newer], second, refused=[two])
    history = store.popularity()
    assert [(point.at, point.rank, point.score) for point in history["people/one"]] == [(first, 1, 0.5), (second, 1, None)]
    assert [(point.at, point.rank, point.score) for point in history["people/two"]] == [(first, 0, 0.75), (second, 0, None)]
    assert {name: len(points) for name, points in store.popularity(since=second).items()} == {"people/one": 1, "people/two": 1}
    assert store.candidates() == store.candidates("people/one") == {"people/one": (newer, one)}
    assert [base.candidate for base in store.bases(current=True)] == [newer]


@pytest.mark.integration
def test_two_dispatchers_one_of_them_killed_run_each_job_at_one_time_only(store: Store, words: Any, url: str, tmp_path: Path) -> None:
    count = 500
    jobs = tuple(words.measure(words.model(f"m{n}")) for n in range(count))
    needs = {jobs[n].id: frozenset({jobs[n - 50].id}) for n in range(50, count)}
    store.record_plan(Plan(jobs=jobs, refusals=(), done=0, needs=needs))
    journal = tmp_path / "journal"
    journal.touch()
    helper = [sys.executable, str(Path(__file__).with_name("claimer.py")), url, str(journal), str(tmp_path / "go")]
    victim, other = subprocess.Popen(helper), subprocess.Popen(helper)
    while (begun := journal.read_text()).count("begin") < count // 3 or begun.count(f":{victim.pid}:") < 20:
        assert (victim.poll(), other.poll()) == (None, None)
        time.sleep(0.005)
    killed = time.monotonic()
    victim.kill()
    victim.wait()
    (tmp_path / "go").touch()
    assert other.wait(300) == 0
    assert store.queue.counts() == {"done": count}
    running: dict[str, str] = {}
    lines = [line.split() for line in journal.read_text().splitlines()]
    for at, what, job, owner in sorted(lines, key=lambda line: float(line[0])):
        if what == "end":
            assert running.pop(job) == owner
            continue
        if job in running:  # that of the one who was killed, and not before
            assert f":{victim.pid}:" in running[job]
            assert float(at) > killed
        running[job] = owner
    assert running == {}
    assert {owner for *_, owner in lines if f":{victim.pid}:" not in owner} != set()
    outcomes = [try_.outcome for try_ in store.queue.attempts()]
    assert (outcomes.count("done"), outcomes.count("lost")) == (count, len(outcomes) - count)
    assert outcomes.count("lost") <= 1
