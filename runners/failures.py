"""From an exception, or a process that ended without a result, to a `Failure` that can be stored and shown."""

from __future__ import annotations

import errno
import signal
from pathlib import Path

from hub import errors
from hub.domain import Failure
from hub.errors import JobDied, ModelPressError, OutOfDisk, OutOfMemory

_TAIL_BYTES = 4000


def failure(job_id: str, error: BaseException, *, seconds: float, log_tail: str = "") -> Failure:
    """Return why a job failed: our own errors keep class and hint, the system's are translated, all others keep their class name."""
    ours = _translated(error)
    if ours is not None:
        name, reason, hint, retryable, category = ours.name, ours.message, ours.hint, ours.retryable, ours.category
    else:
        name, reason, retryable, category = type(error).__name__, one_line(error), False, "bug"
        hint = "This is not expected: its log has the traceback."
    return Failure(
        job_id=job_id,
        error=name,
        reason=reason,
        hint=hint,
        log_tail=log_tail,
        seconds=round(seconds, 3),
        retryable=retryable,
        category=category,
    )


def exit_code(error: BaseException) -> int:
    """Return the exit code of the error as it is reported."""
    ours = _translated(error)
    return ours.exit_code if ours else 1


def died(status: int) -> ModelPressError:
    """Return the error of a process that ended with this wait status and left no result.

    A job that cannot even write its result, as on a full disk, still says which error it was by its exit code.
    """
    import os

    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        hint = "Perhaps the system ran out of memory and killed it: " if number == signal.SIGKILL else "It crashed in native code: "
        return JobDied(f"The job's process was ended by {name}.", hint=f"{hint}see the end of its log, then run it again.")
    code = os.waitstatus_to_exitcode(status)
    known = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelPressError)]
    kind = next((kind for kind in known if kind.exit_code == code and code > 1), JobDied)
    return kind(f"The job's process ended with code {code} and left no result.", hint="See the end of its log, then run it again.")


def tail(log: Path) -> str:
    """Return the end of a log file, at most 4,000 bytes, from a line's start; empty where there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return text if size <= _TAIL_BYTES else text.partition("\n")[2]


def _translated(error: BaseException) -> ModelPressError | None:
    if isinstance(error, ModelPressError):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfDisk(f"The disk is full: {one_line(error)}.", hint="Free some space, or choose a folder on another disk.")
    if out_of_memory(error):
        return OutOfMemory(
            f"The job ran out of memory: {one_line(error)}.", hint="Run it where there is more memory, or press a smaller model."
        )
    return None


def out_of_memory(error: BaseException) -> bool:
    """Whether Python, or torch on a CPU or on CUDA, says that there is no memory left."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def one_line(error: BaseException) -> str:
    """Return what an exception says on one line of at most 300 characters; its class where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__
