from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hub.dispatch import Counts, dispatch
from hub.domain import Failure, Job, JobResult
from hub.errors import StoreError, UsageError
from hub.planner import plan
from hub.scheduling import Plan
from hub.store import Store


@dataclass
class Diary:
    """Writes down what it is told; `at_start` is called for each job that starts."""

    lines: list[tuple[str, str]] = field(default_factory=list)
    at_start: Callable[[Job], None] = lambda job: None

    def started(self, job: Job) -> None:
        self.lines.append(("started", job.label))
        self.at_start(job)

    def finished(self, job: Job, result: JobResult) -> None:
        self.lines.append(("finished", job.label))

    def failed(self, job: Job, failure: Failure) -> None:
        self.lines.append((failure.error, job.label))


def states(store: Store) -> dict[str, str]:
    return {record.job.label: record.state for record in store.jobs()}


@pytest.fixture
def planned(store: Store, words: Any) -> Callable[..., Plan]:
    """Plans one model with recipes of these bits, and records it as the commands do."""

    def make(*bits: int, models: int = 1, retry_failed: bool = False) -> Plan:
        refs = [words.model(f"m{i}") for i in range(models)]
        done, failed = store.done(), store.failed_attempts()
        made = plan(refs, [words.recipe(b) for b in bits], words.protocol, done, failed=failed, retry_failed=retry_failed)
        store.record_plan(made)
        return made

    return make


def test_the_whole_plan_is_done_and_doing_it_again_is_nothing(store: Store, farm: Any, planned: Any) -> None:
    diary = Diary()
    assert dispatch(planned(4, 8, models=2), farm, store, diary, workers=1) == Counts(done=10, failed=0, skipped=0)
    assert set(states(store).values()) == {"done"}
    first, second = "measure m0 base", "press m0 round-w4"
    assert diary.lines[:4] == [("started", first), ("finished", first), ("started", second), ("finished", second)]
    again = planned(4, 8, models=2)
    assert (again.jobs, again.done) == ((), 10)
    assert dispatch(again, None, store, diary, workers=1) == Counts(done=0, failed=0, skipped=0)


def test_jobs_without_a_farm_are_an_error(store: Store, planned: Any) -> None:
    with pytest.raises(UsageError):
        dispatch(planned(4), None, store, Diary(), workers=1)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_order_and_solitude(store: Store, farm: Any, planned: Any, workers: int) -> None:
    farm.pause = 0.15
    dispatch(planned(2, 4, 8, models=2), farm, store, Diary(), workers=workers)
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
    assert most <= workers
    assert workers == 1 or most >= 2


def test_a_failed_job_is_a_result_and_only_what_needs_it_is_skipped(store: Store, farm: Any, planned: Any) -> None:
    diary = Diary()
    counts = dispatch(planned(0, 4, 17), farm, store, diary, workers=2)
    assert counts == Counts(done=3, failed=2, skipped=2)
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


@pytest.mark.parametrize("refused", ["base", "variant", "both"])
def test_a_further_protocol_that_fails_stops_nothing_else(store: Store, farm: Any, words: Any, refused: str) -> None:
    further = replace(words.protocol, name="tasks", quality=None)

    class WithoutTasks:
        """The farm, but for the further protocol of the base, the variant, or both."""

        def run(self, job: Job, *, folder: Path | None = None) -> JobResult | Failure:
            of = "variant" if job.recipe else "base"
            return words.failure(job) if job.protocol == further and refused in (of, "both") else farm.run(job, folder=folder)

    made = plan([words.model()], [words.recipe(4)], words.protocol, (), further=[further])
    store.record_plan(made)
    dispatch(made, WithoutTasks(), store, Diary(), workers=1)
    done = [(record.job.kind, record.job.recipe is None) for record in store.jobs() if record.job.protocol != further]
    assert done == [("measure", True), ("press", False), ("measure", False)]
    assert {record.state for record in store.jobs() if record.job.protocol != further} == {"done"}
    tasks = ["done" if record.state == "done" else "not done" for record in store.jobs() if record.job.protocol == further]
    assert tasks == {"base": ["not done"] * 2, "variant": ["done", "not done"], "both": ["not done"] * 2}[refused]


def test_failures_for_good_are_not_tried_again_unless_asked(store: Store, farm: Any, planned: Any) -> None:
    dispatch(planned(0), farm, store, Diary(), workers=1)
    assert planned(0).jobs == ()
    assert "measure m0 round-w0" not in states(store)
    counts = dispatch(planned(0, retry_failed=True), farm, store, Diary(), workers=1)
    assert counts == Counts(done=0, failed=1, skipped=1)
    assert [record.attempts for record in store.jobs() if record.state == "failed"] == [2]


def test_what_the_machine_is_at_fault_for_is_tried_three_times(store: Store, farm: Any, planned: Any, words: Any) -> None:
    farm.folder.write_text("a file where the farm wants a folder")
    tries = 0
    while jobs := planned(4).jobs:
        tries += 1
        dispatch(Plan(jobs=jobs, refusals=(), done=0), farm, store, Diary(), workers=1)
        assert tries < 10
    assert tries == 3
    (failure,) = [record.failure for record in store.jobs() if record.failure]
    assert (failure.error, failure.retryable) == ("NotADirectoryError", True)


def test_nothing_of_a_base_that_cannot_be_measured_is_pressed(store: Store, farm: Any, planned: Any) -> None:
    made = planned(4, 8)
    base = made.jobs[0]
    run = farm.run
    farm.run = lambda job, folder=None: failure(job) if job == base else run(job)
    assert dispatch(made, farm, store, Diary(), workers=2) == Counts(done=0, failed=1, skipped=4)


def failure(job: Job) -> Failure:
    return Failure(job_id=job.id, error="BadCheckpoint", reason="truncated", hint="", log_tail="", seconds=0.1, retryable=False)


def test_a_result_that_makes_no_sense_is_a_failure(store: Store, farm: Any, planned: Any) -> None:
    run = farm.run
    farm.run = lambda job, folder=None: replace(run(job), measurements=()) if job.recipe and job.kind == "measure" else run(job)
    assert dispatch(planned(4), farm, store, Diary(), workers=1) == Counts(done=2, failed=1, skipped=0)
    (failed,) = [record.failure for record in store.jobs() if record.failure]
    assert failed.error == "BadDocument"


def test_jobs_that_another_has_done_or_is_doing_are_skipped(store: Store, farm: Any, planned: Any, words: Any) -> None:
    made = planned(4, 8)
    by_label = {job.label: job for job in made.jobs}
    base, four = by_label["measure m0 base"], by_label["press m0 round-w4"]
    store.start(base)
    store.finish(base, farm.run(base))
    store.start(four)
    assert dispatch(made, farm, store, Diary(), workers=1) == Counts(done=2, failed=0, skipped=3)
    assert states(store)["press m0 round-w4"] == "running"


def test_an_interruption_puts_running_jobs_back_and_drops_what_they_bring(store: Store, farm: Any, planned: Any) -> None:
    farm.pause = 1.5

    def interrupt(job: Job) -> None:
        if job.label == "press m0 round-w8":
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        dispatch(planned(4, 8), farm, store, Diary(at_start=interrupt), workers=2)
    assert time.monotonic() - began < 5
    assert states(store) == {
        "measure m0 base": "done",
        "press m0 round-w4": "planned",
        "measure m0 round-w4": "planned",
        "press m0 round-w8": "planned",
        "measure m0 round-w8": "planned",
    }
    time.sleep(1.7)
    assert {record.attempts for record in store.jobs() if record.state == "planned"} == {0}
    farm.pause = 0
    assert dispatch(planned(4, 8), farm, store, Diary(), workers=2) == Counts(done=4, failed=0, skipped=0)


def test_a_progress_that_raises_leaves_no_job_running(store: Store, farm: Any, planned: Any) -> None:
    def broken(job: Job) -> None:
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        dispatch(planned(4), farm, store, Diary(at_start=broken), workers=1)
    assert set(states(store).values()) == {"planned"}


def test_a_store_that_fails_is_no_failure_of_the_job(store: Store, farm: Any, planned: Any, tmp_path: Path) -> None:
    made = planned(4)
    database = tmp_path / "modelpress.db"

    def spoil(job: Job) -> None:
        import sqlite3

        with sqlite3.connect(database) as connection:
            connection.execute("DROP VIEW v_results")
            connection.execute("DROP TABLE measurements")

    with pytest.raises(StoreError):
        dispatch(made, farm, store, Diary(at_start=spoil), workers=1)
    assert set(states(store).values()) == {"planned"}


DISPATCHER = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

spec = spec_from_file_location("conftest", sys.argv[1])
conftest = module_from_spec(spec)
sys.modules["conftest"] = conftest
spec.loader.exec_module(conftest)

from hub.dispatch import dispatch
from hub.planner import plan
from hub.store import Store

class Lines:
    def started(self, job): print("started", job.label, flush=True)
    def finished(self, job, result): print("finished", job.label, flush=True)
    def failed(self, job, failure): print("failed", job.label, failure.reason, flush=True)

words = conftest.Words()
farm = conftest.RoundingFarm(Path(sys.argv[3]), pause=0.05)
with Store(sys.argv[2]) as store:
    recovered = store.recover()
    made = plan([words.model()], [words.recipe(bits) for bits in (2, 4, 8)], words.protocol, store.done(), failed=store.failed_attempts())
    store.record_plan(made)
    print("recovered", recovered, "left", len(made.jobs), flush=True)
    print(dispatch(made, farm, store, Lines(), workers=2), flush=True)
"""


@pytest.mark.integration
def test_kill_9_and_again_until_it_is_done(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DISPATCHER, str(Path(__file__).with_name("conftest.py")), url, str(tmp_path / "artifacts")]
    finished: list[str] = []
    for victim in ("press tiny round-w2", "measure tiny round-w2", "press tiny round-w8"):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            if line == f"started {victim}\n":
                child.kill()
        child.wait()
        assert child.returncode == -signal.SIGKILL
    with Store(url) as store:
        finished = [record.job.label for record in store.jobs() if record.state == "done"]
        assert "running" in states(store).values()
    last = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not any(f"started {label}\n" in last for label in finished)
    assert last.endswith("failed=0, skipped=0)\n")
    with Store(url) as store:
        assert set(states(store).values()) == {"done"}
        assert [len(record.measurements) for record in store.variants()] == [2, 2, 2]
