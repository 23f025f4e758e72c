"""The operator's commands: they say what is, change only what they are told, and work beside a process that is at work."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hub import owners
from hub.domain import Artifact, ArtifactFile, Environment, Failure, Job, JobResult, ModelRef
from hub.history import Check, Release, Verdict
from hub.scheduling import Expectation, Plan, Prediction
from hub.store import Store
from modelpress.cli import app
from runners import protocols, recipes

from .conftest import Folder, QuickRun, free_port

BASE, OTHER = ModelRef(repo_id="people/tiny", sha="a" * 40), ModelRef(repo_id="people/large", sha="b" * 40)
PROTOCOL = protocols.load("stdlib-heldout@512")
MACHINE = Environment(
    hardware="a CPU", device="cpu", cores=2, memory_bytes=2**33, system="Linux", python="3.11", libraries={"torch": "2"}
)  # fmt: skip
AT = "2026-01-02T03:04:05+00:00"


def press(recipe: str, base: ModelRef = BASE) -> Job:
    return Job(kind="press", base=base, recipe=recipes.load(recipe))


def measure(recipe: str | None = None, base: ModelRef = BASE) -> Job:
    return Job(kind="measure", base=base, recipe=recipes.load(recipe) if recipe else None, protocol=PROTOCOL)


def failure(job: Job, category: Any = "out_of_memory", log: str = "…") -> Failure:
    return Failure(
        job_id=job.id,
        error="OutOfMemory",
        reason="It needs 9 GB.",
        hint="Use less.",
        log_tail=log,
        seconds=3.0,
        retryable=True,
        category=category,
    )


def expected(seconds: float = 60.0) -> Expectation:
    guess = Prediction(value=seconds, factor=2.0, samples=3)
    return Expectation(
        value=1.0,
        popularity=1.0,
        gain=1.0,
        seconds=guess,
        memory_bytes=guess,
        disk_bytes=10,
        cost=0.0,
        shape_seconds=1.0,
        shape_memory_bytes=1.0,
    )


@dataclass
class Press:
    """A user's folder with a database, and the command in this process."""

    path: Path
    store: Store
    jobs: dict[str, Job] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.path / "press"

    def call(self, *words: str) -> Result:
        return CliRunner().invoke(app, list(words))

    def says(self, *words: str, code: int = 0) -> str:
        result = self.call(*words)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    def json(self, *words: str) -> Any:
        result = self.call(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def plan(self, jobs: Sequence[Job], needs: dict[str, frozenset[str]] | None = None) -> None:
        self.store.record_plan(
            Plan(jobs=tuple(jobs), refusals=(), done=0, needs=needs or {}, expected={job.id: expected() for job in jobs})
        )

    def state(self, job: Job) -> str:
        return {record.id: record.state for record in self.store.jobs()}[job.id]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Press]:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("MODELPRESS_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "press").mkdir()
    with Store(tmp_path / "press" / "modelpress.db") as store:
        yield Press(tmp_path, store)


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


@pytest.fixture
def another(work: Press) -> Iterator[None]:
    """Another process at work: it holds the folder's lock."""
    with (work.folder / "lock").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("4711")
        handle.flush()
        yield


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
        raw.execute("update jobs set document = 'unreadable'")
    assert "1 running" in busy.says("status")
    assert len(busy.json("jobs")["jobs"]) == len(busy.jobs)


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


# prune


def put(path: Path, size: int = 10_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def tree(folder: Path) -> set[str]:
    """Return all paths below a folder but the database's and the lock's own."""
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if not path.name.startswith("modelpress.db") and path.suffix != ".lock"
    }


def made(work: Press, recipe: str) -> tuple[str, Artifact]:
    """Press and measure a variant as a job would have; its files lie in the work folder."""
    job = press(recipe)
    folder = work.folder / "artifacts" / str(job.variant_id)
    put(folder / "model.safetensors")
    files = (ArtifactFile(path="model.safetensors", size=10_000, sha256="0" * 64),)
    artifact = Artifact(
        variant_id=str(job.variant_id), base=BASE, recipe=recipes.load(recipe), files=files, parameters=7, made_at=AT, libraries={}
    )
    result = JobResult(job_id=job.id, environment=MACHINE, started_at=AT, seconds=1.0, stages={}, peak_memory_bytes=1, artifact=artifact)
    work.store.start(job)
    assert work.store.finish(job, result)
    return artifact.variant_id, artifact


def judged(work: Press, artifact: Artifact, *, passed: bool) -> None:
    check = Check(name="loads", passed=passed, detail="It was tried.")
    work.store.record_verdict(
        Verdict(variant_id=artifact.variant_id, stage="artifact", subject=artifact.digest, checks=(check,), judged_at=AT)
    )


def released(work: Press, artifact: Artifact, *, verified: bool) -> None:
    judged(work, artifact, passed=True)
    repo_id, sha = f"press/{artifact.variant_id}", "c" * 40
    work.store.record_release(
        Release(variant_id=artifact.variant_id, repo_id=repo_id, sha=sha, artifact_digest=artifact.digest, url="", released_at=AT)
    )
    if verified:
        work.store.mark_verified(artifact.variant_id, AT)


@pytest.fixture
def artifacts(work: Press) -> dict[str, str]:
    """One artifact in each stage of its life, by what it is."""
    names = {
        "verified": "bnb-nf4",
        "published": "bnb-int8",
        "refused": "gptq-w4a16-g128",
        "passed": "gptq-w4a16-g64",
        "new": "openvino-int8",
    }
    work.plan([press(recipe) for recipe in names.values()])
    there = {name: made(work, recipe) for name, recipe in names.items()}
    released(work, there["verified"][1], verified=True)
    released(work, there["published"][1], verified=False)
    judged(work, there["refused"][1], passed=False)
    judged(work, there["passed"][1], passed=True)
    return {name: variant for name, (variant, _) in there.items()}


def test_prune_frees_artifacts_that_nobody_needs_and_no_others(work: Press, artifacts: dict[str, str]) -> None:
    stranger = put(work.folder / "artifacts" / "0123456789abcdef" / "model.safetensors")
    before = tree(work.folder)
    told = work.json("prune", "--artifacts")
    assert {Path(one["path"]).name for one in told["chosen"]} == {artifacts["verified"], artifacts["refused"]}
    assert told["left_alone"] == ["artifacts/0123456789abcdef is not known to the database"]
    assert told["freed"] == 0
    assert tree(work.folder) == before, "without --yes nothing goes"
    assert "can be freed: --yes does it" in work.says("prune", "--artifacts")
    done = work.json("prune", "--artifacts", "--yes")
    assert done["freed"] == told["bytes"] > 2 * 10_000
    left = {path.name for path in (work.folder / "artifacts").iterdir()}
    assert left == {stranger.parent.name, *(artifacts[name] for name in ("published", "passed", "new"))}
    assert "nothing changed" in work.says("prune", "--artifacts", "--yes")
    assert not (work.folder / "trash").exists()


def test_prune_leaves_what_a_planned_job_needs(work: Press, artifacts: dict[str, str]) -> None:
    work.plan([measure("bnb-nf4")])
    told = work.json("prune", "--all", "--yes")
    assert {Path(one["path"]).name for one in told["chosen"]} == {artifacts["refused"]}
    assert (work.folder / "artifacts" / artifacts["verified"]).is_dir()


def test_what_was_pruned_is_not_pressed_again_and_what_was_lost_is(work: Press, artifacts: dict[str, str]) -> None:
    from hub.settings import load
    from modelpress import lost
    from modelpress.session import Session

    work.says("prune", "--artifacts", "--yes")
    shutil.rmtree(work.folder / "artifacts" / artifacts["passed"])
    before = work.store.done()
    with Session(load(None)) as session:
        gone = lost.forget(session)
    assert gone == {artifacts["verified"], artifacts["refused"]}
    assert before - work.store.done() == {press("gptq-w4a16-g64").id}
    plan = lost.without(Plan(jobs=(measure(), measure("bnb-nf4"), measure("bnb-int8")), refusals=(), done=0), gone)
    assert [job.id for job in plan.jobs] == [measure().id, measure("bnb-int8").id]
    assert [(refusal.code, refusal.recipe) for refusal in plan.refusals] == [("pruned", "bnb-nf4")]


@pytest.mark.usefixtures("another")
def test_prune_beside_a_process_at_work_only_looks(work: Press, artifacts: dict[str, str]) -> None:
    before = tree(work.folder)
    assert work.json("prune", "--all")["bytes"] > 0
    assert "process 4711" in work.says("prune", "--all", "--yes", code=15)
    assert tree(work.folder) == before
    assert artifacts


def test_prune_never_goes_through_a_link(work: Press, artifacts: dict[str, str], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    folder = work.folder / "artifacts" / artifacts["refused"]
    shutil.move(folder, outside)
    folder.symlink_to(outside)
    put(outside / "secret")
    (work.folder / "artifacts" / artifacts["verified"] / "link").symlink_to(outside)
    (work.folder / "scratch").symlink_to(outside)
    (work.folder / "trash").symlink_to(outside)
    before = tree(outside)
    said = work.says("prune", "--all", "--yes")
    assert tree(outside) == before
    assert folder.is_symlink()
    assert not (work.folder / "artifacts" / artifacts["verified"]).exists()
    assert "freed" in said
    looked = work.says("prune", "--all")
    for name in ("scratch", "trash", f"artifacts/{artifacts['refused']}"):
        assert f"left alone: {name} is a link" in looked


def test_an_interrupted_prune_is_finished_by_the_next(work: Press, artifacts: dict[str, str]) -> None:
    (work.folder / "trash").mkdir()
    (work.folder / "artifacts" / artifacts["refused"]).rename(work.folder / "trash" / f"{artifacts['refused']}-1a2b3c4d")
    put(work.folder / "cache" / "models--people--half" / "refs" / "main")  # a download of which half is deleted
    told = work.json("prune", "--all", "--yes")
    assert {one["kind"] for one in told["chosen"]} == {"trash", "artifact", "damaged download"}
    assert not (work.folder / "trash").exists()
    assert not (work.folder / "cache" / "models--people--half").exists()


def test_prune_of_leftovers_logs_and_samples(work: Press) -> None:
    over, planned = press("bnb-nf4"), press("bnb-int8")
    work.plan([planned])
    old = time.time() - 40 * 24 * 3600
    for name in (f"logs/{over.id}.log", f"logs/{planned.id}.log", "logs/farm.log", "logs/measuring.lock", f"logs/{'0' * 16}.log"):
        os.utime(put(work.folder / name), (old, old) if "0" * 16 not in name else None)
    for job in (over, planned):
        put(work.folder / "samples" / job.id / "task.json")
        put(work.folder / "cache" / "unfinished" / job.id / "layer-0")
        put(work.folder / "artifacts" / f"{job.variant_id}.partial-999999" / "model.safetensors")
    put(work.folder / "scratch" / "0" / "file")
    assert {Path(one["path"]).name for one in work.json("prune", "--yes")["chosen"]} == {
        f"{over.id}.log", f"{over.variant_id}.partial-999999", "0",
    }  # fmt: skip
    assert {Path(one["path"]).name for one in work.json("prune", "--cache", "--older", "0", "--yes")["chosen"]} == {
        f"{'0' * 16}.log", over.id,
    }  # fmt: skip
    left = tree(work.folder)
    assert {f"logs/{planned.id}.log", "logs/farm.log", f"samples/{planned.id}", f"cache/unfinished/{planned.id}"} <= left
    assert f"samples/{over.id}" not in left


@pytest.fixture
def download(work: Press) -> Callable[..., Path]:
    """Put a commit into the download cache as the Hub's library does: snapshots of links to blobs, with a mark that it is verified."""

    def made(ref: ModelRef, files: dict[str, str]) -> Path:
        cache = work.folder / "cache"
        repo = cache / f"models--{ref.repo_id.replace('/', '--')}"
        for name, blob in files.items():
            if not (repo / "blobs" / blob).exists():
                put(repo / "blobs" / blob)
            link = repo / "snapshots" / ref.sha / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path("../../blobs") / blob)
        put(cache / ".verified" / f"{ref.repo_id.replace('/', '--')}@{ref.sha}.json")
        return repo

    return made


def test_prune_of_downloads(work: Press, download: Callable[..., Path], tmp_path: Path) -> None:
    newer = ModelRef(repo_id=BASE.repo_id, sha="d" * 40)
    copied = ModelRef(repo_id="people/copied", sha=newer.sha)  # the same commit in another repository, as the Hub's copies have it
    needed = download(newer, {"config.json": "one", "model.safetensors": "shared"})
    download(BASE, {"model.safetensors": "shared", "tokenizer.json": "two"})
    copy = download(copied, {"config.json": "three"})
    hostile = download(OTHER, {"config.json": "four"})
    secret = put(tmp_path / "secret")
    (hostile / "snapshots" / OTHER.sha / "model.safetensors").symlink_to(secret)
    put(needed / "blobs" / "five.1a2b3c4d.incomplete")
    put(needed / "blobs" / "six")
    put(needed / "blobs" / "seven.1a2b3c4d.incomplete")
    put(work.folder / "cache" / "base-states" / "k" / "window")
    work.plan([press("bnb-nf4", newer)])
    lock = put(work.folder / "cache" / ".locks" / needed.name / "seven.lock", 0)
    with lock.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # a process that fetches it now
        told = work.json("prune", "--cache", "--yes")
    assert {(one["kind"], Path(one["path"]).name) for one in told["chosen"]} == {
        ("partial download", "five.1a2b3c4d.incomplete"),
        ("blob without a name", "six"),
        ("base model", needed.name),
        ("base model", copy.name),
    }
    assert {path.name for path in (needed / "blobs").iterdir()} == {"one", "shared", "seven.1a2b3c4d.incomplete"}
    assert [path.name for path in (needed / "snapshots").iterdir()] == [newer.sha]
    assert not copy.exists()
    assert secret.exists()
    assert hostile.exists()
    assert [path.name for path in (work.folder / "cache" / ".verified").iterdir()].count(f"people--tiny@{BASE.sha}.json") == 0
    assert (work.folder / "cache" / "base-states" / "k").exists(), "a job is planned that may use it"
    work.says("cancel", "--planned")
    work.says("prune", "--cache", "--yes")
    assert not needed.exists()
    assert not (work.folder / "cache" / "base-states" / "k").exists()


def test_prune_of_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["prune", "--all"]).output == "nothing to free\n"
    assert not (tmp_path / "press").exists()


# beside a real run


@pytest.mark.integration
def test_a_run_after_a_prune_does_nothing_anew(quick_run: QuickRun, tmp_path: Path) -> None:
    shutil.copytree(quick_run.folder.press, tmp_path / "press", symlinks=True)
    (tmp_path / "modelpress.toml").write_text(f"[hub]\nport = {free_port()}\n[farm]\nthreads = 1\n")
    folder = Folder(tmp_path, 0)
    with Store(tmp_path / "press" / "modelpress.db") as store:
        refused = next(record for record in store.variants() if record.artifact)
        assert refused.artifact is not None
        with closing(sqlite3.connect(tmp_path / "press" / "modelpress.db")) as raw, raw:
            raw.execute("delete from releases where variant_id = ?", (refused.variant_id,))
        check = Check(name="loads", passed=False, detail="It was tried.")
        subject = refused.artifact.digest
        store.record_verdict(Verdict(variant_id=refused.variant_id, stage="artifact", subject=subject, checks=(check,), judged_at=AT))
    told = folder.json("prune", "--all", "--older", "0", "--yes")
    assert sum(one["kind"] == "artifact" for one in told["chosen"]) == 2
    assert "base model" in {one["kind"] for one in told["chosen"]}
    report = folder.json("run", "--quick")
    assert (report["jobs_done"], report["jobs_failed"], report["released"], report["verified"]) == (0, 0, [], 0)
    assert not list((tmp_path / "press" / "artifacts").iterdir())


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
