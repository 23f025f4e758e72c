"""Artifacts on an fsspec address: whole or not there, checked when they are fetched, and nothing believed that lies there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from hub.codec import to_json
from hub.domain import Artifact, ArtifactFile, Failure, Job, JobOrder, ModelRef, Workspace
from hub.errors import BadCheckpoint, HubUnreachable, ModelPressError, SettingsError, Unavailable
from runners import checkpoint, recipes
from runners.checkpoint import MANIFEST
from runners.farm import scratch
from runners.farm.artifacts import Depot, in_time
from runners.farm.node import Place, Task, version

BASE = ModelRef(repo_id="owner/name", sha="0" * 40)
RECIPE = recipes.load("bnb-int8")


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(f"file://{tmp_path}/depot")


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    folder = tmp_path / "made"
    (folder / "deep").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights" * 1000)
    (folder / "deep" / "note.txt").write_text("n")
    return checkpoint.write(folder, base=BASE, recipe=RECIPE, parameters=1, libraries={})


def test_an_artifact_comes_back_whole_and_doing_it_again_changes_nothing(depot: Depot, artifact: Artifact, tmp_path: Path) -> None:
    target = tmp_path / "node" / artifact.variant_id
    assert depot.manifest(artifact.variant_id) is None
    assert not depot.holds(artifact)
    for _ in range(2):
        assert depot.push(tmp_path / "made") == artifact
        assert depot.pull(artifact.variant_id, target, digest=artifact.digest) == artifact
    assert depot.holds(artifact)
    names = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    assert names == {"model.safetensors", "deep/note.txt", MANIFEST}
    (target / "model.safetensors").write_bytes(b"cut")
    depot.pull(artifact.variant_id, target)
    assert (target / "model.safetensors").read_bytes() == b"weights" * 1000


def test_a_push_that_is_cut_leaves_nothing_that_looks_whole(
    depot: Depot, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made" / "model.safetensors").unlink()
    with pytest.raises(HubUnreachable):
        depot.push(tmp_path / "made")
    assert depot.manifest(artifact.variant_id) is None
    with pytest.raises(BadCheckpoint, match="no finished checkpoint"):
        depot.pull(artifact.variant_id, tmp_path / "node")
    assert not (tmp_path / "node").exists()


def test_an_address_that_never_answers_takes_no_longer_than_the_job_may(
    depot: Depot, artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody writes to: who opens it waits without end, as a network address may let a machine wait."""
    depot.push(tmp_path / "made")
    stuck = tmp_path / "depot" / artifact.variant_id / artifact.digest / "model.safetensors"
    stuck.unlink()
    os.mkfifo(stuck)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # the place sets it
    job = Job(kind="inspect", base=BASE, recipe=RECIPE, subject=artifact.digest)
    space = Workspace(endpoint="", cache_dir="", artifacts_dir="", threads=1, timeout_s=0.5, memory_bytes=1)
    task = Task(order=JobOrder(job=job, workspace=space), version=version(), farm="", artifacts=f"file://{tmp_path}/depot")
    failure = Place(task, tmp_path / "node").run().outcome
    assert isinstance(failure, Failure)
    assert (failure.category, failure.retryable) == ("timed_out", True)
    assert "within the time that the job may take" in failure.reason
    with stuck.open("wb") as late:  # the thread that was left waiting goes on, and gives up
        late.write(b"weights" * 1000)
    until = time.monotonic() + 120
    while any(thread.name == "depot" for thread in threading.enumerate()) and time.monotonic() < until:
        time.sleep(0.01)
    assert not [*(tmp_path / "node" / "artifacts").iterdir()]
    assert in_time(60, lambda: 7) == 7
    with pytest.raises(BadCheckpoint):
        in_time(60, lambda: depot.pull("0" * 16, tmp_path / "none"))


def spoil(folder: Path, artifact: Artifact, how: str) -> None:
    """Do to a depot what a fault or an enemy could."""
    manifest, files = folder / artifact.variant_id / MANIFEST, folder / artifact.variant_id / artifact.digest
    if how == "cut":
        (files / "model.safetensors").write_bytes(b"weights" * 999)
    elif how == "longer":
        (files / "model.safetensors").write_bytes(b"weights" * 1001)
    elif how == "changed":
        (files / "model.safetensors").write_bytes(b"Weights" * 1000)
    elif how == "missing":
        (files / "model.safetensors").unlink()
    elif how == "no JSON":
        manifest.write_text("{")
    elif how == "huge numbers":
        manifest.write_text(manifest.read_text().replace('"size": 7000', '"size": 9000000000000000000'))
    else:
        listed = {"traversal": "../../../evil", "absolute": "/evil", "pickle": "model.pkl", "twice": "MODEL.safetensors"}[how]
        evil = ArtifactFile(path=listed, size=4, sha256="3c469e9d6c5875d37a43f353d4f88e61fcf812c66eee3457465a40b0da4153e0")
        other = replace(artifact, files=(*artifact.files, evil))
        manifest.write_text(to_json(other))
        there = folder / artifact.variant_id / other.digest
        files.rename(there)
        if how == "pickle":
            (there / listed).write_bytes(b"word")
            changed = json.loads(manifest.read_text())
            sums = checkpoint.describe(there / listed, there)
            changed["files"][-1] = json.loads(to_json(sums))
            manifest.write_text(json.dumps(changed))
            there.rename(folder / artifact.variant_id / replace(artifact, files=(*artifact.files, sums)).digest)


REFUSED = {
    "cut": "cut or changed",
    "longer": "cut or changed",
    "changed": "cut or changed",
    "missing": "is missing",
    "no JSON": "not a valid Artifact",
    "huge numbers": "GB free",
    "traversal": "relative and plain",
    "absolute": "relative and plain",
    "pickle": "could run code",
    "twice": "upper and lower case",
}


@pytest.mark.parametrize(("how", "said"), REFUSED.items())
def test_what_is_cut_or_hostile_is_refused_and_leaves_nothing(
    depot: Depot, artifact: Artifact, tmp_path: Path, how: str, said: str
) -> None:
    depot.push(tmp_path / "made")
    spoil(tmp_path / "depot", artifact, how)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "depot")}
    with pytest.raises(ModelPressError, match=said) as caught:
        depot.pull(artifact.variant_id, tmp_path / "node" / "target")
    assert not isinstance(caught.value, HubUnreachable), caught.value
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "depot")}
    assert after - before <= {tmp_path / "node"}
    if how not in ("changed", "no JSON"):
        assert not depot.holds(artifact)
    depot.push(tmp_path / "made")
    assert depot.pull(artifact.variant_id, tmp_path / "node" / "target") == artifact


def test_another_artifact_than_the_one_meant_is_refused(depot: Depot, artifact: Artifact, tmp_path: Path) -> None:
    depot.push(tmp_path / "made")
    with pytest.raises(BadCheckpoint, match="another checkpoint"):
        depot.pull(artifact.variant_id, tmp_path / "node", digest="0" * 16)
    (tmp_path / "depot" / artifact.variant_id).rename(tmp_path / "depot" / ("1" * 16))
    with pytest.raises(BadCheckpoint, match="is that of"):
        depot.pull("1" * 16, tmp_path / "node")


def test_a_folder_travels_and_is_removed(depot: Depot, samples: Path, tmp_path: Path) -> None:
    files = depot.push_input(samples / "sample-gpt2", "one")
    depot.pull_input("one", files, tmp_path / "there")
    assert {path.name for path in (tmp_path / "there").iterdir()} == {path.name for path in (samples / "sample-gpt2").iterdir()}
    depot.remove_input("one")
    depot.remove_input("one")
    assert not [*(tmp_path / "depot" / "inputs").iterdir()]


def test_addresses_that_cannot_be_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(SettingsError, match="one process alone"):
        Depot("memory://artifacts")
    with pytest.raises(SettingsError, match="nosuch"):
        Depot("nosuch://artifacts")
    with pytest.raises(Unavailable, match="s3fs"):
        Depot("s3://bucket/artifacts")
    (tmp_path / "file").write_text("")
    with pytest.raises(HubUnreachable, match="cannot be read or written"):
        Depot(str(tmp_path / "file")).push_input(tmp_path, "one")


@pytest.mark.integration
def test_scratch_goes_with_its_keeper_after_its_last_user_and_what_a_lost_machine_left_goes_too(tmp_path: Path) -> None:
    root, old = tmp_path / "all" / "mine", tmp_path / "all" / "old"
    scratch.use(old).close()
    keeper = subprocess.Popen([sys.executable, "-m", "runners.farm.scratch", str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert keeper.stdout
    assert keeper.stdin
    assert keeper.stdout.readline() == b"kept\n"
    assert not old.exists()
    with scratch.join(root):
        keeper.stdin.close()
        time.sleep(0.5)
        assert root.exists()
    keeper.stdout.read()  # it ends when the keeper does
    assert not root.parent.exists()
    keeper.stdout.close()
    keeper.wait()
    with pytest.raises(FileNotFoundError):  # a job that comes late makes nothing that nobody removes
        scratch.join(root)
    assert not root.parent.exists()
    root.parent.mkdir(mode=0o777)
    root.parent.chmod(0o777)
    with pytest.raises(SettingsError, match="not this user's alone"):
        scratch.use(root)
