"""One fault at a time in the middle of a run: afterwards the end state equals that of an undisturbed run, row by row."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from . import faults
from .conftest import Folder
from .faults import Rows, Running, compare, database, end_state, fault, finish, leftovers, new_farm, query, serving

pytestmark = pytest.mark.integration
GOOD, BAD = ("good/qwen3-chat-1",), ("gated", "pickle-only")


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small hub, to be copied: one good model, and two that policy refuses."""
    return faults.plant(tmp_path_factory.mktemp("planted") / "hub", good=GOOD, bad=BAD)


@pytest.fixture(scope="session")
def calm(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The end state of an undisturbed run."""
    folder = new_farm(tmp_path_factory.mktemp("calm") / "farm", planted)
    with serving(folder):
        finish(folder)
    state = end_state(database(folder))
    assert [len(state[table]) for table in ("artifacts", "releases", "refusals")] == [1, 1, 2]
    assert {row[2] for row in state["jobs"]} == {"done"}
    return state


def test_one_other_digit_is_a_difference(calm: Rows) -> None:
    for table, rows in calm.items():
        assert not compare(calm, {**calm, table: list(reversed(rows))})
        assert compare(calm, {**calm, table: [*rows[:-1], (*rows[-1][:-1], "other")]})
        assert compare(calm, {**calm, table: [*rows, rows[-1]]})


@pytest.fixture
def farm(planted: Path, tmp_path: Path) -> Folder:
    return new_farm(tmp_path / "farm", planted)


def test_kill_9_of_the_hub_in_mid_upload(farm: Folder, calm: Rows) -> None:
    with serving(farm) as hub:
        fault(hub, "die", "/lfs/objects/", method="PUT", bytes=200_000)
        run = Running(farm)
        run.seen("publish:")
        faults.await_death(hub)
    with serving(farm):  # the same folder, on the same port
        assert run.end() in (0, 30), run.text
        finish(farm)
    assert compare(calm, database(farm)) == []
    with serving(farm) as hub:
        assert len(published_commits(hub, farm)) == 1


def published_commits(hub: faults.LocalHub, farm: Folder) -> list[str]:
    from huggingface_hub import HfApi

    ((repo_id,),) = query(farm, "select repo_id from releases")
    commits = HfApi(endpoint=hub.endpoint, token=False).list_repo_commits(str(repo_id))
    return [commit.title for commit in commits if "initial" not in commit.title.lower()]


def test_a_hub_that_misbehaves(farm: Folder, calm: Rows) -> None:
    with serving(farm) as hub:
        fault(hub, "status", "^/api/models$", method="GET", status=429, headers={"Retry-After": "1"})
        fault(hub, "status", "^/api/models/good/", method="GET", status=500)
        fault(hub, "cut", "/resolve/.*/model.safetensors", method="GET", bytes=100_000, after=1)
        fault(hub, "corrupt", "/resolve/.*/tokenizer.json", method="GET")
        fault(hub, "cut-upload", "/lfs/objects/", method="PUT", bytes=50_000)
        fault(hub, "status", "/info/lfs/objects/batch", status=429, headers={"Retry-After": "1"})
        fault(hub, "lost", "/commit/main", method="POST", status=500)
        run = Running(farm)
        code = run.end()
        unused = [rule for rule in faults.ask(hub, "GET") if not rule["used"]]
        assert not unused, run.text
        if code:
            assert code == 30, run.text
            finish(farm, "--retry-failed")
        assert len(published_commits(hub, farm)) == 1
    assert compare(calm, database(farm)) == []


def test_the_disk_full_while_saving(planted: Path, tmp_path: Path, calm: Rows) -> None:
    farm = new_farm(tmp_path / "farm", planted, max_attempts=1)
    with faults.small_disk(farm.press / "artifacts", "512k") as resize, serving(farm):
        if resize is None:
            pytest.skip("a small disk needs root and the right to mount")
        run = Running(farm)
        assert run.end() == 30, run.text
        assert query(farm, "select error, category from jobs where state = 'failed'") == [("OutOfDisk", "disk")]
        assert not leftovers(farm)
        resize("64m")
        finish(farm, "--retry-failed")
    assert compare(calm, database(farm)) == []


def test_the_database_locked_by_another_program_and_sigterm(farm: Folder, calm: Rows, tmp_path: Path) -> None:
    """Locked for less than the patience: the run waits. For longer: it says so, and loses nothing. A preempted run puts its work back."""
    with serving(farm):
        run = Running(farm)
        run.seen("done measure")
        with locked(farm):
            time.sleep(4)
        run.seen("done press")
        assert run.kill(signal.SIGTERM) == 19, run.text
        assert query(farm, "select count(*) from jobs where state = 'running' or owner is not null") == [(0,)]
        assert not leftovers(farm)
        (tmp_path / "sitecustomize.py").write_text("import hub.database\n\nhub.database.BUSY_SECONDS = 5\n")  # not half a minute
        with locked(farm):
            run = Running(farm, env={"PYTHONPATH": before_path(tmp_path)})
            assert run.end() == 16, run.text
        assert "held by another program" in run.text
        text = finish(farm)
    assert "[1/1] done measure" in text, "what was done was done again"
    assert compare(calm, database(farm)) == []


def locked(farm: Folder) -> closing[sqlite3.Connection]:
    connection = sqlite3.connect(database(farm), timeout=30, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return closing(connection)


SHIFT = """
import os, time
def shifted(real=time.time, path=os.environ["TEST_CLOCK"]):
    try:
        with open(path) as file:
            return real() + float(file.read() or 0)
    except OSError:
        return real()
time.time = shifted
"""


def test_kill_9_of_a_job_and_of_the_dispatcher_while_the_clock_jumps(farm: Folder, calm: Rows, tmp_path: Path) -> None:
    """Two days forward while one job runs, then back to a day before the start; a lease from a future that never was holds nothing."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(SHIFT)
    clock = tmp_path / "clock"
    env = {"TEST_CLOCK": str(clock), "PYTHONPATH": before_path(tmp_path / "path")}
    with serving(farm):
        run = Running(farm, env=env)
        run.job().kill()
        run.seen("It is tried again")
        run.job()
        set_clock(clock, 2 * 86400)
        run.seen("done press")  # so what was killed was tried again, in the same run
        run.job()
        run.kill()
        assert query(farm, "select count(*) from jobs where state = 'running' and lease_until > strftime('%s') + 86400") == [(1,)]
        set_clock(clock, -86400)
        run = Running(farm, env=env)
        run.seen("press and measure:")
        run.job()
        set_clock(clock, 0)
        assert run.end() == 0, run.text
    assert "[1/1] done measure" in run.text, "what was done was done again"
    assert compare(calm, database(farm)) == []
    assert not leftovers(farm)
    ((outcomes,),) = query(farm, "select group_concat(outcome) from (select outcome from attempts order by id)")
    assert outcomes == "failed,done,done,lost,done"


def before_path(folder: Path) -> str:
    """Return a PYTHONPATH whose `sitecustomize` is that of a folder."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def set_clock(clock: Path, seconds: float) -> None:
    beside = clock.with_suffix(".new")
    beside.write_text(str(seconds))
    shutil.move(beside, clock)
