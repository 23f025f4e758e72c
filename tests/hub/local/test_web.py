"""Errors become answers: a real full disk, and anything unforeseen."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from hub.local.web import ApiError, guarded


def answer(run: Callable[[Request], Awaitable[Response]]) -> tuple[int, str]:
    request = Request({"type": "http", "method": "GET", "path": "/x", "headers": []})

    async def ask() -> Response:
        return await guarded(run)(request)

    response = asyncio.run(ask())
    return response.status_code, json.loads(bytes(response.body) or b"{}").get("error", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device without room")
def test_a_full_disk_is_507() -> None:
    async def run(_request: Request) -> Response:
        with Path("/dev/full").open("wb") as file:
            file.write(b"x" * 100_000)
        return Response()

    assert answer(run) == (507, "The disk of the embedded hub is full")


def test_a_full_database_is_507(tmp_path: Path) -> None:
    async def run(_request: Request) -> Response:
        connection = sqlite3.connect(tmp_path / "x.db")
        connection.execute("PRAGMA max_page_count = 3")
        connection.execute("CREATE TABLE t (x BLOB)")
        connection.execute("INSERT INTO t VALUES (zeroblob(100000))")
        return Response()

    assert answer(run)[0] == 507


def test_anything_unforeseen_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def run(_request: Request) -> Response:
        raise KeyError("secret")

    with caplog.at_level(logging.ERROR):
        status, words = answer(run)
    assert status == 500
    assert "KeyError" in words
    assert "secret" not in words
    assert "secret" in caplog.text


def test_refusals_and_vanished_clients() -> None:
    async def refuse(_request: Request) -> Response:
        raise ApiError(403, "Nö\n\0", code="GatedRepo")

    async def vanish(_request: Request) -> Response:
        raise ClientDisconnect

    assert answer(refuse) == (403, "Nö\n\0")
    headers = ApiError(403, "Nö\n\0", code="GatedRepo").response().headers
    assert (headers["x-error-message"], headers["x-error-code"]) == ("N", "GatedRepo")
    assert answer(vanish)[0] == 499
