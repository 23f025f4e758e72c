"""A command in a process of its own under limits of time, memory and output, which ends with this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runners.failures import tail, without_paths
from runners.farm import processes
from runners.farm.processes import MemoryWatch, kill_tree

_LOOK_S = 0.25
_MOST_OUTPUT = 2**20
_MOST_WORDS = 300
# Ties the command to this process before it begins; a function to be called between fork and exec could hang where there are threads.
_LAUNCH = """
import os, runpy, sys
ours = runpy.run_path(sys.argv[1])
ours["go_first"]()
ours["die_with_parent"](int(sys.argv[2]))
os.execv(sys.argv[3], sys.argv[3:])
"""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What commands may use: until when (`time.monotonic`), and resident memory of each with all that it starts; 0 is no limit."""

    deadline: float
    seconds: float
    memory_bytes: int

    @classmethod
    def until(cls, seconds: float, memory_bytes: int) -> Limits:
        """Return limits whose time begins now."""
        return cls(deadline=time.monotonic() + seconds if seconds > 0 else float("inf"), seconds=seconds, memory_bytes=memory_bytes)


@dataclass(frozen=True, kw_only=True)
class End:
    """How a command ended: `exit_code` (negative: by that signal), and in a sentence which limit it broke, if it did.

    `output` is the end of its two streams, at most 4,000 bytes of each, without absolute paths.
    """

    exit_code: int
    excess: str
    output: str

    @property
    def last_words(self) -> str:
        """The last line of its output."""
        lines = self.output.strip().splitlines()
        return lines[-1].strip()[:_MOST_WORDS] if lines else ""


def run_confined(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], limits: Limits, logs: Path) -> End:
    """Run a command to its end, in `cwd` with this environment and nothing else of ours; its output is kept in the folder `logs`.

    The command and what it starts are killed when a limit is broken, when this process is interrupted, and when it dies.
    """
    out, err = logs / "stdout.log", logs / "stderr.log"
    tied = [sys.executable, "-I", "-c", _LAUNCH, processes.__file__, str(os.getpid()), *command]
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            tied, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            excess = _watch(process, limits, (out, err))
        finally:
            _end(process)
    printed, said = tail(out), tail(err)
    # What a command prints of its own comes last: of a failed one that is the error.
    output = without_paths(f"{printed}{said}" if process.returncode else f"{said}{printed}")
    return End(exit_code=process.returncode, excess=excess, output=output)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        kill_tree(process.pid)
        process.wait()
    with suppress(ProcessLookupError, PermissionError):  # what it left behind
        os.killpg(process.pid, signal.SIGKILL)


def _watch(process: subprocess.Popen[bytes], limits: Limits, logs: Sequence[Path]) -> str:
    memory = MemoryWatch(process.pid)
    while True:
        try:
            process.wait(_LOOK_S)
            return ""
        except subprocess.TimeoutExpired:
            if excess := _excess(memory, limits, logs):
                return excess


def _excess(memory: MemoryWatch, limits: Limits, logs: Sequence[Path]) -> str:
    if time.monotonic() > limits.deadline:
        return f"It took longer than the {limits.seconds:g} s that are allowed, and was ended."
    if limits.memory_bytes > 0 and (used := memory.bytes()) > limits.memory_bytes:
        return f"It used {used / 2**30:.2f} GiB of memory, {limits.memory_bytes / 2**30:.2f} GiB are allowed; it was ended."
    if sum(log.stat().st_size for log in logs) > _MOST_OUTPUT:
        return f"It printed more than {_MOST_OUTPUT} bytes, and was ended."
    return ""
