"""The client against the embedded hub in a process of its own, over real HTTP, with real faults."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from hub import names, transfer, transport
from hub.client import HubClient
from hub.domain import HubFile, ModelRef
from hub.errors import (
    HubConflict,
    HubCorrupt,
    HubError,
    HubNotFound,
    HubRefused,
    HubUnreachable,
    ModelPressError,
    OutOfDisk,
    PolicyRefusal,
    UsageError,
)
from hub.local.process import LocalHub
from hub.transport import calling

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

CARD = "---\nlicense: mit\npipeline_tag: text-generation\nlanguage: [en]\n---\n# A model\n"
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4})


def safetensors(values: int = 64) -> bytes:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(range(256))[: 4 * values].ljust(4 * values, b"\1")


FILES: dict[str, bytes] = {
    "README.md": CARD.encode(),
    "config.json": CONFIG.encode(),
    "model.safetensors": safetensors(),
    "tokenizer.json": b'{"version": "1.0"}',
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0, samples=False, faults=True) as running:
        yield running


@pytest.fixture
def client(hub: LocalHub, tmp_path: Path) -> HubClient:
    return HubClient(endpoint=hub.endpoint, token=hub.write_token, cache_dir=tmp_path / "cache", patience_s=6)


@pytest.fixture
def repo(client: HubClient, request: pytest.FixtureRequest) -> str:
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    repo_id = f"modelpress/m-{name}"
    client.create(repo_id)
    return repo_id


@pytest.fixture
def fault(hub: LocalHub) -> Iterator[Callable[..., None]]:
    headers = {"Authorization": f"Bearer {hub.write_token}"}
    url = f"{hub.endpoint}/api/_faults"

    def add(kind: str, path: str, **more: Any) -> None:
        httpx.post(url, headers=headers, json={"kind": kind, "path": path, **more}).raise_for_status()

    yield add
    httpx.delete(url, headers=headers).raise_for_status()


@pytest.fixture
def published(client: HubClient, repo: str) -> ModelRef:
    return ModelRef(repo_id=repo, sha=client.commit(repo, FILES, message="All of it", parent=None))


def _used(hub: LocalHub) -> int:
    rules = httpx.get(f"{hub.endpoint}/api/_faults", headers={"Authorization": f"Bearer {hub.write_token}"}).json()
    return sum(rule["used"] for rule in rules)


def _commits(hub: LocalHub, repo_id: str) -> int:
    return len(httpx.get(f"{hub.endpoint}/api/models/{repo_id}/commits/main").json())


def _fresh(client: HubClient, folder: Path) -> HubClient:
    return HubClient(endpoint=client.endpoint, token=None, cache_dir=folder, patience_s=6)


# -- reading


def test_a_model_is_read_whole(client: HubClient, published: ModelRef) -> None:
    found = client.candidate(published.repo_id)
    assert found.ref == published
    assert (found.license, found.pipeline_tag, found.languages, found.architecture) == (
        "mit",
        "text-generation",
        ("en",),
        "LlamaForCausalLM",
    )
    assert found.parameters == 64
    sizes = {file.path: file.size for file in found.files}
    assert sizes.pop(".gitattributes") > 0
    assert sizes == {path: len(content) for path, content in FILES.items()}
    assert set(client.files(published.repo_id, published.sha)) == set(found.files)
    weights = next(file for file in found.files if file.path == "model.safetensors")
    assert weights.sha256 == hashlib.sha256(FILES["model.safetensors"]).hexdigest()


def test_custom_code_is_seen(client: HubClient, repo: str) -> None:
    config = json.dumps({"architectures": ["X"], "auto_map": {"AutoModel": "modeling_x.X"}})
    client.commit(repo, {**FILES, "config.json": config.encode()}, message="Code", parent=None)
    assert "custom_code" in client.candidate(repo).tags


def test_heads_and_existence(client: HubClient, published: ModelRef) -> None:
    assert client.exists(published.repo_id)
    assert client.head(published.repo_id) == published.sha
    assert not client.exists("modelpress/no-such-model")
    assert client.head("modelpress/no-such-model") is None
    with pytest.raises(HubNotFound, match=r"no-such-model.*no such repository"):
        client.candidate("modelpress/no-such-model")
    with pytest.raises(HubNotFound, match="no such revision"):
        client.candidate(published.repo_id, "f" * 40)


def test_popular_gives_details_in_the_hubs_order(client: HubClient, published: ModelRef) -> None:
    found = client.popular(limit=100, sort="last_modified", pipeline_tag="text-generation")
    assert published.repo_id in [candidate.ref.repo_id for candidate in found]
    assert all(candidate.files and candidate.ref.sha for candidate in found)
    assert client.popular(limit=1, sort="last_modified", pipeline_tag="text-generation")[0].ref.repo_id == published.repo_id
    assert client.popular(limit=5, sort="likes", pipeline_tag="translation") == []


@pytest.mark.parametrize(("status", "code"), [(404, "RepoNotFound"), (400, "")])
def test_a_model_that_cannot_be_read_after_it_was_listed_is_not_skipped_in_silence(
    client: HubClient, published: ModelRef, fault: Callable[..., None], status: int, code: str
) -> None:
    fault("status", f"/api/models/{published.repo_id}$", status=status, headers={"X-Error-Code": code})
    found = client.popular(limit=100, sort="last_modified", pipeline_tag=None)
    gone = next(candidate for candidate in found if candidate.ref.repo_id == published.repo_id)
    assert gone.ref.sha == ""


def test_text_files(client: HubClient, published: ModelRef) -> None:
    assert client.read_text(published.repo_id, published.sha, "README.md") == CARD
    assert client.read_text(published.repo_id, published.sha, "none.txt") is None
    with pytest.raises(HubError, match=r"model\.safetensors.*not UTF-8"):
        client.read_text(published.repo_id, published.sha, "model.safetensors")
    with pytest.raises(PolicyRefusal):
        client.read_text(published.repo_id, published.sha, "../x")


def test_the_account(hub: LocalHub, client: HubClient, tmp_path: Path) -> None:
    account = client.account()
    assert (account.name, account.role) == ("modelpress", "write")
    assert account.orgs
    reader = HubClient(endpoint=hub.endpoint, token=hub.read_token, cache_dir=tmp_path)
    assert reader.account().role == "read"
    with pytest.raises(HubRefused, match="wants a token"):
        _fresh(client, tmp_path).account()
    with pytest.raises(HubRefused, match="401"):
        HubClient(endpoint=hub.endpoint, token="hf_wrong", cache_dir=tmp_path).account()


def test_no_saved_token_is_sent_in_place_of_none(client: HubClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")  # sent, it would be refused with 401
    assert _fresh(client, tmp_path).popular(limit=1, sort="downloads", pipeline_tag=None) is not None


def test_cards_are_checked_by_the_hub_itself(client: HubClient) -> None:
    assert client.validate_card(CARD) == []
    assert client.validate_card("---\nlicense: [\n---\n") != []


def test_addresses(client: HubClient) -> None:
    assert client.url("a/b") == f"{client.endpoint}/a/b"
    assert client.url("a/b", "f" * 40) == f"{client.endpoint}/a/b/tree/{'f' * 40}"
    with pytest.raises(UsageError, match="not encrypted"):
        HubClient(endpoint="http://hub.example", token="x", cache_dir=Path("unused"))


@pytest.mark.parametrize("repo_id", ["gpt2", "../x/y", "a/b/c", "a/..", "a/b--c", "a/b\n", "a/" + "x" * 100])
def test_a_wrong_id_is_never_asked_for(client: HubClient, repo_id: str) -> None:
    for call in (client.candidate, client.exists, lambda name: client.files(name, "f" * 40), client.create):
        with pytest.raises(UsageError):
            call(repo_id)


# -- downloading


def test_a_download_is_verified_once_and_asked_for_once(
    client: HubClient, published: ModelRef, tmp_path: Path, fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _fresh(client, tmp_path / "other")
    folder = reader.download(published)
    assert folder.name == published.sha
    assert {path: (folder / path).read_bytes() for path in FILES} == FILES
    fault("status", "/", times=0, status=500)  # from here on nothing may be asked
    monkeypatch.setattr(transfer, "sums", lambda _path: pytest.fail("hashed again"))
    assert reader.download(published) == folder
    assert reader.download(published, patterns=["*.json"]) == folder
    again = _fresh(client, tmp_path / "other")
    assert again.download(published, patterns=["model*"], into=tmp_path / "copy") == tmp_path / "copy"


def test_patterns_and_a_copy_of_its_own(client: HubClient, published: ModelRef, tmp_path: Path) -> None:
    reader = _fresh(client, tmp_path / "other")
    into = tmp_path / "deep" / "copy"
    assert reader.download(published, patterns=["*.json", "README.md"], into=into) == into
    assert sorted(path.name for path in into.iterdir()) == ["README.md", "config.json", "tokenizer.json"]
    assert not any(path.is_symlink() for path in into.iterdir())
    assert not (reader.download(published, patterns=["*.json"]) / "model.safetensors").exists()
    assert {path.stat().st_nlink for path in into.iterdir()} == {1}
    assert reader.download(published, patterns=["*.json"], into=tmp_path / "linked", linked=True) == tmp_path / "linked"
    assert {(path.is_symlink(), path.stat().st_nlink) for path in (tmp_path / "linked").iterdir()} == {(False, 2)}
    assert (tmp_path / "linked" / "config.json").read_bytes() == (into / "config.json").read_bytes()
    with pytest.raises(UsageError, match="not an empty folder"):
        reader.download(published, into=into)
    with pytest.raises(HubNotFound, match=r"no file that fits \*\.gguf"):
        reader.download(published, patterns=["*.gguf"])


def test_a_pattern_stays_inside_a_folder() -> None:
    top = HubFile(path="model.safetensors", size=1, blob_id="0" * 40)
    nested = replace(top, path="model-x/y.safetensors")
    assert transfer.wanted([top, nested], ["model*.safetensors"]) == (top,)
    assert transfer.wanted([top, nested], ["model-x/*.safetensors"]) == (nested,)
    assert transfer.wanted([top, nested], None) == (top, nested)


def test_what_a_killed_download_left_is_removed_in_time(client: HubClient, published: ModelRef, tmp_path: Path) -> None:
    reader = _fresh(client, tmp_path / "other")
    blobs = reader.download(published, patterns=["config.json"]).parent.parent / "blobs"
    old, young = blobs / "x.0a.incomplete", blobs / "x.0b.incomplete"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    reader.download(published)
    assert not old.exists()
    assert young.exists()


def test_two_readers_of_one_cache(client: HubClient, published: ModelRef, tmp_path: Path) -> None:
    readers = [_fresh(client, tmp_path / "other") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda reader: reader.download(published), readers))
    assert len(set(folders)) == 1
    assert {path: (folders[0] / path).read_bytes() for path in FILES} == FILES


def test_what_was_changed_on_the_disk_is_found_and_fetched_again(client: HubClient, published: ModelRef, tmp_path: Path) -> None:
    reader = _fresh(client, tmp_path / "other")
    weights = reader.download(published) / "model.safetensors"
    right = weights.read_bytes()
    weights.resolve().write_bytes(right[:-1] + b"!")
    assert (reader.download(published) / "model.safetensors").read_bytes() == right
    weights.resolve().write_bytes(right[:10])
    assert (reader.download(published) / "model.safetensors").read_bytes() == right
    weights.unlink()
    assert (reader.download(published) / "model.safetensors").read_bytes() == right


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_wrong_bytes_once_are_fetched_again(
    client: HubClient, published: ModelRef, tmp_path: Path, fault: Callable[..., None], hub: LocalHub, path: str
) -> None:
    fault("corrupt", f"/{path}$", method="GET", times=1)
    fault("corrupt", "/lfs/objects/", method="GET", times=0 if path == "none" else 1)
    folder = _fresh(client, tmp_path / "other").download(published)
    assert (folder / path).read_bytes() == FILES[path]
    assert _used(hub) >= 1


def test_wrong_bytes_twice_are_an_error_and_leave_nothing(
    client: HubClient, published: ModelRef, tmp_path: Path, fault: Callable[..., None]
) -> None:
    fault("corrupt", r"/resolve/.*/model\.safetensors$|/lfs/objects/", method="GET", times=0)
    reader = _fresh(client, tmp_path / "other")
    wrong = hashlib.sha256(FILES["model.safetensors"]).hexdigest()[:12]
    with pytest.raises(HubCorrupt, match=rf"model\.safetensors.*came wrong twice.*{wrong}") as caught:
        reader.download(published, into=tmp_path / "copy")
    assert caught.value.retryable
    assert not (tmp_path / "copy").exists()
    assert not list((tmp_path / "other").rglob("model.safetensors"))
    for file in (tmp_path / "other").rglob("blobs/*"):
        assert file.stat().st_size != len(FILES["model.safetensors"])


def test_a_stream_that_breaks_off_is_taken_up_again(
    client: HubClient, repo: str, tmp_path: Path, fault: Callable[..., None], hub: LocalHub
) -> None:
    large = safetensors(300_000)
    ref = ModelRef(repo_id=repo, sha=client.commit(repo, {**FILES, "model.safetensors": large}, message="Large", parent=None))
    fault("cut", r"/resolve/.*/model\.safetensors$|/lfs/objects/", method="GET", bytes=500_000)
    folder = _fresh(client, tmp_path / "other").download(ref)
    assert (folder / "model.safetensors").read_bytes() == large
    assert _used(hub) == 1


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_stumbles_is_asked_again(
    client: HubClient, published: ModelRef, tmp_path: Path, fault: Callable[..., None], hub: LocalHub, status: int
) -> None:
    fault("status", f"/api/models/{published.repo_id}", status=status, times=2, headers={"Retry-After": "0"})
    fault("status", "/resolve/", method="GET", status=status)
    fault("cut", "/api/whoami-v2")
    reader = _fresh(client, tmp_path / "other")
    assert reader.candidate(published.repo_id).ref == published
    assert (reader.download(published) / "config.json").exists()
    assert client.account().name == "modelpress"
    assert _used(hub) == 4


def test_a_gated_model_is_refused_in_words(client: HubClient, hub: LocalHub, tmp_path: Path) -> None:
    repo_id = "modelpress/gated-model"
    client.create(repo_id, gated="manual")
    sha = client.commit(repo_id, FILES, message="All", parent=None)
    assert client.candidate(repo_id).gated == "manual"
    with pytest.raises(HubRefused, match="gated") as caught:
        _fresh(client, tmp_path / "other").download(ModelRef(repo_id=repo_id, sha=sha))
    assert "HF_TOKEN" in caught.value.hint


@contextmanager
def _answering(reply: Callable[[str], object]) -> Iterator[str]:
    """A hub of our own making that answers every GET and POST with what `reply` gives for its path: text, or anything else as JSON."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answer = reply(self.path)
            body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _tree(**sizes: int) -> list[dict[str, object]]:
    return [{"type": "file", "path": path, "size": size, "oid": "0" * 40} for path, size in sizes.items()]


@pytest.mark.parametrize("path", ["../../evil", "/etc/passwd", ".git/config", ".cache/huggingface/x", "Config.json", "a\nb", "x\u202ey"])
def test_a_hostile_tree_is_refused_before_anything_is_fetched(tmp_path: Path, path: str) -> None:
    asked: list[str] = []

    def reply(url: str) -> object:
        asked.append(url)
        return _tree(**{"config.json": 3, path: 3})

    with _answering(reply) as endpoint:
        reader = HubClient(endpoint=endpoint, token=None, cache_dir=tmp_path / "cache", patience_s=1)
        with pytest.raises(PolicyRefusal, match="is refused") as caught:
            reader.download(ModelRef(repo_id="a/b", sha="f" * 40), patterns=["config.json"])
    assert names.shown(path) in caught.value.message
    assert len(asked) == 1
    assert "/tree/" in asked[0]
    assert not (tmp_path / "cache").exists()


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    with _answering(lambda _url: _tree(**{"model.safetensors": 1 << 60})) as endpoint:
        reader = HubClient(endpoint=endpoint, token=None, cache_dir=tmp_path / "cache", patience_s=1)
        with pytest.raises(OutOfDisk, match=r"needs 1152921504\.61 GB .* GB free"):
            reader.download(ModelRef(repo_id="a/b", sha="f" * 40))
    assert not list((tmp_path / "cache").iterdir())


def test_a_revision_must_be_a_commit(client: HubClient, published: ModelRef) -> None:
    with pytest.raises(UsageError, match="'main' is not a commit"):
        client.download(replace(published, sha="main"))
    with pytest.raises(HubNotFound):
        client.download(replace(published, sha="f" * 40))


def test_two_hubs_in_one_process(client: HubClient, published: ModelRef, tmp_path: Path) -> None:
    with LocalHub(tmp_path / "second", port=0, samples=False) as second:
        other = HubClient(endpoint=second.endpoint, token=second.write_token, cache_dir=tmp_path / "cache2")
        assert not other.exists(published.repo_id)
        assert client.exists(published.repo_id)
        other.create(published.repo_id)
        sha = other.commit(published.repo_id, {"config.json": b"{}"}, message="Another", parent=None)
        assert other.read_text(published.repo_id, sha, "config.json") == "{}"
        assert client.head(published.repo_id) == published.sha


# -- writing


def test_a_commit_follows_its_parent_or_conflicts(client: HubClient, published: ModelRef) -> None:
    first = published.sha
    second = client.commit(published.repo_id, {"a.txt": b"a"}, message="Second", parent=first)
    assert second != first
    with pytest.raises(HubConflict, match="412"):
        client.commit(published.repo_id, {"a.txt": b"b"}, message="Third", parent=first)
    assert client.head(published.repo_id) == second
    assert client.commit(published.repo_id, {"a.txt": b"a"}, message="Second again", parent=first) == second


def test_files_from_the_disk_and_deletions(client: HubClient, published: ModelRef, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(safetensors(50_000))
    old = ("README.md", "config.json", "tokenizer.json")
    sha = client.commit(
        published.repo_id, {"model.safetensors": weights, "new.txt": b"x"}, message="New", parent=published.sha, deleted=old
    )
    found = {file.path: file for file in client.files(published.repo_id, sha)}
    assert set(found) == {".gitattributes", "model.safetensors", "new.txt"}
    assert transfer.sums(weights).match(found["model.safetensors"])


@pytest.mark.parametrize("status", [503, 500, 504])
def test_a_lost_answer_makes_no_second_commit(
    client: HubClient, hub: LocalHub, published: ModelRef, fault: Callable[..., None], status: int
) -> None:
    before = _commits(hub, published.repo_id)
    fault("lost", "/commit/", method="POST", status=status)
    sha = client.commit(published.repo_id, {"a.txt": b"a", "big.safetensors": safetensors(9)}, message="Once", parent=published.sha)
    assert sha == client.head(published.repo_id)
    assert _commits(hub, published.repo_id) == before + 1
    assert _used(hub) == 1


def test_a_lost_answer_is_found_without_sending_anything_again(
    client: HubClient, hub: LocalHub, published: ModelRef, fault: Callable[..., None], tmp_path: Path
) -> None:
    impatient = HubClient(endpoint=hub.endpoint, token=hub.write_token, cache_dir=tmp_path, patience_s=0)
    fault("lost", "/commit/", method="POST", status=503)
    fault("status", "/commit/", method="POST", status=500, times=0)  # a second one would fail
    sha = impatient.commit(published.repo_id, {"new.txt": b"n"}, message="Replaced", parent=published.sha, deleted=tuple(FILES))
    assert sha == client.head(published.repo_id) != published.sha
    assert {file.path for file in client.files(published.repo_id, sha)} == {".gitattributes", "new.txt"}
    assert _used(hub) == 1


def test_a_commit_cut_off_before_it_landed_is_sent_again(
    client: HubClient, hub: LocalHub, published: ModelRef, fault: Callable[..., None]
) -> None:
    before = _commits(hub, published.repo_id)
    fault("cut", "/commit/", method="POST")
    fault("status", "/preupload/", method="POST", status=503)
    fault("status", "/api/validate-yaml", method="POST", status=503)
    sha = client.commit(published.repo_id, {"a.txt": b"a", "README.md": CARD.encode() + b"more"}, message="Once", parent=None)
    assert sha == client.head(published.repo_id)
    assert _commits(hub, published.repo_id) == before + 1
    assert _used(hub) == 3


def test_a_hub_that_stays_down_for_commits_is_given_up_in_time(
    client: HubClient, hub: LocalHub, published: ModelRef, fault: Callable[..., None]
) -> None:
    fault("status", "/commit/", method="POST", status=503, times=0)
    with pytest.raises(HubUnreachable, match="answered 503"):
        client.commit(published.repo_id, {"a.txt": b"a"}, message="Never", parent=None)
    assert 2 <= _used(hub) <= 12, "again and again, but not for ever"
    assert client.head(published.repo_id) == published.sha


def test_a_read_token_may_not_write(hub: LocalHub, published: ModelRef, tmp_path: Path) -> None:
    reader = HubClient(endpoint=hub.endpoint, token=hub.read_token, cache_dir=tmp_path)
    with pytest.raises(HubRefused) as caught:
        reader.commit(published.repo_id, {"a.txt": b"a"}, message="No", parent=None)
    assert "write token" in caught.value.hint
    assert hub.read_token not in caught.value.message + caught.value.hint
    with pytest.raises(HubRefused):
        reader.create("modelpress/not-mine")


def test_links_and_odd_names_are_never_published(client: HubClient, published: ModelRef, tmp_path: Path) -> None:
    secret = tmp_path / ".env"
    secret.write_text("SECRET=1", encoding="utf-8")
    link = tmp_path / "notes.txt"
    link.symlink_to(secret)
    for files in ({"notes.txt": link}, {"folder": tmp_path}, {"gone.txt": tmp_path / "gone"}, {"../x": b""}, {"a.txt": b"", "A.txt": b""}):
        with pytest.raises(PolicyRefusal):
            client.commit(published.repo_id, files, message="No", parent=None)
    assert client.head(published.repo_id) == published.sha


def test_making_a_repository_twice_is_nothing(client: HubClient, repo: str, fault: Callable[..., None]) -> None:
    head = client.head(repo)
    client.create(repo)
    assert client.head(repo) == head
    fault("lost", "/api/repos/create", method="POST", status=503)
    client.create(repo + "-2")
    assert client.exists(repo + "-2")


def test_committing_to_what_is_not_there(client: HubClient) -> None:
    with pytest.raises(HubNotFound):
        client.commit("modelpress/never-made", {"a.txt": b"a"}, message="No", parent=None)


# -- hubs that are none


def test_a_hub_that_is_down(tmp_path: Path) -> None:
    with socket.socket() as deaf:  # bound, so that nobody else takes the port, and not listening
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        dead = HubClient(endpoint=f"http://127.0.0.1:{port}", token=None, cache_dir=tmp_path, patience_s=1)
        for call in (
            lambda: dead.candidate("a/b"),
            lambda: dead.popular(limit=1, sort="downloads", pipeline_tag=None),
            lambda: dead.validate_card("x"),
        ):
            with pytest.raises(HubUnreachable, match=f"127.0.0.1:{port} cannot be reached") as caught:
                call()
            assert caught.value.retryable
            assert caught.value.hint


def test_a_hub_that_hangs_is_given_up(
    client: HubClient, published: ModelRef, fault: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(transport._LIMITS, "read", 0.3)
    fault("delay", "/api/(models$|whoami|repos/create|validate-yaml)", seconds=3, times=0)
    impatient = HubClient(endpoint=client.endpoint, token=client._token, cache_dir=tmp_path, patience_s=0.1)
    for call in (
        lambda: impatient.popular(limit=1, sort="likes", pipeline_tag=None),
        impatient.account,
        lambda: impatient.create("modelpress/never"),
        lambda: impatient.validate_card(CARD),
    ):
        with pytest.raises(HubUnreachable, match="cannot be reached"):  # waited for, it answers as always
            call()


def test_something_that_is_no_hub(tmp_path: Path) -> None:
    with _answering(lambda _url: "<html>Please log in</html>") as endpoint:
        client = HubClient(endpoint=endpoint, token="hf_x", cache_dir=tmp_path, patience_s=1)
        for call in (
            lambda: client.candidate("a/b"),
            lambda: client.files("a/b", "f" * 40),
            client.account,
            lambda: client.validate_card("x"),
        ):
            with pytest.raises(HubError, match="answer that is not understood") as caught:
                call()
            assert not isinstance(caught.value, HubUnreachable)
            assert "address" in caught.value.hint


@pytest.mark.parametrize(
    "answer",
    [[], {}, {"id": 3}, [1], None, {"id": "a/b", "siblings": [{"x": 1}]}, {"id": "a/b", "tags": 7, "cardData": [1], "config": "x"}],
)
def test_answers_of_the_wrong_shape(tmp_path: Path, answer: object) -> None:
    with _answering(lambda _url: answer) as endpoint:
        client = HubClient(endpoint=endpoint, token="hf_x", cache_dir=tmp_path, patience_s=1)
        for call in (lambda: client.candidate("a/b"), lambda: client.popular(limit=3, sort="likes", pipeline_tag=None), client.account):
            with suppress(ModelPressError):
                call()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), OutOfDisk),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/x"), OutOfDisk),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), HubError),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), HubUnreachable),
        (httpx.ReadTimeout("slow"), HubUnreachable),
        (httpx.RemoteProtocolError("cut"), HubUnreachable),
        (OSError("Consistency check failed: file should be of size 3 but has size 2"), HubCorrupt),
        (RuntimeError("etag is empty due to uncovered problems"), HubError),
        (KeyError("id"), HubError),
        (RecursionError("too deep"), HubError),
    ],
)
def test_every_kind_of_error_becomes_one_of_ours(error: Exception, kind: type[ModelPressError]) -> None:
    with pytest.raises(ModelPressError) as caught, calling("https://hub.example", "the thing"):
        raise error
    assert type(caught.value) is kind
    assert caught.value.message.startswith("the thing: ")
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_the_true_reason_under_a_misleading_one() -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    with pytest.raises(OutOfDisk), calling("https://hub.example", "the thing"):
        raise LocalEntryNotFoundError("check your connection") from OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_told_and_leaves_nothing_half_made(
    client: HubClient, published: ModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = _fresh(client, tmp_path / "other")
    reader.download(published)

    def full(_source: object, _target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "copy")

    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as small:
        small.setattr("shutil.disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(OutOfDisk, match="the copy copy needs"):
            reader.download(published, into=tmp_path / "copy")
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(OutOfDisk):
        reader.download(published, into=tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other"]


# -- waiting as long as the Hub asks, and tokens in its words


def test_how_long_the_hub_asks_to_wait() -> None:
    asked = transport.asked_to_wait
    assert asked({"Retry-After": "120"}) == 120
    soon = formatdate(time.time() + 60, usegmt=True)
    assert 50 < (asked({"Retry-After": soon}) or 0) <= 61
    assert asked({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert asked({"ratelimit": '"api";r=0;t=55'}) == 55
    for nothing in ({}, {"Retry-After": "soon"}, {"Retry-After": "-1"}, {"ratelimit": '"api";r=7;t=55'}):
        assert asked(nothing) is None


def test_the_waits_of_the_librarys_own_threads_do_not_add_up_for_ever() -> None:
    with ThreadPoolExecutor(1) as pool:  # a thread that knows no call
        for seconds in ("40", "40", "40"):
            pool.submit(transport._not_for_ever, httpx.Response(429, headers={"Retry-After": seconds})).result()
        with pytest.raises(transport._TooLong):
            pool.submit(transport._not_for_ever, httpx.Response(503, headers={"Retry-After": "61"})).result()


@pytest.mark.parametrize("path", ["^/api/models/[^/]+/[^/]+$", "/tree/", "/api/validate-yaml", "/preupload/"])
def test_a_wait_that_is_asked_for_is_taken_or_refused_at_once(
    client: HubClient, published: ModelRef, fault: Callable[..., None], hub: LocalHub, path: str
) -> None:
    actions: dict[str, Callable[[], object]] = {
        "/tree/": lambda: client.files(published.repo_id, published.sha),
        "/api/validate-yaml": lambda: client.validate_card(CARD),
        "/preupload/": lambda: client.commit(published.repo_id, {"new.txt": b"n"}, message="New", parent=published.sha),
    }
    action = actions.get(path, lambda: client.head(published.repo_id))
    fault("status", path, status=429, headers={"Retry-After": "3600"}, times=0)
    with pytest.raises(HubUnreachable, match=r"asks to slow down.*it asks to wait 3600 s") as caught:
        action()
    assert caught.value.retry_after == 3600
    assert _used(hub) == 1
    httpx.delete(f"{hub.endpoint}/api/_faults", headers={"Authorization": f"Bearer {hub.write_token}"}).raise_for_status()
    fault("status", path, status=429, headers={"Retry-After": "1"})
    begun = time.monotonic()
    assert action() is not None
    assert time.monotonic() - begun >= 1


def test_a_token_that_the_hub_repeats_is_told_to_nobody(
    hub: LocalHub, published: ModelRef, fault: Callable[..., None], tmp_path: Path
) -> None:
    writer = HubClient(endpoint=hub.endpoint, token=hub.write_token, cache_dir=tmp_path, patience_s=0)
    for status in (401, 403, 500):
        fault("status", "/commit/", method="POST", status=status, headers={"X-Error-Message": f"{'x' * 180} {hub.write_token} is wrong"})
        with pytest.raises(HubError) as caught:
            writer.commit(published.repo_id, {"a.txt": b"a"}, message="No", parent=None)
        told = "".join(traceback.format_exception(caught.value)) + caught.value.hint
        assert hub.write_token[:8] not in told
        assert "[token]" in caught.value.message
    with pytest.raises(UsageError) as refused:
        HubClient(endpoint=hub.endpoint, token="hf_not\nfit", cache_dir=tmp_path)
    assert "hf_not" not in refused.value.message + refused.value.hint
