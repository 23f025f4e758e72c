from __future__ import annotations

import itertools
import logging
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hub import dispatch as loop
from hub import owners
from hub.budget import Budget
from hub.dispatch import SOON_S, Counts, dispatch
from hub.domain import Failure, Job, JobResult
from hub.errors import HubUnreachable, JobDied, OutOfMemory, StoreError, TimedOut
from hub.scheduling import Plan
from hub.settings import BudgetSettings
from hub.settling import DEADLY, OVERRUNS
from hub.spool import Spool
from hub.store import Store


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others do is noticed sooner than an operator needs."""
    monkeypatch.setattr(loop, "_LOOK_S", 0.2)


@dataclass
class Diary:
    """Writes down what it is told; `at_start` is called for each job that starts, `at_wait` when it is waited, `at_end` when one ends."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    at_start: Callable[[Job], None] = lambda job: None
    at_wait: Callable[[], None] = lambda: None
    at_end: Callable[[], None] = lambda: None

    def started(self, job: Job) -> None:
        self.lines.append(("started", job.label))
        self.at_start(job)

    def finished(self, job: Job, result: JobResult) -> None:
        self.lines.append(("finished", job.label))

    def failed(self, job: Job, failure: Failure) -> None:
        self.lines.append((failure.error, job.label))

    def ended(self, job: Job, why: str) -> None:
        self.lines.append((why, job.label))
        self.at_end()

    def waiting(self, why: str) -> None:
        self.lines.append(("waiting", why))
        self.at_wait()

    def said(self, word: str) -> list[str]:
        return [label for what, label in self.lines if what.startswith(word)]


def states(store: Store) -> dict[str, str]:
    return {record.job.label: record.state for record in store.jobs()}


@pytest.fixture
def planned(store: Store, words: Any) -> Callable[..., dict[str, Job]]:
    """Records a plan, as the planner makes it, of models x recipes of these bits; returns its jobs by label."""

    def make(*bits: int, models: int = 1) -> dict[str, Job]:
        needs: dict[str, frozenset[str]] = {}
        jobs: list[Job] = []
        for number in range(models):
            model = words.model(f"m{number}")
            base = words.measure(model)
            needs[base.id] = frozenset()
            jobs.append(base)
            for recipe in map(words.recipe, bits):
                press, measure = words.press(model, recipe), words.measure(model, recipe)
                needs |= {press.id: frozenset({base.id}), measure.id: frozenset({base.id, press.id})}
                jobs += [press, measure]
        done = store.done()
        due = tuple(job for job in jobs if job.id not in done)
        store.record_plan(Plan(jobs=due, refusals=(), done=0, needs={job.id: needs[job.id] for job in due}))
        return {job.label: job for job in jobs}

    return make


def fails(farm: Any, label: str, *errors: Exception) -> None:
    """Have the job of this label fail so, once for each error, before it goes through."""
    run, left = farm.run, list(errors)

    def failing(job: Job, **words: Any) -> JobResult | Failure:
        if job.label == label and left:
            farm.economies.append((job.label, words["economy"]))
            raise left.pop(0)
        return run(job, **words)  # type: ignore[no-any-return]

    farm.run = failing


def meet(farm: Any, kind: str) -> None:
    """Have the first two jobs of a kind last until both have begun, however busy the machine is."""
    both, calls = threading.Barrier(2), itertools.count()

    def during(job: Job) -> None:
        if job.kind == kind and next(calls) < 2:
            both.wait(120)

    farm.during = during


def test_all_is_done_and_doing_it_again_is_nothing(store: Store, farm: Any, planned: Any) -> None:
    planned(4, 8, models=2)
    diary = Diary()
    assert dispatch(farm, store, diary) == Counts(done=10)
    assert set(states(store).values()) == {"done"}
    first, second = "measure m0 base", "press m0 round-w4"
    assert diary.lines[:4] == [("started", first), ("finished", first), ("started", second), ("finished", second)]
    bases = [label.split()[1] for label in diary.said("started")]
    assert bases == sorted(bases)  # jobs of one base are kept together
    assert dispatch(farm, store, Diary()) == Counts()


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_order_and_solitude(store: Store, farm: Any, planned: Any, slots: int) -> None:
    farm.slots = slots
    if slots > 1:
        farm.pause = 0.05  # so that what must not run beside another job would be seen there
        meet(farm, "press")
    planned(2, 4, 8, models=2)
    dispatch(farm, store, Diary())
    running: list[Job] = []
    ended: set[str] = set()
    most = 0
    for event, job in farm.events:
        if event == "begin":
            running.append(job)
            if job.recipe:
                assert f"measure {job.base.name} base" in ended
                assert job.kind == "press" or f"press {job.base.name} {job.recipe.name}" in ended
        else:
            running.remove(job)
            ended.add(job.label)
        most = max(most, len(running))
        assert len(running) == 1 or all(one.kind == "press" for one in running)
    assert len(ended) == 14
    assert most <= slots
    assert slots == 1 or most >= 2


def test_a_farm_of_many_machines_measures_beside_others(store: Store, farm: Any, planned: Any) -> None:
    farm.slots, farm.exclusive_measures = 4, False
    meet(farm, "measure")
    planned(4, models=2)
    dispatch(farm, store, Diary())
    assert [event for event, _ in farm.events[:3]] == ["begin", "begin", "end"]


def test_a_failed_job_is_a_result_and_only_what_needs_it_is_left(store: Store, farm: Any, planned: Any) -> None:
    farm.slots = 2
    planned(0, 4, 17)
    diary = Diary()
    assert dispatch(farm, store, diary) == Counts(done=3, failed=2, not_started={"blocked": 2})
    assert states(store) == {
        "measure m0 base": "done",
        "press m0 round-w0": "failed",
        "measure m0 round-w0": "planned",
        "press m0 round-w4": "done",
        "measure m0 round-w4": "done",
        "press m0 round-w17": "failed",
        "measure m0 round-w17": "planned",
    }
    failures = {record.job.label: record.failure for record in store.jobs() if record.failure}
    known, unforeseen = failures["press m0 round-w0"], failures["press m0 round-w17"]
    assert (known.error, known.reason, known.hint, known.retryable) == ("UnfitModel", "0 bits hold no number", "take at least 1", False)
    assert (unforeseen.error, unforeseen.reason, unforeseen.retryable) == ("KeyError", "unexpected KeyError: 17", False)
    assert "in _press" in unforeseen.log_tail
    assert ("UnfitModel", "press m0 round-w0") in diary.lines


def test_nothing_of_a_base_that_cannot_be_measured_is_pressed_and_other_bases_are(store: Store, farm: Any, planned: Any) -> None:
    planned(4, models=2)
    fails(farm, "measure m0 base", KeyError("no such layer"))
    assert dispatch(farm, store, Diary()) == Counts(done=3, failed=1, not_started={"blocked": 2})


def test_the_machines_faults_are_tried_again_later_up_to_a_limit(store: Store, farm: Any, planned: Any, words: Any) -> None:
    planned(4, models=2)
    fails(farm, "press m0 round-w4", JobDied("killed"))
    fails(farm, "press m1 round-w4", JobDied("killed"), JobDied("killed"))
    diary = Diary()
    assert dispatch(farm, store, diary, max_attempts=2) == Counts(done=4, failed=1, retried=2, not_started={"blocked": 1})
    others = diary.said("started")
    assert others.index("measure m1 base") < len(others) - 1 - others[::-1].index("press m0 round-w4")  # nobody waits for it
    assert diary.said("waiting")
    tries = [
        (attempt.number, attempt.outcome, attempt.category)
        for attempt in store.queue.attempts()
        if attempt.job.label == "press m1 round-w4"
    ]
    assert tries == [(1, "failed", "killed"), (2, "failed", "killed")]


def test_a_hub_that_asks_to_be_left_alone_is(store: Store, farm: Any, planned: Any) -> None:
    planned(4)
    slower = HubUnreachable("it asks to slow down")
    slower.retry_after = SOON_S + 60
    fails(farm, "measure m0 base", slower)
    assert dispatch(farm, store, Diary()) == Counts(retried=1, not_started={"put_off": 1, "blocked": 2})


def test_out_of_memory_is_tried_again_with_less_each_time(store: Store, farm: Any, planned: Any) -> None:
    planned(4)
    fails(farm, "press m0 round-w4", OutOfMemory("too much"), OutOfMemory("still"), OutOfMemory("even now"))
    counts = dispatch(farm, store, Diary(), max_attempts=9)
    assert counts == Counts(done=1, failed=1, retried=2, not_started={"blocked": 1})
    assert [economy for label, economy in farm.economies if label == "press m0 round-w4"] == [0, 1, 2]


def test_a_result_that_makes_no_sense_is_a_failure(store: Store, farm: Any, planned: Any) -> None:
    run = farm.run
    farm.run = lambda job, **_: replace(run(job), measurements=()) if job.recipe and job.kind == "measure" else run(job)
    planned(4)
    assert dispatch(farm, store, Diary()) == Counts(done=2, failed=1)
    (failed,) = [record.failure for record in store.jobs() if record.failure]
    assert failed.error == "BadDocument"


def test_what_the_database_never_takes_is_a_failure_and_the_rest_goes_on(
    store: Store, farm: Any, planned: Any, words: Any, url: str, tmp_path: Path
) -> None:
    """Each job comes to an end at once, though its result, or what it says of its failure, can be kept at no time."""
    jobs = planned(4, models=5)
    run = farm.run

    def senseless(job: Job, **_: Any) -> JobResult | Failure:
        result = run(job)
        match job.label:
            case "measure m0 base":
                return replace(result, seconds=math.nan)
            case "press m1 round-w4":
                return replace(result, peak_memory_bytes=2**63)
            case "measure m2 round-w4":
                return replace(result, measurements=tuple(replace(number, samples=2**63) for number in result.measurements))
            case "press m3 round-w4":
                return replace(words.failure(job), seconds=math.nan)
        return result  # type: ignore[no-any-return]

    farm.run = senseless
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        mine = jobs["measure m4 base"].id
        never = "BEGIN SELECT RAISE(ABORT, 'this one never'); END"
        connection.execute(f"CREATE TRIGGER never BEFORE INSERT ON measurements WHEN NEW.job_id = '{mine}' {never}")
    spool = Spool(tmp_path / "spool")
    assert dispatch(farm, store, Diary(), spool=spool, patience_s=600.0) == Counts(done=4, failed=5, not_started={"blocked": 6})
    reasons = {record.job.label: record.failure.reason for record in store.jobs() if record.failure and record.failure.category == "bug"}
    assert "nan as the seconds" in reasons["measure m0 base"]
    assert "9223372036854775808 as its peak memory" in reasons["press m1 round-w4"]
    assert "the database cannot take this" in reasons["measure m2 round-w4"]
    assert "the database cannot take this" in reasons["press m3 round-w4"]
    assert reasons["measure m4 base"] == "the database cannot take this: this one never"
    assert not list((tmp_path / "spool").glob("*.*"))


def test_what_the_budget_refuses_is_left_and_what_fits_is_done(store: Store, farm: Any, planned: Any) -> None:
    planned(4, 8)
    counts = dispatch(farm, store, Diary(), budget=Budget(BudgetSettings(jobs=2)))
    assert (counts.done, counts.not_started) == (2, {"budget": 2, "blocked": 1})
    assert "of 2 jobs" in counts.reasons["budget"]
    assert {record.attempts for record in store.jobs() if record.state == "planned"} == {0}
    assert dispatch(farm, store, Diary()).done == 3


def test_what_others_run_counts_in_the_budget_until_it_has_ended(store: Store, farm: Any, planned: Any) -> None:
    planned(4, models=2)
    claim = store.queue.claim("elsewhere:1:1", kinds=("measure",), lease_s=600.0)
    assert claim
    diary = Diary()

    def let_go() -> None:
        assert not diary.lines[1:]
        store.queue.decline(claim.job, "elsewhere:1:1")

    diary.at_wait = let_go
    counts = dispatch(farm, store, diary, budget=Budget(BudgetSettings(jobs=1)))
    assert counts == Counts(done=1, not_started=counts.not_started, reasons=counts.reasons)
    assert "of 1 jobs" in counts.reasons["budget"]


def run_of(seconds: float, diary: Diary | None = None) -> Budget:
    """Let a run last so long; with a diary from its first job's start, so that a busy machine starts it too."""
    settings = BudgetSettings(wall_hours=seconds / 3600)
    if diary is None:
        return Budget(settings)
    begun: list[float] = []
    diary.at_start = lambda job: begun.append(time.monotonic())
    return Budget(settings, clock=lambda: time.monotonic() - begun[0] if begun else 0.0)


def test_a_job_that_the_budget_ends_is_put_back_and_never_its_own_failure(store: Store, farm: Any, planned: Any) -> None:
    farm.pause = 60.0
    planned(4)
    for _ in range(OVERRUNS):
        diary = Diary()
        counts = dispatch(farm, store, diary, budget=run_of(0.5, diary))
        assert counts == Counts(interrupted=1, not_started={"budget": 1, "blocked": 2}, reasons=counts.reasons)
        assert "the budget ended it" in counts.reasons["budget"]
        assert diary.said("started") == ["measure m0 base"]  # once only, though there was time left to begin it again
    tries = store.queue.attempts()
    assert [(one.outcome, one.category) for one in tries] == [("interrupted", "timed_out")] * OVERRUNS
    assert all("the budget ended it after" in one.reason for one in tries)
    assert [record.attempts for record in store.jobs()] == [0, 0, 0]
    diary = Diary()
    counts = dispatch(farm, store, diary, budget=run_of(0.4, diary))
    assert counts.reasons["budget"].startswith(f"the budget ended it {OVERRUNS} times")  # so it does not eat each run's time first
    assert len(store.queue.attempts()) == OVERRUNS
    farm.pause = 0.0
    assert dispatch(farm, store, Diary(), budget=run_of(3600)) == Counts(done=3)


def test_a_job_over_its_own_time_fails_of_it_under_a_budget_too(store: Store, farm: Any, planned: Any) -> None:
    planned(4)
    fails(farm, "measure m0 base", TimedOut("too long"), TimedOut("too long again"))
    assert dispatch(farm, store, Diary(), budget=run_of(3600)) == Counts(failed=1, retried=1, not_started={"blocked": 2})


def test_a_run_waits_no_longer_than_its_budget_lets_it_last(store: Store, farm: Any, planned: Any) -> None:
    """For a job that is tried again later, for one that another dispatcher runs, and through a pause."""
    planned(4)
    fails(farm, "measure m0 base", *[HubUnreachable("away")] * 3)
    diary = Diary()
    assert dispatch(farm, store, diary, budget=run_of(2.0, diary)) == Counts(retried=1, not_started={"put_off": 1, "blocked": 2})
    store.queue.retry([store.jobs()[0].job.id])
    planned(4, models=2)
    assert store.queue.claim("elsewhere:1:1", kinds=("measure",), lease_s=600.0)
    for state in ("elsewhere", "paused"):
        stop = threading.Event()
        hangs = threading.Timer(300.0, stop.set)
        hangs.start()
        counts = dispatch(farm, store, Diary(), budget=run_of(1.0), stop=stop)
        hangs.cancel()
        assert not stop.is_set(), f"it waited for {state}"
        store.queue.pause("away")
    assert counts.reasons == {"paused": "away"}


def test_a_pause_is_waited_for_and_lets_what_runs_go_on(store: Store, farm: Any, planned: Any) -> None:
    planned(4)
    diary = Diary(at_start=lambda job: store.queue.pause("the operator sleeps"))
    diary.at_wait = lambda: threading.Timer(0.3, resume).start()

    def resume() -> None:
        diary.at_start = lambda job: None
        store.queue.resume()

    assert dispatch(farm, store, diary) == Counts(done=3)
    assert diary.lines[:3] == [
        ("started", "measure m0 base"),
        ("finished", "measure m0 base"),
        ("waiting", "paused: the operator sleeps; modelpress resume lets it go on"),
    ]


def test_a_pause_without_end_ends_the_dispatch(store: Store, farm: Any, planned: Any) -> None:
    planned(4)
    store.queue.pause("away")
    assert dispatch(farm, store, Diary(), pause_s=0.1) == Counts(not_started={"paused": 1, "blocked": 2}, reasons={"paused": "away"})


def test_a_cancelled_job_is_ended_and_the_others_go_on(store: Store, farm: Any, planned: Any) -> None:
    jobs = planned(4, 8)
    farm.pause = 0.05

    def cancel(job: Job) -> None:
        farm.pause = 0.05
        if job.label == "press m0 round-w4":
            farm.pause = 60.0
            store.queue.cancel([job.id])

    counts = dispatch(farm, store, Diary(at_start=cancel), lease_s=1.0)
    assert counts == Counts(done=3, cancelled=1, not_started={"blocked": 1})
    assert states(store)[jobs["press m0 round-w4"].label] == "cancelled"
    (ended,) = [try_ for try_ in store.queue.attempts() if try_.outcome == "interrupted"]
    assert ended.reason == "the job was ended on request"  # and did not run to its end


@pytest.mark.parametrize("how", ["cancelled", "stopped"])
def test_an_end_that_was_asked_for_before_the_farm_knew_of_the_job_is_asked_for_again(
    store: Store, farm: Any, planned: Any, how: str
) -> None:
    """A thread hands the job over, and a farm leaves alone what it does not run yet."""
    (job,) = (job for job in planned().values())
    stop, told, cancel = threading.Event(), [], farm.cancel
    farm.pause = 60.0
    farm.cancel = lambda job_id: cancel(job_id) if told else told.append(job_id)
    diary = Diary(at_start=lambda job: store.queue.cancel([job.id]) if how == "cancelled" else stop.set())
    dispatch(farm, store, diary, lease_s=1.0, stop=stop)
    assert told == [job.id]
    assert [event for event, _ in farm.events] == ["begin", "end"], "it was not left behind"
    assert states(store)[job.label] == ("cancelled" if how == "cancelled" else "planned")  # waited for to its end, it would be done


def test_what_a_job_brings_whose_claim_is_lost_is_dropped(store: Store, farm: Any, planned: Any, url: str) -> None:
    planned(4)

    def steal(job: Job) -> None:
        if job.label == "press m0 round-w4" and not stolen:
            stolen.append(job)
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
                connection.execute("UPDATE jobs SET owner = 'elsewhere:1:1', lease_until = 0 WHERE id = ?", (job.id,))

    stolen: list[Job] = []
    diary = Diary(at_start=steal)
    assert dispatch(farm, store, diary) == Counts(done=3, lost=1)  # the thief's lease ended long ago, so its job is done again
    assert diary.said("waiting")


def test_a_stop_ends_running_jobs_and_puts_them_back(store: Store, farm: Any, planned: Any) -> None:
    farm.pause, farm.slots, stop = 60.0, 2, threading.Event()

    def at_start(job: Job) -> None:
        farm.pause = 60.0 if job.kind == "press" else 0.0
        if job.label == "press m0 round-w8":
            stop.set()

    farm.pause = 0.0
    planned(4, 8)
    diary = Diary(at_start=at_start)
    assert dispatch(farm, store, diary, stop=stop) == Counts(done=1, interrupted=2, not_started={"ready": 2, "blocked": 2})
    assert {record.attempts for record in store.jobs() if record.state == "planned"} == {0}
    farm.pause = 0.0
    assert dispatch(farm, store, Diary()) == Counts(done=4)


def test_an_interruption_puts_running_jobs_back_and_drops_what_they_bring(store: Store, farm: Any, planned: Any) -> None:
    farm.slots, dropped = 2, threading.Event()
    farm.cancel = lambda job_id: None  # so that they bring something
    farm.during = lambda job: None if job.kind == "measure" else dropped.wait(300)

    def interrupt(job: Job) -> None:
        if job.label == "press m0 round-w8":
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    planned(4, 8)
    with pytest.raises(KeyboardInterrupt):
        dispatch(farm, store, Diary(at_start=interrupt))
    assert sorted(states(store).values()) == ["done", *["planned"] * 4]
    jobs = [thread for thread in threading.enumerate() if thread.name.startswith("job ")]
    dropped.set()
    for thread in jobs:  # what they bring, they bring now
        thread.join(60)
    assert {record.attempts for record in store.jobs() if record.state == "planned"} == {0}
    assert dispatch(farm, store, Diary()) == Counts(done=4)


def test_a_progress_that_raises_leaves_no_job_running(store: Store, farm: Any, planned: Any) -> None:
    def broken(job: Job) -> None:
        raise BrokenPipeError("nobody reads")

    planned(4)
    with pytest.raises(BrokenPipeError):
        dispatch(farm, store, Diary(at_start=broken))
    assert set(states(store).values()) == {"planned"}


@contextmanager
def broken(database: Path) -> Iterator[Callable[[], None]]:
    """Make the database refuse measurements, until the given function is called or the block ends."""

    def run(script: str) -> None:
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.executescript(script)

    run("CREATE TRIGGER broken BEFORE INSERT ON measurements BEGIN SELECT RAISE(ABORT, 'disk I/O error'); END")
    yield lambda: run("DROP TRIGGER IF EXISTS broken")
    run("DROP TRIGGER IF EXISTS broken")


def test_a_store_that_is_lost_for_a_while_loses_nothing(store: Store, farm: Any, planned: Any, tmp_path: Path) -> None:
    planned(4)
    diary = Diary()
    with broken(tmp_path / "modelpress.db") as mend:
        diary.at_start = lambda job: threading.Timer(0.5, mend).start()
        assert dispatch(farm, store, diary, patience_s=300.0) == Counts(done=3)
    assert [job.label for event, job in farm.events if event == "begin"].count("measure m0 base") == 1


def test_a_result_that_cannot_be_stored_is_kept_and_taken_in_by_the_next(store: Store, farm: Any, planned: Any, tmp_path: Path) -> None:
    planned(4)
    spool = Spool(tmp_path / "spool")
    with broken(tmp_path / "modelpress.db"), pytest.raises(StoreError):
        dispatch(farm, store, Diary(), patience_s=0.2, spool=spool)
    assert list((tmp_path / "spool").glob("*.json"))
    assert set(states(store).values()) == {"planned"}
    assert dispatch(farm, store, Diary(), spool=Spool(tmp_path / "spool")) == Counts(done=3)
    assert [job.label for event, job in farm.events if event == "begin"].count("measure m0 base") == 1
    assert not list((tmp_path / "spool").glob("*.json"))


@pytest.mark.parametrize("by", ["this dispatcher", "another"])
def test_a_kept_result_counts_once(store: Store, farm: Any, planned: Any, url: str, tmp_path: Path, by: str) -> None:
    """Its claim is lost while the database is away; then the spool has it stored, by whoever looks first."""
    planned()
    spool, taken = Spool(tmp_path / "spool"), []
    with broken(tmp_path / "modelpress.db") as mend:

        def lose() -> None:
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as connection, connection:
                connection.execute("UPDATE jobs SET state = 'planned', owner = NULL, not_before = 4e9")
            mend()
            if by == "another":
                taken.extend(spool.take_in(store))

        diary = Diary(at_end=lose)
        counts = dispatch(farm, store, diary, patience_s=0.1, spool=spool)
    assert counts == (Counts(done=1) if by == "this dispatcher" else Counts())
    assert len(taken) == (by == "another")
    assert states(store) == {"measure m0 base": "done"}
    assert [try_.outcome for try_ in store.queue.attempts()] == ["done"]


def test_a_document_that_cannot_be_read_holds_up_no_other_job(store: Store, farm: Any, planned: Any, url: str) -> None:
    """One of a job that was tried, and one of what is expected of a job that another dispatcher runs."""
    planned(4, models=3)
    tried = store.queue.claim(owners.own(), kinds=("measure",))
    assert tried
    store.queue.put_back(tried.job, owners.own())
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("""UPDATE jobs SET document = '{"kinder": 1}' WHERE id = ?""", (tried.job.id,))
    theirs = store.queue.claim("elsewhere:1:1", kinds=("measure",), lease_s=600.0)
    assert theirs
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
        connection.execute("UPDATE jobs SET expected = '{}' WHERE id = ?", (theirs.job.id,))
    diary = Diary(at_wait=lambda: store.queue.decline(theirs.job, "elsewhere:1:1"))
    assert dispatch(farm, store, diary, budget=Budget(BudgetSettings(jobs=5))) == Counts(done=3, not_started={"blocked": 4})
    assert [try_.job and try_.job.base.name for try_ in store.queue.attempts()] == [None, "m2", "m2", "m2"]


def test_leases_that_are_not_renewed_are_told_once(
    store: Store, farm: Any, planned: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planned()
    caplog.set_level(logging.DEBUG, logger="hub.leases")

    def rename(table: str, name: str) -> None:
        with closing(sqlite3.connect(tmp_path / "modelpress.db", timeout=60)) as connection:
            connection.execute(f"ALTER TABLE {table} RENAME TO {name}")

    def levels() -> list[int]:
        return [record.levelno for record in caplog.records if record.name == "hub.leases"]

    def wait(job: Job) -> None:
        until = time.monotonic() + 120
        while len(levels()) < 3 and time.monotonic() < until:
            time.sleep(0.01)
        rename("hidden", "controls")

    farm.during = wait
    assert dispatch(farm, store, Diary(at_start=lambda job: rename("controls", "hidden")), lease_s=0.4) == Counts(done=1)
    assert len(levels()) >= 3
    assert levels().count(logging.WARNING) == 1


def test_a_store_that_stays_broken_is_no_failure_of_the_job(store: Store, farm: Any, planned: Any, tmp_path: Path) -> None:
    planned(4)
    with broken(tmp_path / "modelpress.db"), pytest.raises(StoreError):
        dispatch(farm, store, Diary(), patience_s=0.2)
    assert set(states(store).values()) == {"planned"}


@pytest.mark.parametrize("most", [0, 5])
def test_two_dispatchers_share_the_work_and_the_budget(url: str, store: Store, farm: Any, planned: Any, most: int) -> None:
    farm.exclusive_measures = False
    planned(2, 4, 8, models=2)
    meet(farm, "measure")  # the first job of each ends when that of the other has begun

    def help_out(number: int) -> Counts:
        with Store(url) as other:
            return dispatch(farm, other, Diary(), owner=f"{owners.own()}{number}", budget=Budget(BudgetSettings(jobs=most)))

    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(help_out, range(2)))
    begun = [job.id for event, job in farm.events if event == "begin"]
    assert len(begun) == len(set(begun)) == sum(one.done for one in counts)
    assert all(one.done for one in counts)
    assert len(begun) <= (most or 14)
    if not most:
        assert set(states(store).values()) == {"done"}


def test_a_job_that_no_dispatcher_outlives_is_given_up_and_the_others_are_done(store: Store, farm: Any, planned: Any) -> None:
    planned(4, models=2)
    for _ in range(DEADLY):
        claim = store.queue.claim("nobody:1:1", kinds=("measure",), lease_s=-1.0)
        assert claim
        assert claim.job.label == "measure m0 base"
        store.recover()
    assert dispatch(farm, store, Diary()) == Counts(done=3, failed=1, not_started={"blocked": 2})
    (failed,) = [record for record in store.jobs() if record.state == "failed"]
    assert failed.failure
    assert failed.failure.reason.startswith(f"{DEADLY} dispatchers")
    store.queue.retry([failed.job.id])
    assert dispatch(farm, store, Diary()) == Counts(done=3)


DISPATCHER = """
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

spec = spec_from_file_location("conftest", sys.argv[1])
conftest = module_from_spec(spec)
sys.modules["conftest"] = conftest
spec.loader.exec_module(conftest)

from hub.dispatch import dispatch
from hub.store import Store

class Lines:
    def started(self, job): print("started", job.label, flush=True)
    def finished(self, job, result): print("finished", job.label, flush=True)
    def failed(self, job, failure): print("failed", job.label, failure.reason, flush=True)
    def ended(self, job, why): print("ended", job.label, why, flush=True)
    def waiting(self, why): print("waiting", why, flush=True)

farm = conftest.RoundingFarm(Path(sys.argv[3]), slots=2)
farm.during = lambda job: time.sleep(600) if job.label == sys.argv[4] else None
with Store(sys.argv[2]) as store:
    print("recovered", store.recover(), flush=True)
    print(dispatch(farm, store, Lines()), flush=True)
"""


def dispatcher(url: str, folder: Path, *, hangs: str = "") -> list[str]:
    """Return the command of a dispatcher; the job of the label `hangs` does not end."""
    return [sys.executable, "-c", DISPATCHER, str(Path(__file__).with_name("conftest.py")), url, str(folder / "artifacts"), hangs]


@pytest.mark.integration
def test_who_waits_for_another_dispatcher_does_its_job_when_that_is_killed(
    url: str, store: Store, farm: Any, planned: Any, tmp_path: Path
) -> None:
    planned(4)
    child = subprocess.Popen(dispatcher(url, tmp_path, hangs="measure m0 base"), stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("started"):
            break
    diary = Diary(at_wait=child.kill)
    assert dispatch(farm, store, diary) == Counts(done=3)
    assert diary.lines[0] == ("waiting", "other dispatchers run the last jobs, 1 of them")
    assert child.wait(60) == -signal.SIGKILL
    first = store.queue.attempts()[0]
    assert (first.outcome, first.job.label) == ("lost", "measure m0 base")


@pytest.mark.integration
def test_kill_9_and_again_until_it_is_done(url: str, store: Store, planned: Any, tmp_path: Path) -> None:
    planned(2, 4, 8)
    for victim in ("press m0 round-w2", "measure m0 round-w4"):
        child = subprocess.Popen(dispatcher(url, tmp_path, hangs=victim), stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            if line == f"started {victim}\n":
                child.kill()
        child.wait()
        assert child.returncode == -signal.SIGKILL
    finished = [record.job.label for record in store.jobs() if record.state == "done"]
    assert "running" in states(store).values()
    last = subprocess.run(dispatcher(url, tmp_path), capture_output=True, text=True, check=True).stdout
    assert not any(f"started {label}\n" in last for label in finished)
    assert set(states(store).values()) == {"done"}
    assert [len(record.measurements) for record in store.variants()] == [2, 2, 2]
    assert "lost" in {attempt.outcome for attempt in store.queue.attempts()}
