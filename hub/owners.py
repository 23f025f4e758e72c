"""Who answers for a running job: a process of a host, named so that others can tell whether it still lives."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

_FIRST_SPACE = 0xEFFFFFFC  # the machine's own PID namespace, on every Linux


@cache
def own() -> str:
    """Return the name of this process: `host:pid:began`, with when it began in seconds since the machine did.

    Raises nothing; the same for the life of a process. A forked child must not use its parent's.
    """
    return f"{host()}:{os.getpid()}:{began(os.getpid()) or 0:.2f}"


def lives(owner: str) -> bool | None:
    """Whether the process lives; None where that cannot be told, because it is of another host (or container)."""
    if host_of(owner) != host():
        return None
    try:
        now = began(int(owner.rpartition(":")[0].rpartition(":")[2]))
        return (
            now is not None and abs(now - float(owner.rpartition(":")[2])) < 0.005
        )  # another process with its number began at another time
    except ValueError:
        return None


def host_of(owner: str) -> str:
    """Return the host in an owner's name; empty where it names none."""
    return owner.rpartition(":")[0].rpartition(":")[0]


def host() -> str:
    """Return this host's name; inside a container, with its space of process numbers, where the same number is another process."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # a system without it
        return socket.gethostname()
    return socket.gethostname() if space == _FIRST_SPACE else f"{socket.gethostname()}/{space}"


def began(pid: int) -> float | None:
    """Return when a process began, in seconds since the machine did: no clock that is set moves that. None when it lives no more."""
    try:
        state, *facts = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(facts[18]) / os.sysconf("SC_CLK_TCK")
