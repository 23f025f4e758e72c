"""The thin layer between Starlette and the hub: a request as plain data, answers and errors as the Hub words them."""

from __future__ import annotations

import errno
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from hub.local.accounts import Account

if TYPE_CHECKING:
    from hub.local.app import Hub

log = logging.getLogger(__name__)

MAX_BODY = 256 * 1024 * 1024
Handler = Callable[["Call"], Any]


class ApiError(Exception):
    """An answer that is not a success; `code` is the Hub's X-Error-Code, `extra` goes into the JSON."""

    def __init__(self, status: int, message: str, *, code: str = "", headers: Mapping[str, str] | None = None, **extra: object) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.extra = extra

    def response(self) -> Response:
        """Return the error as the Hub words it: JSON with `error`, headers X-Error-Code and X-Error-Message."""
        words = "".join(character if " " <= character <= "~" else " " for character in self.message)
        headers = {"X-Error-Message": " ".join(words.split()), **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        return JSONResponse({"error": self.message, **self.extra}, self.status, headers=headers)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request as plain data; path parameters are percent-decoded one by one, so that a slash inside one is kept."""

    hub: Hub
    account: Account | None
    base: str
    method: str
    path: str
    query_string: str
    params: Mapping[str, str]
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object; an empty body is an empty object."""
        try:
            value = json.loads(self.body or b"{}")
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"The body is not JSON: {error}") from error
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ApiError(400, f"The body must be a JSON object, not {type(value).__name__}")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """Return a string of the JSON body; raise 400 if it is missing or not a string."""
        value = self.json().get(key, default)
        if not isinstance(value, str):
            raise ApiError(400, f"'{key}' must be a string, not {value!r:.100}")
        return value

    def form(self) -> dict[str, list[str]]:
        """Return the fields of a URL-encoded body."""
        return parse_qs(self.body.decode("utf-8", "replace"), keep_blank_values=True)

    def one(self, key: str, default: str = "") -> str:
        """Return the last value of a query parameter."""
        return self.query.get(key, [default])[-1]

    def flag(self, key: str) -> bool:
        """Tell whether a query parameter is set to true or 1."""
        return self.one(key).lower() in ("true", "1")


def endpoint(handler: Handler) -> Callable[[Request], Any]:
    """Turn a plain function into a Starlette endpoint; it runs in a thread and may return a response or anything JSON can hold."""

    async def run(request: Request) -> Response:
        answer = await run_in_threadpool(handler, await read_call(request))
        return answer if isinstance(answer, Response) else JSONResponse(answer)

    return guarded(run)


def guarded(run: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """Turn errors into answers: refusals as they are worded, a full disk as 507, anything unforeseen as 500 with its story in the log."""

    async def safe(request: Request) -> Response:
        try:
            return await run(request)
        except ApiError as error:
            return error.response()
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            if disk_is_full(error):
                return ApiError(507, "The disk of the embedded hub is full").response()
            log.exception("%s %s failed", request.method, request.scope["path"])
            return ApiError(500, f"The embedded hub failed: {type(error).__name__}; its log tells more").response()

    return safe


def disk_is_full(error: Exception) -> bool:
    """Tell whether an error of the system or of SQLite means that the disk is full."""
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode == sqlite3.SQLITE_FULL
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


async def read_call(request: Request) -> Call:
    """Read a request whole and find out who asks."""
    hub: Hub = request.app.state.hub
    return Call(
        hub=hub,
        account=authenticate(hub, request.headers.get("authorization", "")),
        base=str(request.base_url).rstrip("/"),
        method=request.method,
        path=request.scope["path"],
        query_string=request.scope["query_string"].decode("ascii", "replace"),
        params={key: unquote(value) for key, value in request.path_params.items()},
        query=parse_qs(request.scope["query_string"].decode("ascii", "replace"), keep_blank_values=True),
        headers=request.headers,
        body=await _read_body(request),
    )


def authenticate(hub: Hub, header: str) -> Account | None:
    """Return the account of an Authorization header, None where there is none; a wrong token is refused, as on the Hub."""
    if not header:
        return None
    scheme, _, token = header.partition(" ")
    account = hub.credentials.account(token.strip()) if scheme.lower() == "bearer" else None
    if account is None:
        raise ApiError(401, "Invalid credentials in Authorization header")
    return account


async def _read_body(request: Request) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > MAX_BODY:
            raise ApiError(413, f"The body is larger than {MAX_BODY} bytes; upload large files through LFS")
        chunks.append(chunk)
    return b"".join(chunks)
