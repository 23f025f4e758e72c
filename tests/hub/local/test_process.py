"""Starting and ending: one server a folder, dying with its starter, tokens, ports, the log in the error."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hub.errors import HubError, HubUnreachable, StoreError, WorkFolderBusy
from hub.local.process import LocalHub

from ...ports import free_port  # noqa: TID252

pytestmark = pytest.mark.integration

STARTER = """
import sys, time
from pathlib import Path
from hub.local.process import LocalHub
hub = LocalHub(Path(sys.argv[1]), port=0, samples=False)
hub.start()
print(hub.pid, hub.endpoint, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def wait_for_end(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_starts_stops_and_keeps_its_tokens(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "h", port=0, samples=False) as hub:
        pid, tokens = hub.pid, (hub.write_token, hub.read_token)
        assert hub.endpoint.startswith("http://127.0.0.1:")
        assert pid is not None
        assert alive(pid)
    assert wait_for_end(pid)
    assert tokens[0] != tokens[1]
    assert stat.S_IMODE((tmp_path / "h/credentials.json").stat().st_mode) == 0o600
    with pytest.raises(HubUnreachable):
        _ = hub.endpoint
    with LocalHub(tmp_path / "h", port=0, samples=False) as again:
        assert (again.write_token, again.read_token) == tokens


def test_a_second_one_uses_the_first(tmp_path: Path) -> None:
    with LocalHub(tmp_path, port=0, samples=False) as first:
        with LocalHub(tmp_path, port=0, samples=False) as second:
            assert second.endpoint == first.endpoint
            assert second.pid is None
        with LocalHub(tmp_path, port=0, samples=False) as third:
            assert third.endpoint == first.endpoint, "leaving the second left the first running"
        with pytest.raises(WorkFolderBusy):
            LocalHub(tmp_path, port=0, samples=False, faults=True).start()


def test_many_at_once_share_one(tmp_path: Path) -> None:
    hubs = [LocalHub(tmp_path, port=0, samples=False) for _ in range(3)]
    threads = [threading.Thread(target=hub.start) for hub in hubs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    try:
        assert len({hub.endpoint for hub in hubs}) == 1
        assert sum(hub.pid is not None for hub in hubs) == 1
    finally:
        for hub in hubs:
            hub.stop()


def test_a_hub_started_from_a_thread_outlives_the_thread(tmp_path: Path) -> None:
    hub = LocalHub(tmp_path, port=0, samples=False)
    thread = threading.Thread(target=hub.start)
    thread.start()
    thread.join()
    time.sleep(0.3)
    try:
        assert hub.pid is not None
        assert alive(hub.pid)
    finally:
        hub.stop()


def test_another_port_where_the_wanted_one_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with LocalHub(tmp_path, port=port, samples=False) as hub:
            assert not hub.endpoint.endswith(f":{port}")
    assert f"Port {port} is taken" in (tmp_path / "server.log").read_text()


def test_the_wanted_port(tmp_path: Path) -> None:
    port = free_port()
    with LocalHub(tmp_path, port=port, samples=False) as hub:
        assert hub.endpoint == f"http://127.0.0.1:{port}"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_dies_with_a_starter_that_is_killed(tmp_path: Path) -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline().split()[0])
    assert alive(pid)
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    assert wait_for_end(pid)
    with LocalHub(tmp_path, port=0, samples=False) as hub:
        assert hub.pid is not None


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "hub.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(StoreError, match="damaged: file is not a database") as error:
        LocalHub(tmp_path, port=0, samples=False).start()
    assert "Restore" in error.value.hint


def test_damaged_credentials_are_named(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text("{")
    with pytest.raises(StoreError, match=r"credentials\.json is damaged"):
        LocalHub(tmp_path, port=0, samples=False).start()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file where a folder should be")
    with pytest.raises(HubError, match=f"cannot use {tmp_path}/blobs: File exists"):
        LocalHub(tmp_path, port=0, samples=False).start()


def test_a_server_that_dies_without_a_word_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    (tmp_path / "server.log").write_text("the last words\n")
    with pytest.raises(HubUnreachable, match="exit code 1") as error:
        LocalHub(tmp_path, port=0, samples=False).start()
    assert "the last words" in error.value.hint


def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "hub.db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreError, match="version 99"):
        LocalHub(tmp_path, port=0, samples=False).start()


def test_a_stale_server_card_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "server.json").write_text(
        json.dumps({"pid": os.getpid(), "endpoint": "http://127.0.0.1:9", "instance": "x", "faults": False})
    )
    with LocalHub(tmp_path, port=0, samples=False) as hub:
        assert hub.pid is not None


def test_other_host_names_are_refused_on_loopback(hub: LocalHub) -> None:
    import http.client

    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
    connection.request("GET", "/health", headers={"Host": "evil.example"})
    assert connection.getresponse().status == 400
    connection.close()


def test_listening_everywhere_warns(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hub.local", "--root", str(tmp_path), "--host", "0.0.0.0", "--port", "0", "--no-samples"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert "whoever reaches this machine" in process.stderr.readline()
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


def test_ctrl_c_ends_it_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hub.local", "--root", str(tmp_path), "--port", "0", "--no-samples"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    while "Started server process" not in process.stderr.readline():
        pass
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert not (tmp_path / "server.json").exists()


def test_starts_quickly(tmp_path: Path) -> None:
    """In processor time, so that a busy machine does not decide."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with LocalHub(tmp_path, port=0, samples=False):
        pass
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 1.5


def test_the_server_imports_nothing_heavy() -> None:
    heavy = ("huggingface_hub", "torch", "pydantic", "sqlalchemy", "transformers")
    code = f"import sys, hub.local.__main__; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
