"""From an exception, or a process that ended without a result, to a `Failure` that can be stored and shown.

What is stored goes to a public site, so it names no folder of the machine that did the work.
"""

from __future__ import annotations

import errno
import re
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from hub import errors
from hub.domain import Failure, ModelRef, Workspace
from hub.errors import BadCheckpoint, CalibrationFailed, HubUnreachable, JobDied, ModelPressError, OutOfDisk, OutOfMemory

_TAIL_BYTES = 4000
_FULL = re.compile(r"no space left on device|\bos error (28|122)\b|storagefull|disk quota exceeded|disk is full|file too large \(os", re.I)
_NO_MEMORY = re.compile(
    r"DefaultCPUAllocator|out of memory|(CUBLAS|CUDNN|CUSPARSE|CUSOLVER)_STATUS_ALLOC_FAILED|cannot allocate memory|not enough memory"
    r"|bad_alloc|bad allocation|RESOURCE_EXHAUSTED|OutOfMemory|fail\w* to allocate (memory|\d|buffer)|unable to allocate|\bos error 12\b",
    re.I,
)
_NO_FACTOR = ("LinAlgError", "_LinAlgError")
_PATH = re.compile(r"(?:(?<=file://)|(?<![\w/.~-]))(?:/[^\s/'\"<>:,;()\[\]{}|]+){2,}")
_SNAPSHOT = re.compile(r"(?:the cache/)?\bmodels--([\w.-]+?)--([\w.-]+)/snapshots/([0-9a-f]{8})[0-9a-f]{32}\b")
_LIBRARY = re.compile(r".*/(?:site-packages|dist-packages|lib/python3\.\d+)/")
_OURS = str(Path(__file__).resolve().parents[1])


def failure(job_id: str, error: BaseException, *, seconds: float, log_tail: str = "", workspace: Workspace | None = None) -> Failure:
    """Return why a job failed: our own errors keep class and hint, what libraries and the system say is translated.

    All else is a `bug` of its own class name. Reason and hint name no absolute path: the folders of `workspace` become words.
    """
    ours = _translated(error)
    if ours is not None:
        name, reason, hint, retryable, category = ours.name, ours.message, ours.hint, ours.retryable, ours.category
    else:
        name, reason, retryable, category = type(error).__name__, one_line(error), False, "bug"
        hint = "This is not expected: its log has the traceback."
    return Failure(
        job_id=job_id,
        error=name,
        reason=without_paths(reason, workspace),
        hint=without_paths(hint, workspace),
        log_tail=without_paths(log_tail, workspace),
        seconds=round(seconds, 3),
        retryable=retryable,
        category=category,
        retry_after_s=(ours.retry_after or 0.0) if isinstance(ours, HubUnreachable) else 0.0,
    )


def without_paths(text: str, workspace: Workspace | None = None) -> str:
    """Return a text in which the folders of a workspace are words and all other absolute paths end in their last part.

    A model's folder in the cache is the model: `owner/name@` and eight digits of its commit. Of files of Python's libraries the path
    inside them is kept, and of our own that inside the project.
    """
    for folder, words in _places(workspace):
        text = re.sub(rf"{re.escape(folder)}(?![\w.-])", words, text)
    text = _SNAPSHOT.sub(r"\1/\2@\3", text)
    return _PATH.sub(_shortened, text)


def named(failed: Failure, base: ModelRef) -> Failure:
    """Return a failure whose reason names the base model where it had the commit alone, as the model's folder in the cache is called."""
    if not re.fullmatch(r"[0-9a-f]{40}", base.sha):
        return failed
    name = f"{base.repo_id}@{base.sha[:8]}"
    return replace(failed, reason=re.sub(rf"(?<![\w@/.-]){base.sha}(?![\w-])", lambda _: name, failed.reason))


def _places(workspace: Workspace | None) -> list[tuple[str, str]]:
    """Return folders and the words for them, the longest paths first, so that a folder inside another is named for itself."""
    named = [(tempfile.gettempdir(), "the temporary folder")]
    if workspace:
        named += [
            (workspace.artifacts_dir, "the artifacts folder"),
            (workspace.cache_dir, "the cache"),
            (workspace.data_dir, "the data folder"),
            (str(Path(workspace.artifacts_dir).parent), "the work folder"),
        ]
    found = {path: words for folder, words in named if folder for path in (folder, str(Path(folder).absolute())) if len(path) > 1}
    return sorted(found.items(), key=lambda item: -len(item[0]))


def _shortened(match: re.Match[str]) -> str:
    path = match[0]
    if path.startswith(f"{_OURS}/") and "/site-packages/" not in path:
        return path.removeprefix(f"{_OURS}/")
    inside = _LIBRARY.sub("", path)
    return inside if inside != path else f"…/{path.rpartition('/')[2]}"


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


def tail(log: Path, workspace: Workspace | None = None) -> str:
    """Return the end of a log file, at most 4,000 bytes, from a line's start and without absolute paths; empty where there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return without_paths(text if size <= _TAIL_BYTES else text.partition("\n")[2], workspace)


def _translated(error: BaseException) -> ModelPressError | None:
    if isinstance(error, OutOfMemory | OutOfDisk):
        return error
    if cause := next((one for one in _chain(error) if disk_full(one)), None):
        return OutOfDisk(f"The disk is full: {one_line(cause)}.", hint="Free some space, or choose a folder on another disk.")
    if cause := next((one for one in _chain(error) if out_of_memory(one)), None):
        return OutOfMemory(
            f"The job ran out of memory: {one_line(cause)}.", hint="Run it where there is more memory, or press a smaller model."
        )
    if isinstance(error, ModelPressError):
        return error
    if type(error).__name__ in _NO_FACTOR:
        return CalibrationFailed(
            f"A matrix of what the calibration text shows to a layer has no factors: {one_line(error)}.",
            hint="Use a recipe with more calibration text, or with more damping.",
        )
    if type(error).__name__ == "SafetensorError":
        return BadCheckpoint(f"A safetensors file cannot be read: {one_line(error)}.", hint="Download the checkpoint again.")
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Give an error and what it was raised from, since a library's own words may wrap a full disk or memory."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        seen = seen.__cause__


def disk_full(error: BaseException) -> bool:
    """Whether Python, or a library's native code in words, says that there is no room left on the disk."""
    if isinstance(error, ModelPressError):
        return isinstance(error, OutOfDisk)
    return (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or bool(_FULL.search(str(error)))


def out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch on a CPU or on CUDA, an engine or the system says that there is no memory left."""
    if isinstance(error, ModelPressError):
        return isinstance(error, OutOfMemory)
    named = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return named or type(error).__name__ == "OutOfMemoryError" or bool(_NO_MEMORY.search(str(error)))


def one_line(error: BaseException) -> str:
    """Return what an exception says on one line of at most 300 characters; its class where it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__
