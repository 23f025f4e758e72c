"""The local farm with real processes: results, limits, deaths, and no orphan whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from hub.codec import from_json, to_json
from hub.domain import Failure, Job, JobOrder, JobResult, ModelRef, Workspace
from hub.errors import JobDied
from hub.protocol import Memory, Quality, Speed
from runners import protocols
from runners.farm.local import LocalFarm, _Parent

pytestmark = [pytest.mark.integration, pytest.mark.shared]

SHORT = replace(
    protocols.load(protocols.QUICK),
    quality=Quality(sequence_length=64, windows=2),
    speed=Speed(batches=(1,), contexts=(16,), modes=("eager",), new_tokens=2, repeats=6, seconds=0.0, warmup=1),
    memory=Memory(contexts=(64,), loads=2),
)
assert SHORT.speed
ENDLESS = replace(SHORT, name="endless", speed=replace(SHORT.speed, repeats=10**9, warmup=10**9))
BASE = ModelRef(repo_id="local/stories260K", sha="local-0")
QUICK = Job(kind="measure", base=BASE, protocol=SHORT)
LONG = Job(kind="measure", base=BASE, protocol=ENDLESS)


def workspace(folder: Path, **changes: float) -> Workspace:
    plain = Workspace(
        endpoint="http://127.0.0.1:9",
        cache_dir=str(folder / "cache"),
        artifacts_dir=str(folder / "artifacts"),
        threads=2,
        timeout_s=300.0,
        memory_bytes=0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFarm]:
    folder = tmp_path_factory.mktemp("farm")
    with LocalFarm(workspace(folder), folder / "logs") as farm:
        yield farm


def limited(farm: LocalFarm, **changes: float) -> LocalFarm:
    """The same warm parent with other limits."""
    other = LocalFarm(replace(farm._workspace, **changes), farm._log_dir)  # type: ignore[arg-type]
    other._parent = farm._alive()
    return other


def child_of(farm: LocalFarm) -> psutil.Process:
    """The process of the job that runs now."""
    parent = psutil.Process(farm._alive()._process.pid)
    for _ in range(3000):  # a parent imports for seconds, on a crowded machine for minutes
        if children := parent.children():
            return children[0]
        time.sleep(0.1)
    raise AssertionError("no job was started")


def in_background(farm: LocalFarm, job: Job, folder: Path) -> tuple[threading.Thread, list[JobResult | Failure]]:
    found: list[JobResult | Failure] = []
    thread = threading.Thread(target=lambda: found.append(farm.run(job, folder=folder)))
    thread.start()
    return thread, found


def test_a_job_runs_with_two_threads_after_the_fork_and_the_parent_has_none(farm: LocalFarm, stories: Path) -> None:
    result = farm.run(QUICK, folder=stories)
    assert isinstance(result, JobResult), result
    assert result.job_id == QUICK.id
    assert {"perplexity", "decode_tokens_per_second", "peak_memory", "kv_cache_memory", "disk_size"} <= {
        m.metric for m in result.measurements
    }
    assert set(result.stages) == {"download", "load", "speed", "quality"}
    assert result.peak_memory_bytes > 1e8
    assert farm._parent is not None
    tasks = Path(f"/proc/{farm._parent._process.pid}/task")
    names = {(task / "comm").read_text().strip() for task in tasks.iterdir()} - {"jemalloc_bg_thd"}
    assert len([*tasks.iterdir()]) - 1 <= 1, names
    assert not psutil.Process(farm._parent._process.pid).children()


def test_a_failure_keeps_class_hint_and_log(farm: LocalFarm) -> None:
    failure = farm.run(QUICK)
    assert isinstance(failure, Failure)
    assert (failure.job_id, failure.error, failure.retryable) == (QUICK.id, "BadDocument", False)
    assert "Traceback" in failure.log_tail
    assert failure.hint


def test_too_long_and_too_much_memory_are_failures_of_the_job(farm: LocalFarm, stories: Path) -> None:
    late = limited(farm, timeout_s=1.0).run(LONG, folder=stories)
    assert isinstance(late, Failure)
    assert (late.error, late.retryable) == ("TimedOut", True)
    fat = limited(farm, memory_bytes=50 * 2**20).run(LONG, folder=stories)
    assert isinstance(fat, Failure)
    assert fat.error == "OutOfMemory"
    assert "0.05 GiB" in fat.reason
    assert farm._parent is not None
    assert not psutil.Process(farm._parent._process.pid).children()


def test_a_dispatcher_shortens_the_time_of_a_job_and_never_lengthens_it(farm: LocalFarm, stories: Path) -> None:
    short = limited(farm, timeout_s=1.0).run(LONG, folder=stories, timeout_s=600.0)
    shorter = farm.run(LONG, folder=stories, timeout_s=1.0)
    assert isinstance(short, Failure)
    assert isinstance(shorter, Failure)
    assert short.error == shorter.error == "TimedOut"
    assert "longer than 1 s" in short.reason
    assert "longer than 1 s" in shorter.reason


def test_a_job_is_told_how_sparing_to_be(farm: LocalFarm, stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    orders: list[JobOrder] = []
    run = _Parent.run

    def reading(self: _Parent, order: str, *rest: Any) -> Any:
        orders.append(from_json(JobOrder, order))
        return run(self, order, *rest)

    monkeypatch.setattr(_Parent, "run", reading)
    farm.run(QUICK, economy=2, timeout_s=9.0)
    assert [(order.economy, order.workspace.timeout_s) for order in orders] == [(2, 9.0)]


def test_a_cancelled_job_says_so_and_another_goes_on(farm: LocalFarm, stories: Path, tmp_path: Path) -> None:
    thread, found = in_background(farm, LONG, stories)
    child = child_of(farm)
    assert Path(f"/proc/{child.pid}/oom_score_adj").read_text() == "800\n"  # a system without memory kills it first
    waiting, never = in_background(farm, replace(LONG, subject="waits"), stories)  # it measures too, so it waits for the first to end
    farm.cancel("no such job")
    early = threading.Event()
    early.set()
    with pytest.raises(JobDied, match="on request"):  # it was cancelled while the warm parent was waited for: it never starts
        farm._alive().run("no order", tmp_path / "log", tmp_path / "result", farm._workspace, early)
    for job in (replace(LONG, subject="waits"), LONG):
        while job.id not in farm._ends:
            time.sleep(0.01)
        farm.cancel(job.id)
    for one in (waiting, thread):
        one.join(60)
    child.wait(60)
    for failure in (found[0], never[0]):
        assert isinstance(failure, Failure)
        assert (failure.category, failure.reason) == ("killed", "The job was ended on request.")
    assert isinstance(farm.run(QUICK, folder=stories), JobResult)


def test_no_job_of_another_dispatcher_runs_beside_a_measuring_one(farm: LocalFarm, stories: Path) -> None:
    """Another process with the same folder is another open file to the lock, as another farm is."""
    other = limited(farm)
    thread, _ = in_background(farm, LONG, stories)
    child_of(farm)
    press = Job(kind="inspect", base=BASE, subject="0")
    beside, found = in_background(other, press, stories)
    beside.join(2)
    assert beside.is_alive()
    farm.cancel(LONG.id)
    thread.join(60)
    beside.join(60)
    assert found


def test_a_warm_job_starts_sooner_than_a_cold_one(farm: LocalFarm, stories: Path, tmp_path: Path) -> None:
    order = to_json(JobOrder(job=QUICK, workspace=workspace(tmp_path), folder=str(stories)))
    farm.run(QUICK, folder=stories)  # the warm parent has imported by then
    began = time.monotonic()
    cold = subprocess.run([sys.executable, "-m", "runners"], input=order, text=True, capture_output=True, check=True)
    between = time.monotonic()
    warm = farm.run(QUICK, folder=stories)
    ended = time.monotonic()
    done = from_json(JobResult, cold.stdout)
    assert isinstance(warm, JobResult)
    cold_start, warm_start = between - began - done.seconds, ended - between - warm.seconds
    print(f"from order to work, and from its end to its result: warm / cold = {warm_start / cold_start:.3f}")
    print(f"a whole small measurement: warm / cold = {(ended - between) / (between - began):.2f}")
    assert warm_start < cold_start


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_job_names_the_signal(farm: LocalFarm, stories: Path, number: signal.Signals) -> None:
    thread, found = in_background(farm, LONG, stories)
    child_of(farm).send_signal(number)
    thread.join(60)
    assert isinstance(found[0], Failure)
    assert (found[0].error, found[0].retryable) == ("JobDied", True)
    assert number.name in found[0].reason


def test_a_parent_that_dies_takes_its_job_along_and_is_replaced(farm: LocalFarm, stories: Path) -> None:
    thread, found = in_background(farm, LONG, stories)
    job = child_of(farm)
    assert farm._parent is not None
    os.kill(farm._parent._process.pid, signal.SIGKILL)
    thread.join(60)
    assert isinstance(found[0], Failure)
    assert found[0].error == "JobDied"
    job.wait(60)
    assert isinstance(farm.run(QUICK, folder=stories), JobResult)


def test_no_token_but_the_readers_reaches_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "writer")
    for name in ("MODELPRESS_HUB__TOKEN", "modelpress_hub__token", "ModelPress_Hub__Token"):
        monkeypatch.setenv(name, "writer")
    assert "writer" not in LocalFarm(workspace(tmp_path), tmp_path)._environment().values()
    assert LocalFarm(workspace(tmp_path), tmp_path, read_token="reader")._environment()["HF_TOKEN"] == "reader"


SCRIPT = """
import sys, threading, time
from pathlib import Path
from hub.codec import from_json
from hub.domain import Job, Workspace
from runners.farm.local import LocalFarm
space, job, folder, logs = sys.argv[1:]
farm = LocalFarm(from_json(Workspace, space), Path(logs)).__enter__()
threading.Thread(target=lambda: farm.run(from_json(Job, job), folder=Path(folder)), daemon=True).start()
while farm._parent is None:
    time.sleep(0.01)
print(farm._parent._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("while_importing", [True, False])
def test_nothing_survives_the_farm_killed(tmp_path: Path, stories: Path, while_importing: bool) -> None:
    command = [sys.executable, "-c", SCRIPT, to_json(workspace(tmp_path)), to_json(LONG), str(stories), str(tmp_path / "logs")]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert owner.stdout is not None
    parent = psutil.Process(int(owner.stdout.readline()))
    children = []
    while not while_importing and not (children := parent.children(recursive=True)):
        time.sleep(0.1)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    _, alive = psutil.wait_procs([parent, *children], timeout=120)
    assert not alive
