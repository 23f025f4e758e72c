"""The operator's commands: they say what is, change only what they are told, and work beside a process that is at work."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from hub import owners
from hub.errors import BadDocument
from hub.store import Store

from ..ports import free_port  # noqa: TID252
from .conftest import Folder
from .operating import BASE, OTHER, PROTOCOL, Press, failure, measure, press


@pytest.fixture
def busy(work: Press) -> Press:
    """One job of each kind of trouble: one failed and holds up two, one waits to be tried again, one runs, one is planned."""
    work.jobs = {
        "failed": measure(),
        "held": press("gptq-w4a16-g128"),
        "held twice": measure("gptq-w4a16-g128"),
        "again": press("bnb-nf4", OTHER),
        "running": measure(base=OTHER),
        "planned": press("bnb-int8", OTHER),
    }
    failed, held = work.jobs["failed"], work.jobs["held"]
    needs = {held.id: frozenset({failed.id}), work.jobs["held twice"].id: frozenset({held.id})}
    work.plan(list(work.jobs.values()), needs)
    work.store.start(failed)
    work.store.fail(
        failed, failure(failed, log="before\nbefore\n\x1b[31mred\x1b[0m\x1b]0;title\x07 10%\r 20%\r100% \u202edone\x08\n  indented")
    )
    again = work.jobs["again"]
    work.store.start(again)
    work.store.fail(again, failure(again), retry_after=3000.0, economy=1)
    work.store.start(work.jobs["running"])
    return work


# status and jobs


def test_status_says_what_runs_waits_failed_and_is_blocked(busy: Press) -> None:
    busy.store.queue.pause("the [bold]fan\x1b[2J")
    said = busy.says("status")
    assert "the [bold]fan[2J (modelpress resume goes on)" in said
    assert f"running  measure large base, {PROTOCOL.name} for" in said
    assert f"of about 60.0 s, on {os.uname().nodename}, process {os.getpid()}" in said
    assert "again in 50 min: press large bnb-nf4 (tried 1 times, sparing more memory: step 1): It needs 9 GB." in said
    assert "2 jobs wait for measure tiny base" in said
    assert "out_of_memory 1" in said
    assert "4 planned, 1 running, 0 done, 1 failed" in said
    told = busy.json("status")
    assert told["states"] == {"planned": 4, "running": 1, "failed": 1}
    assert [(held["jobs"], held["job"]["id"]) for held in told["blocked"]] == [(2, busy.jobs["failed"].id)]
    assert told["running"][0]["owner"] == owners.own()
    assert {line["id"] for line in told["jobs"]} == {job.id for job in busy.jobs.values()}


def test_status_shows_the_use_of_each_limit_that_is_set(busy: Press) -> None:
    (busy.path / "modelpress.toml").write_text("[budget]\njobs = 10\nmoney = 5\nrepos_per_day = 0\ncommits_per_day = 0\ndisk_gib = 2\n")
    lines = busy.json("status")["budget"]
    assert lines[0] == "3 of 10 jobs, 0 of 5 USD in 24 hours"
    assert lines[1].endswith("of 2 GiB in the work folder")


def test_looking_reads_no_documents(busy: Press) -> None:
    with closing(sqlite3.connect(busy.folder / "modelpress.db")) as raw, raw:
        raw.execute("update jobs set document = 'unreadable', expected = '{}'")
    assert "1 running" in busy.says("status")
    assert len(busy.json("jobs")["jobs"]) == len(busy.jobs)
    assert busy.call("jobs", "show", busy.jobs["running"].id).exit_code == BadDocument.exit_code


def test_a_job_of_a_process_that_was_killed_is_not_shown_as_running(busy: Press) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    with closing(sqlite3.connect(busy.folder / "modelpress.db")) as raw, raw:
        raw.execute("update jobs set owner = ? where state = 'running'", (f"{os.uname().nodename}:{dead.pid}:1.00",))
    assert "0 running" in busy.says("status")
    assert busy.json("jobs", "show", busy.jobs["running"].id)["tries"][0]["outcome"] == "lost"


@pytest.mark.integration
def test_watch_without_a_terminal_repeats_plain_lines_until_interrupted(busy: Press) -> None:
    folder = Folder(busy.path, 0)
    command = folder.command("status", "--watch", "--every", "0.2")
    process = subprocess.Popen(command, cwd=busy.path, env=folder.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    heads = 0
    for line in process.stdout:
        heads += line.startswith("modelpress at ")
        if heads == 2:
            break
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert error == ""
    assert "\x1b" not in rest


@pytest.mark.integration
def test_watch_on_a_terminal_of_80_columns(busy: Press) -> None:
    folder, (ours, theirs) = Folder(busy.path, 0), pty.openpty()
    fcntl.ioctl(theirs, 0x5414, bytes((24, 0, 80, 0, 0, 0, 0, 0)))  # TIOCSWINSZ: 24 rows of 80
    environment = {
        name: value for name, value in folder.environment({"TERM": "xterm"}).items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
    }
    command = folder.command("status", "--watch", "--every", "0.2")
    process = subprocess.Popen(
        command, cwd=busy.path, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, start_new_session=True
    )
    os.close(theirs)
    screen = b""
    while screen.count(b"modelpress") < 3:
        screen += os.read(ours, 4096)
    process.send_signal(signal.SIGINT)
    while chunk := _read(ours):
        screen += chunk
    assert process.wait(60) == 0
    assert screen.endswith((b"\x1b[?25h", b"\n", b"\r")), "the cursor is shown again"
    import re

    plain = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", screen).decode()
    assert max(len(line) for line in plain.replace("\r", "\n").splitlines()) <= 80


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux says so when the other side is closed
        return b""


def test_jobs_are_listed_and_filtered(busy: Press) -> None:
    assert [line["state"] for line in busy.json("jobs")["jobs"]] == ["running", "failed", "planned", "planned", "planned", "planned"]

    def ids(*words: str) -> set[str]:
        return {line["id"] for line in busy.json("jobs", *words)["jobs"]}

    jobs = busy.jobs
    assert ids("--state", "failed") == ids("--class", "out_of_memory", "--state", "failed") == {jobs["failed"].id}
    assert ids("--model", "large") == ids("--model", "people/large") == {jobs[name].id for name in ("again", "running", "planned")}
    assert ids("--recipe", "gptq-w4a16-g128", "--kind", "measure") == {jobs["held twice"].id}
    assert busy.json("jobs", "--limit", "2")["total"] == len(jobs)
    assert "2 of 6 jobs" in busy.says("jobs", "--limit", "2")
    assert "no job fits" in busy.says("jobs", "--model", "arge")
    assert busy.call("jobs", "--state", "fialed").exit_code == 2


def test_show_tells_everything_about_a_failed_job(busy: Press) -> None:
    job = busy.jobs["failed"]
    for name in (job.id, job.id[:6], job.title):
        said = busy.says("jobs", "show", name)
        assert said.startswith(f"{job.id}  {job.title}\nstate      failed, tried 1 times\n")
    for line in (
        "failed     out_of_memory: OutOfMemory: It needs 9 GB.",
        "what to do Use less.",
        "time       3.0 s; predicted 60.0 s, right within a factor of 2 two times of three, from 3 earlier jobs",
        f"waits      {busy.jobs['held'].id[:8]} {busy.jobs['held'].title}: planned",
    ):
        assert line in said
    assert said.endswith("the end of its log\n  before (2 times)\n  100% done\n    indented\n"), "no byte of the log steers the terminal"
    told = busy.json("jobs", "show", job.id)
    assert [(one["outcome"], one["category"], one["seconds"]) for one in told["tries"]] == [("failed", "out_of_memory", 3.0)]
    assert told["job"]["base"]["sha"] == BASE.sha


def test_show_tells_what_a_running_job_prints_now(busy: Press) -> None:
    job = busy.jobs["running"]
    (busy.folder / "logs").mkdir()
    (busy.folder / "logs" / f"{job.id}.log").write_text("window 7 of 8\n")
    assert busy.says("jobs", "show", job.id).endswith("the end of its log\n  window 7 of 8\n")
    (busy.folder / "logs" / f"{job.id}.log").unlink()
    (busy.folder / "logs" / f"{job.id}.log").symlink_to("/etc/passwd")
    assert "root" not in busy.says("jobs", "show", job.id), "a link is not followed"


def test_names_that_stand_for_no_job_or_for_several(busy: Press) -> None:
    job = busy.jobs["planned"]
    said = busy.says("jobs", "show", "press large bnb-int9", code=5)
    assert f"did you mean {job.id} (press large bnb-int8)" in said
    assert "nothing" not in busy.says("cancel", "f" * 16, code=5)
    several = busy.says("cancel", "people/large", code=2)
    assert "stands for 3 jobs" in several
    assert job.id in several
    assert busy.says("jobs", "show", "", code=5)
    assert busy.says("jobs", "show", "%", code=5)


# retry, cancel, pause, resume


@pytest.mark.usefixtures("another")
def test_cancel_and_retry_beside_a_process_at_work(busy: Press) -> None:
    planned, running, failed = (busy.jobs[name] for name in ("planned", "running", "failed"))
    said = busy.says("cancel", planned.id[:8], running.id)
    assert "1 jobs are cancelled" in said
    assert "1 jobs run and are ended by who runs them" in said
    assert busy.state(planned) == "cancelled"
    assert busy.store.queue.renew(owners.own(), [running.id]).cancelled == {running.id}
    assert "nothing changed" in busy.says("cancel", planned.id, running.id)
    assert "1 jobs are planned again" in busy.says("retry", planned.id)
    assert busy.json("retry", "--class", "disk") == {"planned_again": 0, "paused": None}
    assert busy.json("retry", "--class", "out_of_memory")["planned_again"] == 1
    assert (busy.state(planned), busy.state(failed)) == ("planned", "planned")
    assert "nothing changed" in busy.says("retry", "--failed")
    assert busy.says("retry", code=2)
    assert busy.says("cancel", code=2)


def test_cancel_of_a_model_and_of_all_that_is_planned(busy: Press) -> None:
    assert busy.json("cancel", "--planned", "--model", "large") == {"cancelled": 2, "to_be_ended": 0}
    assert busy.json("cancel", "--model", "people/large") == {"cancelled": 0, "to_be_ended": 1}
    assert busy.json("cancel", "--planned") == {"cancelled": 2, "to_be_ended": 0}
    assert "nothing changed" in busy.says("cancel", "--planned")
    assert "no job is on a model" in busy.says("cancel", "--model", "huge", code=5)


@pytest.mark.usefixtures("another")
def test_pause_and_resume_beside_a_process_at_work(busy: Press) -> None:
    assert "1 running jobs go on to their end" in busy.says("pause", "--reason", "the fan")
    assert busy.store.queue.claim("other:1:1.0", kinds=("press", "measure")) is None
    assert "nothing changed: all is paused already (the fan)" in busy.says("pause")
    assert busy.json("pause", "--reason", "the disk") == {"changed": True, "paused": "the disk", "running": 1}
    assert "all is paused" in busy.says("retry", "--failed")
    assert "the pause is taken back" in busy.says("resume")
    assert busy.json("resume")["changed"] is False
    assert busy.store.queue.claim("other:1:1.0", kinds=("press", "measure")) is not None


def awaits(true: Callable[[], bool], what: str, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@pytest.mark.integration
def test_a_run_is_paused_cancelled_and_resumed_from_outside(tmp_path: Path) -> None:
    (tmp_path / "modelpress.toml").write_text(f"[hub]\nport = {free_port()}\n[farm]\nthreads = 1\nlease_s = 5\n")
    folder = Folder(tmp_path, 0)

    def start(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            folder.command(*words), cwd=tmp_path, env=folder.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    process = start("run", "--quick")
    awaits(lambda: (tmp_path / "press" / "modelpress.db").exists() or process.poll() is not None, "the database is made")
    with Store(tmp_path / "press" / "modelpress.db") as store:
        awaits(lambda: bool(store.reader.overview().running), "a job runs")
        (running,) = store.reader.overview().running
        assert folder.json("cancel", running.id[:10]) == {"cancelled": 0, "to_be_ended": 1}
        _, error = process.communicate(timeout=300)
        assert "Traceback" not in error
        seen = store.reader.overview()
        assert seen.states == {"cancelled": 1, "planned": 4}, error
        assert [held.job.id for held in seen.blocked] == [running.id]

        assert folder.json("pause", "--reason", "the fan")["changed"] is True
        assert folder.json("retry", running.label)["planned_again"] == 1
        process = start("work", "--quick")
        assert process.stderr is not None
        assert any("paused: the fan" in line for line in process.stderr)
        assert store.reader.overview().running == ()
        assert folder.json("resume")["changed"] is True
        awaits(lambda: bool(store.reader.overview().running), "a job runs again")
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=300)
        assert "Traceback" not in error
        assert store.reader.overview().states == {"planned": 5}
        assert folder.json("jobs", "show", running.id)["tries"][-1]["outcome"] == "interrupted"
