"""Runs the hub in the foreground: the lock on its folder, its port, its starter's life, then uvicorn."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import uvicorn

from hub.errors import HubError, OutOfDisk, StoreError, WorkFolderBusy
from hub.local import seed
from hub.local.app import Hub, build, open_hub
from hub.local.config import HubConfig
from hub.local.web import disk_is_full

log = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
COLLECT_AFTER_S = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to listen; port 0 or a taken one means a free one."""

    host: str = "127.0.0.1"
    port: int = 0


def serve(
    root: Path, *, address: Address, samples: bool = True, config: HubConfig | None = None, ready: Callable[[str], None] | None = None
) -> None:
    """Serve the hub's folder until Ctrl-C or a signal; `ready` is called with the address once the port is ours.

    Raises `WorkFolderBusy` if another server owns the folder, `StoreError` if it is damaged, `OutOfDisk` if it has no room,
    `HubError` if it cannot be written or no port can be had.
    """
    with owned(root):
        config = config or HubConfig()
        if address.host not in LOOPBACK:
            log.warning(
                "The hub listens on %s: whoever reaches this machine can read it, and write with its token. It is meant for loopback.",
                address.host,
            )
            config = replace(config, allowed_hosts=())
        with _explained(root):
            hub = open_hub(root, config)
            _collect(hub)
            seed.plant(hub, samples=samples)
        listener = _listen(address)
        try:
            endpoint = _announce(hub, listener)
            if ready is not None:
                ready(endpoint)
            uvicorn_config = uvicorn.Config(
                build(hub),
                http="h11",
                loop="asyncio",
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
            )
            with suppress(KeyboardInterrupt):
                uvicorn.Server(uvicorn_config).run(sockets=[listener])
        finally:
            listener.close()
            (root / "server.json").unlink(missing_ok=True)


@contextmanager
def owned(root: Path) -> Iterator[None]:
    """Hold the lock on a hub's folder; the system lets go of it when the process dies, however it dies."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / "server.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WorkFolderBusy(f"Another hub serves {root}", hint="Use that one, stop it, or choose another folder.") from error
        yield


def watch_parent(pipe: int) -> None:
    """End this process when the other end of the pipe (a descriptor) closes: its starter is gone, even by kill -9."""

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, name="watch-parent", daemon=True).start()


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process as soon as its starter dies; elsewhere the pipe does it."""
    if sys.platform == "linux":
        import ctypes
        import signal

        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # 1: PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(0)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Say in a sentence what keeps the folder from being opened."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if disk_is_full(error):
            raise OutOfDisk(f"The disk of the embedded hub's folder {root} is full", hint="Free some room and run it again.") from error
        if isinstance(error, OSError):
            raise HubError(f"The embedded hub cannot use {error.filename or root}: {error.strerror}", hint="Make it writable.") from error
        hint = "Restore a copy of that folder, or choose another work folder."
        raise StoreError(f"The embedded hub's folder {root} is damaged: {error}", hint=hint) from error


def _collect(hub: Hub) -> None:
    """Remove what no repository refers to any more: trees of deleted ones, and blobs older than a day."""
    with hub.database.write() as connection:
        connection.execute("DELETE FROM entries WHERE tree NOT IN (SELECT tree FROM commits)")
        connection.execute("DELETE FROM summaries WHERE tree NOT IN (SELECT tree FROM commits)")
        wanted = {row["sha256"] for row in connection.execute("SELECT DISTINCT sha256 FROM entries")}
    hub.blobs.collect(wanted, COLLECT_AFTER_S)


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    for port in dict.fromkeys((address.port, 0)):
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address.host, port))
            listener.listen(128)
        except OSError as error:
            listener.close()
            reason = error
            continue
        if port != address.port:
            log.warning("Port %d is taken; the hub uses %d", address.port, listener.getsockname()[1])
        return listener
    raise HubError(f"The hub cannot listen on {address.host}: {reason}", hint="Choose another host or port.")


def _announce(hub: Hub, listener: socket.socket) -> str:
    """Write where the hub can be reached, whole or not at all, and return it."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    endpoint = f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"
    unfinished = hub.root / "server.json.new"
    unfinished.write_text(
        json.dumps({"pid": os.getpid(), "endpoint": endpoint, "instance": hub.instance, "faults": hub.config.faults}), encoding="utf-8"
    )
    unfinished.replace(hub.root / "server.json")
    log.info("The hub serves %s at %s", hub.root, endpoint)
    return endpoint
