"""Who answers for a running job: a process of a host, named so that others can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from functools import cache


@cache
def own() -> str:
    """Return the name of this process: `host:pid:began`, with when it began in epoch seconds.

    Raises nothing; the same for the life of a process. A forked child must not use its parent's.
    """
    return f"{socket.gethostname()}:{os.getpid()}:{_began(os.getpid()) or 0:.2f}"


def lives(owner: str) -> bool | None:
    """Whether the process lives; None where that cannot be told, because it is of another host (or container)."""
    host, _, rest = owner.rpartition(":")[0].rpartition(":")
    began = owner.rpartition(":")[2]
    if host != socket.gethostname():
        return None
    try:
        now = _began(int(rest))
        return now is not None and abs(now - float(began)) < 1  # another process with its number began at another time
    except ValueError:
        return None


def _began(pid: int) -> float | None:
    """Return when a process began; None when it lives no more."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
