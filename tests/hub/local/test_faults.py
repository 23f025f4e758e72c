"""Every fault as the real client meets it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

from hub.local.process import LocalHub

pytestmark = pytest.mark.integration


@pytest.fixture
def data() -> bytes:
    return os.urandom(250_000)


@pytest.fixture
def loaded(api: Any, repo: str, data: bytes) -> str:
    api.upload_file(path_or_fileobj=data, path_in_repo="w.safetensors", repo_id=repo)
    return repo


def rules(raw: Any, hub: LocalHub) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(raw("GET", "/api/_faults", token=hub.write_token)[2])
    return found


def test_status_once(api: Any, loaded: str, fault: Any, raw: Any, hub: LocalHub) -> None:
    fault("status", f"/api/models/{loaded}$", method="GET", status=503)
    with pytest.raises(HfHubHTTPError) as error:
        api.model_info(loaded)
    assert error.value.response.status_code == 503
    assert api.model_info(loaded).id == loaded
    assert [(rule["kind"], rule["used"]) for rule in rules(raw, hub)] == [("status", 1)]


def test_status_with_retry_after_is_retried_by_the_client(api: Any, loaded: str, fault: Any) -> None:
    fault("status", "/info/lfs/objects/batch", status=429, headers={"Retry-After": "1"})
    start = time.monotonic()
    api.upload_file(path_or_fileobj=os.urandom(100), path_in_repo="x.bin", repo_id=loaded)
    assert time.monotonic() - start >= 0.9


def test_after_lets_requests_pass_first(api: Any, loaded: str, fault: Any) -> None:
    fault("status", f"/api/models/{loaded}$", after=1, status=500)
    api.model_info(loaded)
    with pytest.raises(HfHubHTTPError):
        api.model_info(loaded)
    api.model_info(loaded)


def test_delay_runs_into_the_clients_timeout(api: Any, loaded: str, fault: Any) -> None:
    import httpx

    fault("delay", f"/api/models/{loaded}$", seconds=3)
    with pytest.raises(httpx.TimeoutException):
        api.model_info(loaded, timeout=0.5)


def test_cut_before_any_answer(api: Any, loaded: str, fault: Any) -> None:
    import httpx

    fault("cut", f"/api/models/{loaded}$")
    with pytest.raises(httpx.TransportError):
        api.model_info(loaded)


def test_cut_in_the_middle_is_resumed_by_range(
    api: Any, loaded: str, data: bytes, fault: Any, tmp_path: Path, raw: Any, hub: LocalHub
) -> None:
    fault("cut", "/resolve/.*/w.safetensors", method="GET", bytes=100_000)
    assert Path(api.hf_hub_download(loaded, "w.safetensors", cache_dir=tmp_path)).read_bytes() == data
    assert rules(raw, hub)[0]["used"] == 1


def test_cut_of_a_range_request(raw: Any, loaded: str, fault: Any) -> None:
    import http.client

    fault("cut", "/resolve/.*/w.safetensors", bytes=10)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        raw("GET", f"/{loaded}/resolve/main/w.safetensors", headers={"Range": "bytes=0-99"})


def test_cut_upload_is_sent_again(api: Any, repo: str, fault: Any, raw: Any, hub: LocalHub, tmp_path: Path) -> None:
    data = os.urandom(250_000)
    fault("cut-upload", "/lfs/objects/", method="PUT", bytes=50_000)
    api.upload_file(path_or_fileobj=data, path_in_repo="x.bin", repo_id=repo)
    assert rules(raw, hub)[0]["used"] == 1
    assert Path(api.hf_hub_download(repo, "x.bin", cache_dir=tmp_path)).read_bytes() == data


def test_a_hub_that_dies_in_mid_upload_and_comes_back_gets_it_after_all(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from urllib.parse import urlsplit

    import httpx
    from huggingface_hub import HfApi

    data = os.urandom(250_000)
    with ThreadPoolExecutor() as pool:
        with LocalHub(tmp_path / "hub", port=0, samples=False, faults=True) as hub:
            api = HfApi(endpoint=hub.endpoint, token=hub.write_token)
            api.create_repo("modelpress/x")
            rule = {"kind": "die", "path": "/lfs/objects/", "method": "PUT", "bytes": 50_000}
            headers = {"Authorization": f"Bearer {hub.write_token}"}
            assert httpx.post(f"{hub.endpoint}/api/_faults", json=rule, headers=headers).status_code == 200
            upload = pool.submit(api.upload_file, path_or_fileobj=data, path_in_repo="x.bin", repo_id="modelpress/x")
            assert hub.pid is not None
            os.waitid(os.P_PID, hub.pid, os.WEXITED | os.WNOWAIT)
            port = urlsplit(hub.endpoint).port
        with LocalHub(tmp_path / "hub", port=port or 0, samples=False):
            upload.result(60)
            assert Path(api.hf_hub_download("modelpress/x", "x.bin", cache_dir=tmp_path / "cache")).read_bytes() == data


def test_wrong_bytes_pass_the_client_but_not_the_checksums(api: Any, loaded: str, data: bytes, fault: Any, tmp_path: Path) -> None:
    fault("corrupt", "/resolve/.*/w.safetensors", method="GET")
    got = Path(api.hf_hub_download(loaded, "w.safetensors", cache_dir=tmp_path)).read_bytes()
    assert len(got) == len(data)
    assert got != data
    checked = api.verify_repo_checksums(loaded, cache_dir=tmp_path)
    assert [mismatch["path"] for mismatch in checked.mismatches] == ["w.safetensors"]


@pytest.mark.parametrize("status", [500, 503])
def test_a_lost_answer_has_landed_all_the_same(api: Any, repo: str, fault: Any, status: int) -> None:
    before = api.model_info(repo).sha
    fault("lost", f"/api/models/{repo}/commit/main", method="POST", status=status)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit(repo, [CommitOperationAdd("a.txt", b"x")], commit_message="lost", parent_commit=before)
    assert error.value.response.status_code == status
    assert "a.txt" in api.list_repo_files(repo)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit(repo, [CommitOperationAdd("a.txt", b"y")], commit_message="again", parent_commit=before)
    assert error.value.response.status_code == 412


def test_hold_answers_late(api: Any, repo: str, fault: Any) -> None:
    fault("hold", f"/api/models/{repo}/commit/main", seconds=0.5)
    start = time.monotonic()
    api.create_commit(repo, [CommitOperationAdd("a.txt", b"x")], commit_message="slow")
    assert time.monotonic() - start >= 0.5


def test_zero_times_means_always(api: Any, loaded: str, fault: Any) -> None:
    fault("status", f"/api/models/{loaded}$", times=0, status=500)
    for _ in range(3):
        with pytest.raises(HfHubHTTPError):
            api.model_info(loaded)


@pytest.mark.parametrize(
    "rule", [{}, {"kind": "magic", "path": "x"}, {"kind": "cut", "path": "("}, {"kind": "cut", "path": "x", "more": 1}, [1]]
)
def test_malformed_faults_are_refused(raw: Any, hub: LocalHub, rule: Any) -> None:
    assert raw("POST", "/api/_faults", rule, token=hub.write_token)[0] == 400


def test_faults_need_the_write_token(raw: Any, hub: LocalHub) -> None:
    assert raw("POST", "/api/_faults", {"kind": "cut", "path": "x"})[0] == 401
    assert raw("POST", "/api/_faults", {"kind": "cut", "path": "x"}, token=hub.read_token)[0] == 401


def test_without_the_switch_there_are_no_faults(tmp_path: Path) -> None:
    import urllib.error
    import urllib.request

    with LocalHub(tmp_path, port=0, samples=False) as plain:
        request = urllib.request.Request(f"{plain.endpoint}/api/_faults", b"{}", {"Authorization": f"Bearer {plain.write_token}"})
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        assert error.value.code in (404, 405)
