"""Processes that do not outlive their parents: death signals, groups, memory of a tree."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when the thread that made it ends (Linux); end now when `parent` is gone already."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def go_first() -> None:
    """Have a system that runs out of memory kill this process, and what it starts, before its dispatcher and before other programs."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("800", encoding="ascii")


def kill_tree(pid: int) -> None:
    """Kill a group's leader, its group, and those descendants that left the group."""
    others: list[psutil.Process] = []
    with suppress(psutil.Error):
        others = psutil.Process(pid).children(recursive=True)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for process in others:  # psutil compares start times, so a number used again is left alone
        with suppress(psutil.Error):
            process.kill()


def end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Close the stdin of a process that ends with it, and wait for that; kill it where it takes longer than `patience_s`."""
    with suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class MemoryWatch:
    """Resident memory of a process and its descendants; the list of descendants is made anew every few looks, as that is dear."""

    def __init__(self, pid: int, *, every: int = 8) -> None:
        """Watch the process `pid`; look for descendants at each `every`th reading."""
        self._processes: list[psutil.Process] = []
        self._every = every
        self._looks = 0
        with suppress(psutil.Error):
            self._processes = [psutil.Process(pid)]

    def bytes(self) -> int:
        """Return the sum of resident memory now (pages that they share are counted for each); 0 when they are gone."""
        if self._processes and self._looks % self._every == 0:
            with suppress(psutil.Error):
                self._processes[1:] = self._processes[0].children(recursive=True)
        self._looks += 1
        return sum(_resident(process) for process in self._processes)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
