"""Bytes up and down through the real client: LFS in one and in many parts, ranges, ETags, snapshots, checksums."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

pytestmark = pytest.mark.integration


@pytest.fixture
def data() -> bytes:
    return os.urandom(456_789)


@pytest.fixture
def loaded(api: Any, repo: str, data: bytes) -> str:
    """A repository with an LFS file and a text."""
    operations = [CommitOperationAdd("w.safetensors", data), CommitOperationAdd("a/b c#ä.txt", b"text")]
    api.create_commit(repo, operations, commit_message="load")
    return repo


def batch(
    raw: Any, hub: Any, repo: str, data: bytes, transfers: tuple[str, ...] = ("basic", "multipart"), size: int | None = None
) -> dict[str, Any]:
    body = {
        "operation": "upload",
        "transfers": list(transfers),
        "objects": [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data) if size is None else size}],
    }
    status, _, answer = raw("POST", f"/{repo}.git/info/lfs/objects/batch", body, token=hub.write_token)
    assert status == 200, answer
    found: dict[str, Any] = json.loads(answer)["objects"][0]
    return found


def test_the_client_splits_what_is_large(raw: Any, hub: Any, repo: str) -> None:
    large, small = os.urandom(450_001), os.urandom(1000)
    header = batch(raw, hub, repo, large)["actions"]["upload"]["header"]
    assert header["chunk_size"] == "100000"
    assert [key for key in header if key.isdigit()] == ["00001", "00002", "00003", "00004", "00005"]
    assert "chunk_size" not in batch(raw, hub, repo, large, ("basic",))["actions"]["upload"]["header"]
    assert "chunk_size" not in batch(raw, hub, repo, small)["actions"]["upload"]["header"]


@pytest.mark.parametrize("size", [1, 299_999, 300_000, 300_001, 400_000, 456_789])
def test_uploads_come_back_as_they_were(api: Any, repo: str, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "w.safetensors").write_bytes(data)
    api.upload_file(path_or_fileobj=tmp_path / "w.safetensors", path_in_repo="w.safetensors", repo_id=repo)
    assert Path(api.hf_hub_download(repo, "w.safetensors", cache_dir=tmp_path / "cache")).read_bytes() == data
    (sibling,) = [sibling for sibling in api.model_info(repo, files_metadata=True).siblings if sibling.rfilename == "w.safetensors"]
    assert sibling.lfs.sha256 == hashlib.sha256(data).hexdigest()
    assert sibling.size == sibling.lfs.size == size


def test_what_is_there_is_not_sent_again(api: Any, raw: Any, hub: Any, loaded: str, data: bytes) -> None:
    assert "actions" not in batch(raw, hub, loaded, data)
    assert batch(raw, hub, loaded, data, size=5)["error"]["code"] == 422


@pytest.mark.parametrize("wrong", [b"", b"other bytes of another length", b"#" * 1000])
def test_wrong_bytes_are_refused_in_one_piece(raw: Any, hub: Any, repo: str, wrong: bytes) -> None:
    promised = os.urandom(1000)
    action = batch(raw, hub, repo, promised)["actions"]
    path = action["upload"]["href"].removeprefix(hub.endpoint)
    assert raw("PUT", path, wrong)[0] == 422
    status, _, _ = raw(
        "POST",
        action["verify"]["href"].removeprefix(hub.endpoint),
        {"oid": hashlib.sha256(promised).hexdigest(), "size": 1000},
        token=hub.write_token,
    )
    assert status == 404
    assert raw("PUT", path, promised)[0] == 200


def test_parts_are_checked(raw: Any, hub: Any, repo: str) -> None:
    data = os.urandom(350_000)
    upload = batch(raw, hub, repo, data)["actions"]["upload"]
    oid, etags = hashlib.sha256(data).hexdigest(), []
    complete = upload["href"].removeprefix(hub.endpoint)
    for number in range(4):
        path = upload["header"][f"{number + 1:05d}"].removeprefix(hub.endpoint)
        piece = data[number * 100_000 : (number + 1) * 100_000]
        assert raw("PUT", path, piece + b"x")[0] == 400
        status, headers, _ = raw("PUT", path, piece)
        assert status == 200
        etags.append(headers["etag"])
    parts = [{"partNumber": number, "etag": etag} for number, etag in enumerate(etags, 1)]
    assert raw("POST", complete, {"oid": oid, "parts": parts[:3]})[0] == 400
    assert raw("POST", complete, {"oid": oid, "parts": [*parts[:3], {"partNumber": 4, "etag": f'"{"0" * 64}"'}]})[0] == 400
    assert raw("POST", complete, {"oid": oid, "parts": "none"})[0] == 400
    assert raw("POST", complete, {"oid": oid, "parts": parts})[0] == 200
    assert raw("POST", complete, {"oid": oid, "parts": parts})[0] == 200, "a second time, after a lost answer"


@pytest.mark.parametrize(
    "change", [("signature=", "signature=0"), ("expires=", "expires=1"), ("size=1000", "size=1001"), ("objects/", "objects/../objects/")]
)
def test_upload_addresses_cannot_be_forged(raw: Any, hub: Any, repo: str, change: tuple[str, str]) -> None:
    path = batch(raw, hub, repo, os.urandom(1000))["actions"]["upload"]["href"].removeprefix(hub.endpoint)
    assert raw("PUT", path.replace(*change), b"x" * 1000)[0] in (403, 404)


def test_the_read_token_gets_no_upload_address(raw: Any, hub: Any, repo: str) -> None:
    body = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1}]}
    assert raw("POST", f"/{repo}.git/info/lfs/objects/batch", body, token=hub.read_token)[0] == 403
    assert raw("POST", f"/{repo}.git/info/lfs/objects/batch", body)[0] == 401


def test_lfs_downloads_by_signed_address(raw: Any, hub: Any, loaded: str, data: bytes) -> None:
    body = {
        "operation": "download",
        "objects": [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}, {"oid": "0" * 64, "size": 1}],
    }
    found, missing = json.loads(raw("POST", f"/{loaded}.git/info/lfs/objects/batch", body)[2])["objects"]
    assert raw("GET", found["actions"]["download"]["href"].removeprefix(hub.endpoint))[2] == data
    assert missing["error"]["code"] == 404


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=100-", 100, 456_789),
        ("bytes=-5", 456_784, 456_789),
        ("bytes=456788-999999", 456_788, 456_789),
        ("bytes=0-0", 0, 1),
    ],
)
def test_ranges(raw: Any, loaded: str, data: bytes, asked: str, start: int, end: int) -> None:
    status, headers, body = raw("GET", f"/{loaded}/resolve/main/w.safetensors", headers={"Range": asked})
    assert status == 206
    assert body == data[start:end]
    assert headers["content-range"] == f"bytes {start}-{end - 1}/456789"
    assert headers["content-length"] == str(end - start)


def test_a_range_beyond_the_end(raw: Any, loaded: str) -> None:
    status, headers, _ = raw("GET", f"/{loaded}/resolve/main/w.safetensors", headers={"Range": "bytes=456789-"})
    assert status == 416
    assert headers["content-range"] == "bytes */456789"


def test_headers_of_a_file(api: Any, raw: Any, loaded: str, data: bytes) -> None:
    sha, digest = api.model_info(loaded).sha, hashlib.sha256(data).hexdigest()
    for method in ("HEAD", "GET"):
        status, headers, body = raw(method, f"/{loaded}/resolve/main/w.safetensors")
        assert status == 200
        assert headers["x-repo-commit"] == sha
        assert headers["etag"] == headers["x-linked-etag"] == f'"{digest}"'
        assert headers["x-linked-size"] == headers["content-length"] == "456789"
        assert headers["accept-ranges"] == "bytes"
        assert headers["x-content-type-options"] == "nosniff"
        assert body == (data if method == "GET" else b"")
    assert raw("GET", f"/{loaded}/resolve/main/w.safetensors", headers={"If-None-Match": f'"{digest}"'})[0] == 304
    status, headers, body = raw("GET", f"/{loaded}/resolve/{sha}/a/b%20c%23%C3%A4.txt")
    assert (status, body) == (200, b"text")
    assert "x-linked-etag" not in headers
    assert len(headers["etag"]) == 42


def test_if_range(raw: Any, loaded: str, data: bytes) -> None:
    path, digest = f"/{loaded}/resolve/main/w.safetensors", hashlib.sha256(data).hexdigest()
    assert raw("GET", path, headers={"Range": "bytes=0-9", "If-Range": f'"{digest}"'})[0] == 206
    assert raw("GET", path, headers={"Range": "bytes=0-9", "If-Range": '"other"'})[2] == data


def test_missing_files_and_revisions(api: Any, raw: Any, loaded: str, tmp_path: Path) -> None:
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(loaded, "none.txt", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download(loaded, "w.safetensors", revision="none", cache_dir=tmp_path)
    status, headers, _ = raw("HEAD", f"/{loaded}/resolve/main/none.txt")
    assert (status, headers["x-error-code"]) == (404, "EntryNotFound")
    assert headers["x-repo-commit"] == api.model_info(loaded).sha


@pytest.mark.parametrize("path", ["../../hub.db", "..%2F..%2Fhub.db", "%2e%2e/%2e%2e/credentials.json", "/etc/passwd", "%00", "a/../../x"])
def test_paths_that_lead_out_find_nothing(raw: Any, loaded: str, path: str) -> None:
    status, _, body = raw("GET", f"/{loaded}/resolve/main/{path}")
    assert status == 404
    assert b"token" not in body


def test_snapshot_and_its_checksums(api: Any, repo: str, folder: Path, tmp_path: Path) -> None:
    api.upload_folder(repo_id=repo, folder_path=folder)
    snapshot = Path(api.snapshot_download(repo, cache_dir=tmp_path / "cache"))
    for path in folder.rglob("*"):
        if path.is_file():
            assert (snapshot / path.relative_to(folder)).read_bytes() == path.read_bytes()
    checked = api.verify_repo_checksums(repo, cache_dir=tmp_path / "cache")
    assert (checked.mismatches, checked.missing_paths) == ([], [])
    assert checked.checked_count == 6
    subset = Path(api.snapshot_download(repo, cache_dir=tmp_path / "some", allow_patterns=["*.md"]))
    assert [path.name for path in subset.rglob("*") if path.is_file()] == ["README.md"]


def test_checksums_find_a_changed_file(api: Any, repo: str, folder: Path, tmp_path: Path) -> None:
    api.upload_folder(repo_id=repo, folder_path=folder)
    local = Path(api.snapshot_download(repo, local_dir=tmp_path / "here"))
    (local / "small.safetensors").write_bytes(b"#" * 1000)
    (local / "nested/deep/note.txt").write_bytes(b"changed")
    checked = api.verify_repo_checksums(repo, local_dir=local)
    assert {mismatch["path"] for mismatch in checked.mismatches} == {"small.safetensors", "nested/deep/note.txt"}


def test_safetensors_metadata(api: Any, samples: Path) -> None:
    there = sorted(folder.name for folder in samples.glob("*") if (folder / "README.md").exists())
    if not there:
        pytest.skip("no sample models in this checkout")
    repo_id = f"modelpress-samples/{there[0]}"
    metadata = api.get_safetensors_metadata(repo_id)
    assert sum(metadata.parameter_count.values()) == api.model_info(repo_id).safetensors.total


def test_a_readme_is_checked(api: Any, raw: Any) -> None:
    status, _, body = raw("POST", "/api/validate-yaml", {"content": "---\ntags: text\n---\n", "repoType": "model"})
    assert status == 400
    assert "tags" in json.loads(body)["errors"][0]["message"]
    status, _, body = raw("POST", "/api/validate-yaml", {"content": "# no metadata", "repoType": "model"})
    assert status == 200
    assert "empty or missing" in json.loads(body)["warnings"][0]["message"]
    assert json.loads(raw("POST", "/api/validate-yaml", {"content": "---\nlicense: mit\n---\n"})[2]) == {"errors": [], "warnings": []}


def test_the_start_up_probe_is_no_list(raw: Any) -> None:
    assert raw("GET", "/api/agent-harnesses")[2] == b"{}"
