"""What prune shows and frees: nothing that is needed, nothing behind a link, and nothing that makes a later run do work anew."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hub.codec import to_json
from hub.domain import Artifact, ArtifactFile, JobResult, ModelRef
from hub.history import Check, Release, Verdict
from hub.scheduling import Plan
from hub.store import Store
from modelpress.cli import app
from runners import recipes

from ..ports import free_port  # noqa: TID252
from .conftest import Folder, QuickRun
from .operating import AT, BASE, MACHINE, OTHER, Press, measure, press


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
    (folder / "modelpress.json").write_text(to_json(artifact))
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
    work.store.published.settle(
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


def test_an_artifact_without_its_manifest_is_lost(work: Press, artifacts: dict[str, str]) -> None:
    from hub.settings import load
    from modelpress import lost
    from modelpress.session import Session

    before = work.store.done()
    (work.folder / "artifacts" / artifacts["passed"] / "modelpress.json").unlink()
    with Session(load(None)) as session:
        assert lost.forget(session) == set()
    assert before - work.store.done() == {press("gptq-w4a16-g64").id}


def test_what_was_not_lost_but_lies_elsewhere_is_left_alone(
    work: Press, artifacts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another work folder on the same database, as a second machine has it; then a cluster's machine, with the first one's depot."""
    from hub import owners
    from hub.settings import FarmSettings, PressSettings, Settings
    from modelpress import lost
    from modelpress.session import Session
    from runners import checkpoint
    from runners.farm.artifacts import Depot

    before = work.store.done()
    shared = PressSettings(work_dir=tmp_path / "second", database=f"sqlite:///{work.folder / 'modelpress.db'}")
    with monkeypatch.context() as machine, Session(Settings(press=shared)) as session:
        machine.setattr(owners, "host", lambda: "second")
        assert lost.forget(session) == {artifacts["verified"], artifacts["published"], artifacts["refused"]}
        assert work.store.done() == before
    assert f"the files of 2 variants are not here: they were made on {owners.host()}" in " ".join(capsys.readouterr().err.split())

    record = next(record for record in work.store.variants() if record.variant_id == artifacts["passed"])
    made = work.folder / "artifacts" / record.variant_id
    real = checkpoint.describe(made / "model.safetensors", made)
    assert record.artifact is not None
    artifact = replace(record.artifact, files=(real,))
    (made / "modelpress.json").write_text(to_json(artifact))
    Depot(str(tmp_path / "depot")).push(made)
    record = replace(record, artifact=artifact)
    cluster = FarmSettings(kind="ray", artifacts=str(tmp_path / "depot"))
    with Session(Settings(press=shared, farm=cluster)) as session:
        assert not lost.whole(session, record)
        assert lost.in_depot(session, record)
        for _ in range(2):
            lost.bring(session, record)
            assert lost.whole(session, record)
        lost.bring(session, replace(record, artifact=replace(artifact, parameters=8)))  # another than lies there is not taken for it
        assert (session.artifacts / record.variant_id / "model.safetensors").read_bytes() == b"x" * 10_000
    assert work.store.done() == before


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
