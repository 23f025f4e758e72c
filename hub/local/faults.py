"""Faults on demand, for tests: the hub misbehaves as networks and hubs do. Only there when the server was started with it.

`POST /api/_faults` with a token of role write and JSON:
`{"kind": …, "method": "GET", "path": "regular expression", "times": 1, "after": 0,
 "status": 503, "seconds": 1.0, "bytes": 0, "headers": {}}`.
`GET` lists the rules with how often each was used, `DELETE` removes them.

status: answer with `status`, the hub is not asked. delay: wait `seconds`, then go on. cut: break the connection off after `bytes` bytes of
the answer (0: before any answer). cut-upload: break it off after `bytes` bytes of the request. die: the hub kills itself, as by kill -9,
after `bytes` bytes of the request. corrupt: one wrong byte in every chunk of the answer's body, size unchanged. lost: the hub does the
work, then `status` is sent instead of its answer. hold: the hub does the work, its answer waits `seconds`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hub.local.accounts import Credentials
from hub.local.web import ApiError

PATH = "/api/_faults"
KINDS = ("status", "delay", "cut", "cut-upload", "die", "corrupt", "lost", "hold")


@dataclass(kw_only=True)
class Rule:
    """One fault: what it does, to which requests, how many times (0: always), how many it lets pass first."""

    kind: str
    path: str
    method: str = ""
    times: int = 1
    after: int = 0
    status: int = 503
    seconds: float = 1.0
    bytes: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    seen: int = 0
    used: int = 0

    def takes(self, method: str, path: str) -> bool:
        """Tell whether the rule applies to this request, and count it."""
        if (self.method and self.method != method) or not re.search(self.path, path):
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times and self.used >= self.times):
            return False
        self.used += 1
        return True


class Faults:
    """Wraps the hub and applies the first rule that fits a request."""

    def __init__(self, app: ASGIApp, credentials: Credentials) -> None:
        self._app = app
        self._credentials = credentials
        self._rules: list[Rule] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request, badly if a rule says so."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == PATH:
            await self._admin(scope, receive, send)
        else:
            rule = next((rule for rule in self._rules if rule.takes(scope["method"], scope["path"])), None)
            await self._apply(rule, scope, receive, send)

    async def _admin(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        account = self._credentials.account(request.headers.get("authorization", "").removeprefix("Bearer "))
        try:
            if account is None or account.role != "write":
                raise ApiError(401, "Fault injection needs the hub's write token")
            if request.method == "POST":
                self._rules.append(_read_rule(await request.body()))
            elif request.method == "DELETE":
                self._rules.clear()
            response: Any = JSONResponse([asdict(rule) for rule in self._rules])
        except ApiError as error:
            response = error.response()
        await response(scope, receive, send)

    async def _apply(self, rule: Rule | None, scope: Scope, receive: Receive, send: Send) -> None:
        if rule is None:
            await self._app(scope, receive, send)
        elif rule.kind == "delay":
            await asyncio.sleep(rule.seconds)
            await self._app(scope, receive, send)
        elif rule.kind == "status":
            await _drain(receive)
            await _fault_answer(rule)(scope, receive, send)
        elif rule.kind == "cut" and rule.bytes == 0:
            await _drain(receive)
            _break_off(send)
        elif rule.kind == "cut":
            await self._app(scope, receive, _Cutting(send, rule.bytes))
        elif rule.kind == "cut-upload":
            await self._app(scope, _CuttingReceive(receive, partial(_break_off, send), rule.bytes), send)
        elif rule.kind == "die":
            await self._app(scope, _CuttingReceive(receive, _die, rule.bytes), send)
        elif rule.kind == "corrupt":
            await self._app(scope, receive, _Corrupting(send))
        else:
            held = _Held()
            await self._app(scope, receive, held)
            if rule.kind == "lost":
                await _fault_answer(rule)(scope, receive, send)
            else:
                await asyncio.sleep(rule.seconds)
                for message in held.messages:
                    await send(message)


def _read_rule(body: bytes) -> Rule:
    try:
        rule = Rule(**json.loads(body))
        re.compile(rule.path)
    except (ValueError, TypeError, re.error) as error:
        raise ApiError(400, f"This is not a fault: {error}") from error
    if rule.kind not in KINDS:
        raise ApiError(400, f"'kind' must be one of {', '.join(KINDS)}, not {rule.kind!r}")
    return rule


def _fault_answer(rule: Rule) -> JSONResponse:
    return JSONResponse({"error": "Injected fault"}, rule.status, headers=rule.headers)


async def _drain(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


def _break_off(send: Send) -> None:
    """Drop the connection without a word; ASGI has no message for that, so uvicorn's own transport is used."""
    transport: asyncio.Transport = send.__self__.transport  # type: ignore[attr-defined]
    transport.abort()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Cutting:
    def __init__(self, send: Send, limit: int) -> None:
        self._send = send
        self._left = limit

    async def __call__(self, message: Message) -> None:
        if self._left <= 0:
            return
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            if len(body) >= self._left:
                await self._send({**message, "body": body[: self._left], "more_body": True})
                self._left = 0
                await asyncio.sleep(0.05)  # let what was written reach the other side
                _break_off(self._send)
                return
            self._left -= len(body)
        await self._send(message)


class _CuttingReceive:
    def __init__(self, receive: Receive, end: Callable[[], None], limit: int) -> None:
        self._receive = receive
        self._end = end
        self._left = limit

    async def __call__(self) -> Message:
        if self._left < 0:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            self._end()
            return {"type": "http.disconnect"}
        return message


class _Corrupting:
    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] == "http.response.body" and body:
            message = {**message, "body": body[:-1] + bytes([body[-1] ^ 0xFF])}
        await self._send(message)


class _Held:
    """Keeps an answer back."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
