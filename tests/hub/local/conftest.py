"""A real hub in a process of its own, and the real client in front of it."""

from __future__ import annotations

import http.client
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from hub.local.config import HubConfig
from hub.local.process import LocalHub

MULTIPART = HubConfig(multipart_threshold=300_000, chunk_size=100_000)


@pytest.fixture(scope="session", autouse=True)
def client_library() -> Iterator[None]:
    """The client without Xet and without progress bars, whatever the environment of the tests says."""
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    before = constants.HF_HUB_DISABLE_XET
    constants.HF_HUB_DISABLE_XET = True
    disable_progress_bars()
    yield
    constants.HF_HUB_DISABLE_XET = before


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    """A hub with the sample models and with fault injection, shared by the tests: each makes repositories of its own."""
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0, faults=True, config=MULTIPART) as running:
        yield running


@pytest.fixture
def api(hub: LocalHub) -> Any:
    """The client with the write token."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=hub.write_token)


@pytest.fixture
def reader(hub: LocalHub) -> Any:
    """The client with the read token."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=hub.read_token)


@pytest.fixture
def anonymous(hub: LocalHub) -> Any:
    """The client without a token."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.endpoint, token=False)


@pytest.fixture
def name() -> str:
    """A repository id that no other test uses."""
    return f"modelpress/t-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def repo(api: Any, name: str) -> str:
    """An empty repository."""
    api.create_repo(name)
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as an upload has it: text, a nested file, a small and a large binary."""
    source = tmp_path / "upload"
    (source / "nested" / "deep").mkdir(parents=True)
    (source / "README.md").write_text("---\nlicense: mit\n---\n# A test\n", encoding="utf-8")
    (source / "nested" / "deep" / "note.txt").write_text("äöü\n", encoding="utf-8")
    (source / "small.safetensors").write_bytes(os.urandom(1000))
    (source / "large.safetensors").write_bytes(os.urandom(456_789))
    (source / "empty.txt").write_bytes(b"")
    return source


@pytest.fixture
def raw(hub: LocalHub) -> Callable[..., tuple[int, dict[str, str], bytes]]:
    """Send a request without the client, for what the client would not send."""

    def send(
        method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, token: str = ""
    ) -> tuple[int, dict[str, str], bytes]:
        address = urlsplit(hub.endpoint)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        sent = dict(headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        connection.putrequest(method, path, skip_accept_encoding=True)
        for key, value in (sent | {"Content-Length": str(len(data or b""))}).items():
            connection.putheader(key, value)
        connection.endheaders(data)
        response = connection.getresponse()
        answer = response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
        connection.close()
        return answer

    return send


@pytest.fixture
def fault(hub: LocalHub, raw: Callable[..., tuple[int, dict[str, str], bytes]]) -> Iterator[Callable[..., None]]:
    """Make the hub misbehave; what was asked for is taken back at the end."""

    def inject(kind: str, path: str, **rule: Any) -> None:
        status, _, body = raw("POST", "/api/_faults", {"kind": kind, "path": path, **rule}, token=hub.write_token)
        assert status == 200, body

    yield inject
    raw("DELETE", "/api/_faults", token=hub.write_token)
