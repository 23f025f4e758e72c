"""Whatever happens to a publisher or its hub: after another run there is exactly one release, with the right bytes, in one commit."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub.errors import HubConflict, HubError
from hub.history import VariantRecord
from hub.local.process import LocalHub
from hub.transfer import sums
from modelpress import publishing

from ..ports import free_port  # noqa: TID252
from .world import AT, World

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
BUSY = {"status": 429, "headers": {"Retry-After": "1"}}
FAULTS: dict[str, dict[str, object]] = {
    "the repository was made, the answer lost": {"kind": "lost", "method": "POST", "path": "/api/repos/create"},
    "the repository cannot be made at first": {"kind": "status", "method": "POST", "path": "/api/repos/create"},
    "slow down: making": {"kind": "status", "method": "POST", "path": "/api/repos/create", **BUSY},
    "slow down: committing": {"kind": "status", "method": "POST", "path": "/commit/", **BUSY},
    "the commit landed, the answer lost": {"kind": "lost", "method": "POST", "path": "/commit/"},
    "the commit landed, the connection cut": {"kind": "cut", "method": "POST", "path": "/commit/"},
    "somebody else was faster": {"kind": "status", "method": "POST", "path": "/commit/", "status": 412},
    "the commit fails at first": {"kind": "status", "method": "POST", "path": "/commit/"},
    "the commit is cut off on its way": {"kind": "cut-upload", "method": "POST", "path": "/commit/", "bytes": 200},
    "an upload is cut off on its way": {"kind": "cut-upload", "method": "PUT", "path": "", "bytes": 20_000},
    "an upload fails at first": {"kind": "status", "method": "PUT", "path": "", "status": 500},
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0, samples=False, faults=True) as running:
        yield running


@pytest.fixture
def world(hub: LocalHub, tmp_path: Path, make: SimpleNamespace) -> Iterator[World]:
    made = World(hub, tmp_path, make)
    yield made
    made.mend()


def one_release(world: World, record: VariantRecord, *, commits: int = 1) -> None:
    """Publish once more, without faults: nothing is sent, and there is one release with the right bytes, as recorded."""
    world.mend()
    again = world.publish(world.read(record))
    assert record.artifact is not None
    assert world.read(record).release == again
    assert again.sha == world.client.head(again.repo_id)
    titles = world.commits(again.repo_id)
    assert len([title for title in titles if not title.lower().startswith("initial")]) == commits, titles
    there = {file.path: file for file in world.client.files(again.repo_id, again.sha)}
    for file in record.artifact.files:
        assert sums(world.home(record) / file.path).match(there[file.path]), file.path
    assert {"README.md", "modelpress.json"} <= there.keys()
    assert world.store.published.begun(again.repo_id) is None
    assert [change.sha for change in world.store.published.changes(again.repo_id)][-1] == again.sha
    made = [write for write in world.store.hub_writes(0) if write.repo_id == again.repo_id]
    assert {write.action for write in made} == {"repo", "commit"}, "what was sent is written down"


def test_every_fault_ends_in_one_release(world: World) -> None:
    """One fault after another, each on a release of its own: publishing gets through, or fails in words and gets through the next time."""
    failed = []
    for number, (name, fault) in enumerate(FAULTS.items()):
        record = world.press(f"gptq-r{number}-w4a16", params=128 + number, seed=name)
        world.fault(**fault)
        used = world.faults()
        try:
            world.publish(record)
        except (HubConflict, HubError) as error:
            failed.append((name, error.message))
        assert world.faults() > used, f"{name}: the fault never came"
        one_release(world, record)
    assert not failed, "the client gets through all of these by itself"
    assert len({release.repo_id for release in world.store.releases()}) == len(FAULTS)


def test_a_hub_that_asks_to_wait_long_is_left_alone_and_the_rest_comes_later(world: World) -> None:
    records = [world.press(), world.press("gptq-w4a16-g64", params=64)]
    for path in ("/api/repos/create", "^/api/models/[^/]+/[^/]+$", "/preupload/", "/commit/"):
        method = "GET" if path.startswith("^") else "POST"
        world.fault(kind="status", method=method, path=path, status=429, headers={"Retry-After": "3600"}, times=0)
        began = time.monotonic()
        done = publishing.publish(world.session())
        assert time.monotonic() - began < 60, "an hour was not waited for"
        assert (len(done.released), len(done.refused), len(done.left)) == (0, 0, 2)
        assert "asks to slow down" in done.left[0].reason
        assert "it asks to wait 3600 s" in done.left[0].reason
        assert world.faults() == 1, "it is not asked again in this run"
        world.mend()
    assert len(publishing.publish(world.session()).released) == 2
    for record in records:
        one_release(world, record)


def test_a_release_that_somebody_changed_is_put_right_and_what_they_added_stays(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    theirs = {"config.json": b"{}", "notes.txt": b"mine"}
    world.client.commit(release.repo_id, theirs, message="theirs", parent=release.sha)
    world.store.published.retire(record.variant_id, at=AT, why="so that there is something to say")
    assert len(publishing.refresh(world.session()).cards) == 1
    assert "put right" in world.store.published.changes(release.repo_id)[-1].what
    assert len(publishing.refresh(world.session()).cards) == 1, "then what was to be said"
    one_release(world, record, commits=4)
    assert world.client.read_text(release.repo_id, world.client.head(release.repo_id) or "", "notes.txt") == "mine"


# Where a publisher is killed: before the hub has done the work (delay), or after it, before the answer (hold).
KILLS = [("hold", "POST", "/api/repos/create"), ("delay", "PUT", ""), ("delay", "POST", "/commit/"), ("hold", "POST", "/commit/")]


def started(world: World, record: VariantRecord, action: str) -> subprocess.Popen[str]:
    """A publisher in a process of its own."""
    program = str(Path(__file__).parent / "killed.py")
    command = [sys.executable, "-P", program, world.hub.endpoint, str(world.folder), record.variant_id, action]
    environment = {**os.environ, "PUBLISHER_TOKEN": world.hub.write_token, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def killed(world: World, record: VariantRecord, action: str, **rule: object) -> None:
    """Start a publisher and kill it when the hub has seen the request of a rule, which makes it wait."""
    world.fault(seconds=20, **rule)
    process = started(world, record, action)
    try:
        deadline = time.monotonic() + 120
        while not world.faults() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if rule["kind"] == "hold":
            time.sleep(0.5)  # the rule counts when the request comes; the hub does its work after that
        assert process.poll() is None, process.communicate()[1][-2000:]
        assert world.faults() == 1
    finally:
        process.kill()
        process.communicate()
    world.mend()


def test_a_publisher_killed_anywhere_leaves_one_release_after_the_next_run(world: World) -> None:
    for number, (kind, method, path) in enumerate(KILLS):
        record = world.press(f"gptq-k{number}-w4a16", params=128 + number, seed=f"kill {number}")
        killed(world, record, "publish", kind=kind, method=method, path=path)
        assert world.read(record).release is None
        assert any(write.action == "repo" for write in world.store.hub_writes(0)), "noted before it was made"
        one_release(world, record)
    last = world.read(record)
    assert last.release is not None
    world.store.published.retire(last.variant_id, at=AT, why="the killed one")
    killed(world, last, "refresh", kind="hold", method="POST", path="/commit/")
    assert world.read(last).release.sha == last.release.sha, "nobody could note it"
    done = publishing.refresh(world.session(), last.release.repo_id)
    assert len(done.cards) == 1
    one_release(world, last, commits=2)
    assert [change.kind for change in world.store.published.changes(last.release.repo_id)] == ["released", "retired"]


def test_a_hub_killed_in_mid_upload_and_its_publisher_after_it(tmp_path: Path, make: SimpleNamespace) -> None:
    port = free_port()
    with LocalHub(tmp_path / "hub", port=port, samples=False, faults=True) as first:
        (tmp_path / "work").mkdir()
        world = World(first, tmp_path / "work", make)
        record = world.press()
        world.fault(kind="die", method="PUT", path="", bytes=20_000)
        process = started(world, record, "publish")
        assert first.pid is not None
        try:
            os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
            assert process.poll() is None, "it would go on trying"
        finally:
            process.kill()
            process.communicate()
    with LocalHub(tmp_path / "hub", port=port, samples=False, faults=True) as second:
        world.hub = second
        assert world.store.releases() == []
        one_release(world, record)
