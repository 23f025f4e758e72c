"""kill -9 at bad moments, then a new start: everything that is listed is whole, and what was answered is there."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hub.local.process import LocalHub

from ...ports import free_port  # noqa: TID252

pytestmark = pytest.mark.integration


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LocalHub]:
    """A hub that the test may kill. It comes back on its port, so a client that asks again finds it."""
    hub = LocalHub(tmp_path / "own", port=free_port(), samples=False, faults=True)
    hub.start()
    yield hub
    hub.stop()


def kill(hub: LocalHub) -> None:
    assert hub.pid is not None
    os.kill(hub.pid, signal.SIGKILL)
    hub.stop()


def client(hub: LocalHub) -> Any:
    return HfApi(endpoint=hub.endpoint, token=hub.write_token)


def check(hub: LocalHub) -> None:
    """Every blob has the bytes that its name says, every file of every commit has its blob, and SQLite finds no damage."""
    for path in (hub.root / "blobs").glob("??/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    connection = sqlite3.connect(hub.root / "hub.db")
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    for (sha256,) in connection.execute("SELECT DISTINCT sha256 FROM entries"):
        assert (hub.root / "blobs" / sha256[:2] / sha256).exists()
    assert connection.execute("SELECT count(*) FROM commits WHERE tree NOT IN (SELECT tree FROM entries)").fetchone() == (0,)
    connection.close()


def test_killed_in_the_middle_of_an_upload(own: LocalHub) -> None:
    import http.client

    client(own).create_repo("modelpress/x")
    data = os.urandom(3_000_000)
    body = {"operation": "upload", "objects": [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}]}
    import httpx

    batch = httpx.post(
        f"{own.endpoint}/modelpress/x.git/info/lfs/objects/batch", json=body, headers={"Authorization": f"Bearer {own.write_token}"}
    )
    address = batch.json()["objects"][0]["actions"]["upload"]["href"].removeprefix(own.endpoint)
    connection = http.client.HTTPConnection(own.endpoint.removeprefix("http://"))
    connection.putrequest("PUT", address)
    connection.putheader("Content-Length", str(len(data)))
    connection.endheaders(data[:2_000_000])
    deadline = time.monotonic() + 60
    while not any((own.root / "unfinished").iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    kill(own)
    connection.close()
    assert any((own.root / "unfinished").iterdir()), "it was killed while a file was half written"
    own.start()
    check(own)
    assert not any((own.root / "unfinished").iterdir())
    client(own).upload_file(path_or_fileobj=data, path_in_repo="w.safetensors", repo_id="modelpress/x")
    check(own)


def test_killed_after_the_commit_and_before_the_answer(own: LocalHub) -> None:
    import httpx

    api = client(own)
    api.create_repo("modelpress/x")
    before = api.model_info("modelpress/x").sha
    rule = {"kind": "hold", "path": "/commit/main", "seconds": 300}
    httpx.post(f"{own.endpoint}/api/_faults", json=rule, headers={"Authorization": f"Bearer {own.write_token}"}).raise_for_status()
    outcome: list[str] = []

    def attempt() -> None:
        try:
            api.create_commit("modelpress/x", [CommitOperationAdd("a.txt", b"x")], commit_message="x", parent_commit=before)
        except httpx.TransportError:
            outcome.append("no answer")

    thread = threading.Thread(target=attempt)
    thread.start()
    deadline = time.monotonic() + 120
    while client(own).model_info("modelpress/x").sha == before and time.monotonic() < deadline:
        time.sleep(0.02)
    kill(own)
    thread.join(120)
    assert outcome == ["no answer"]
    own.start()
    check(own)
    after = client(own)
    assert after.list_repo_files("modelpress/x") == [".gitattributes", "a.txt"]
    assert len(after.list_repo_commits("modelpress/x")) == 2


def test_killed_at_random_while_many_write(own: LocalHub) -> None:
    """Commits of two files that must agree: after every kill the head holds a matching pair, and no answered commit is lost."""
    client(own).create_repo("modelpress/x")
    rng, answered = random.Random(7), -1
    for turn in range(3):
        stop = threading.Event()
        api = client(own)

        def write(first: int, api: Any = api, stop: threading.Event = stop) -> None:
            nonlocal answered
            number = first
            while not stop.is_set():
                text = f"{number:06d}"
                operations = [CommitOperationAdd("a.txt", text.encode()), CommitOperationAdd("b.safetensors", text.encode() * 1000)]
                with suppress(Exception):
                    api.create_commit("modelpress/x", operations, commit_message=text)
                    answered = max(answered, number)
                    number += 1
                    continue
                return

        thread = threading.Thread(target=write, args=(turn * 1000,))
        thread.start()
        until = time.monotonic() + 120
        while answered < turn * 1000 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(rng.random())
        kill(own)
        stop.set()
        own.start()
        thread.join(60)
        check(own)
        snapshot = Path(client(own).snapshot_download("modelpress/x", cache_dir=own.root.parent / f"cache{turn}"))
        assert answered >= turn * 1000, "nothing was written at all"
        number = (snapshot / "a.txt").read_text()
        assert (snapshot / "b.safetensors").read_text() == number * 1000
        assert int(number) >= answered


def test_what_nothing_refers_to_is_collected_after_a_day(own: LocalHub) -> None:
    api = client(own)
    api.create_repo("modelpress/x")
    api.upload_file(path_or_fileobj=b"gone soon" * 100, path_in_repo="w.safetensors", repo_id="modelpress/x")
    api.delete_repo("modelpress/x")
    api.create_repo("modelpress/y")
    blobs = list((own.root / "blobs").glob("??/*"))
    assert len(blobs) == 2
    own.stop()
    own.start()
    assert len(list((own.root / "blobs").glob("??/*"))) == 2, "an upload may still be under way"
    own.stop()
    for path in blobs:
        os.utime(path, (time.time() - 100_000,) * 2)
    own.start()
    assert len(list((own.root / "blobs").glob("??/*"))) == 1
    check(own)
    assert client(own).list_repo_files("modelpress/y") == [".gitattributes"]
