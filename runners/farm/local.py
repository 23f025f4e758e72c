"""The local farm: each job a child process forked from a warm parent, with limits on time and memory, and never an orphan."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from hub.codec import from_json, to_json
from hub.domain import Failure, Job, JobOrder, JobResult, Workspace
from hub.errors import JobDied, ModelPressError, OutOfMemory, TimedOut
from runners import economy as sparing
from runners import failures, work
from runners.farm.processes import MemoryWatch, end, kill_tree

_LOOK_S = 0.25
_START_S = 300.0
_END_S = 10.0
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELPRESS_HUB__TOKEN", "MODELPRESS_WRITE_TOKEN", "MODELPRESS_HUB__WRITE_TOKEN")
_GPUS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, the same below Windows, AMD
_DIED = {"died": True}


class LocalFarm:
    """Runs jobs in child processes of this machine; a context manager, safe to use from several threads.

    The warm parent starts with the first job (or `warm()`), and again should it die. `read_token` is what the jobs may read the Hub
    with; no other token of this process's environment reaches them. Each job's output lies in `log_dir/<job id>.log`.
    A `cold` farm's parent imports nothing: for one job alone, which then imports only what it needs, that is sooner.

    `slots` says how many jobs are meant to run at once. A measuring job runs alone, for it takes time: it waits until no other job runs of
    any farm with this `log_dir`, in whatever process, and all others wait for it.
    """

    exclusive_measures = True

    def __init__(self, workspace: Workspace, log_dir: Path, *, read_token: str | None = None, cold: bool = False, slots: int = 1) -> None:
        """Take the workspace that each order carries, and the folder for logs; nothing is started yet."""
        self.slots = slots
        self._workspace = workspace
        self._log_dir = log_dir
        self._read_token = read_token
        self._cold = cold or any(Path(device).exists() for device in _GPUS)
        self._lock = threading.Lock()
        self._parent: _Parent | None = None
        self._closed = False
        self._ends: dict[str, threading.Event] = {}

    def __enter__(self) -> LocalFarm:
        """Make the folder for logs."""
        self._log_dir.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the parent and every job that still runs."""
        with self._lock:
            self._closed = True
            if self._parent:
                self._parent.close()

    def warm(self) -> None:
        """Start the warm parent now, without waiting for it."""
        self._alive()

    def run(self, job: Job, *, folder: Path | None = None, economy: int = 0, timeout_s: float | None = None) -> JobResult | Failure:
        """Run a job to its end and return what came of it; never raises for what happens in the job.

        `economy`: see `JobOrder`. `timeout_s` shortens what the workspace allows, never lengthens it.
        """
        space = _shortened(self._workspace, timeout_s)
        order = JobOrder(job=job, workspace=space, folder=str(folder.resolve()) if folder else None, economy=economy)
        start = time.monotonic()
        log, result = self._log_dir / f"{job.id}.log", self._log_dir / f"{job.id}.json"
        with self._lock:
            ended = self._ends[job.id] = threading.Event()
        try:
            result.unlink(missing_ok=True)
            with self._solitude(job, ended):
                if timeout_s is not None:  # what it waited, in whole seconds, is gone from what the budget left it
                    space = _shortened(self._workspace, timeout_s - int(time.monotonic() - start))
                end = self._alive().run(to_json(order), log.resolve(), result.resolve(), space, ended)
            return self._read(job, result, end)
        except Exception as error:
            if isinstance(error, OutOfMemory):  # by the farm's limit: only the method knows whether there is a smaller way
                with sparing.use(economy):
                    error = work.out_of_memory(order, error)
            tail = failures.tail(log, space)
            return failures.failure(job.id, error, seconds=time.monotonic() - start, log_tail=tail, workspace=space)
        finally:
            with self._lock:
                self._ends.pop(job.id, None)
            with suppress(OSError):
                result.unlink(missing_ok=True)
            _sweep(order)

    def cancel(self, job_id: str) -> None:
        """End a job that runs or waits to run: its `run` returns a failure of the class `killed`, unless it has ended by itself."""
        with self._lock:
            if job_id in self._ends:
                self._ends[job_id].set()

    @contextmanager
    def _solitude(self, job: Job, ended: threading.Event) -> Iterator[None]:
        """Keep measuring jobs apart from all others on this machine."""
        with (self._log_dir / "turn.lock").open("a") as turn, (self._log_dir / "measuring.lock").open("a") as file:
            _held(turn, fcntl.LOCK_EX, ended)  # who waits to be alone lets nobody in before it
            _held(file, fcntl.LOCK_EX if job.kind == "measure" else fcntl.LOCK_SH, ended)
            fcntl.flock(turn, fcntl.LOCK_UN)
            yield

    def _read(self, job: Job, result: Path, end: _End) -> JobResult | Failure:
        """Return what the job wrote; raise what ended it where it wrote nothing."""
        try:
            text = result.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise end.error or failures.died(end.status) from None
        if "reason" not in json.loads(text):
            return from_json(JobResult, text, where=f"the result of {job.label}")
        failed = from_json(Failure, text, where=f"the failure of {job.label}")
        tail = failures.tail(self._log_dir / f"{job.id}.log", self._workspace)
        return failures.named(replace(failed, log_tail=tail), job.base)

    def _alive(self) -> _Parent:
        with self._lock:
            if self._closed:
                raise JobDied("The farm is closed.", hint="Run the command again.")
            if self._parent is None or not self._parent.alive:
                self._parent = _Parent(self._environment(), self._log_dir / "farm.log", cold=self._cold)
            return self._parent

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name.upper() not in _TOKENS}  # settings take any case
        kept |= {
            "OPENBLAS_NUM_THREADS": "1",  # it would start threads at import, and forks do not take threads along
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if self._workspace.endpoint.rstrip("/") != "https://huggingface.co":
            kept["HF_HUB_DISABLE_XET"] = "1"
        if self._read_token:
            kept["HF_TOKEN"] = self._read_token
        return kept


@dataclass(frozen=True, kw_only=True)
class _End:
    """How a child ended: its wait status, and the error for which the farm ended it, if it did."""

    status: int
    error: ModelPressError | None


class _Parent:
    """The farm's side of the warm parent process."""

    def __init__(self, environment: dict[str, str], log: Path, *, cold: bool) -> None:
        command = [sys.executable, "-m", "runners.farm.zygote", *(["--cold"] if cold else [])]
        self._log = log
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment, start_new_session=True
            )
        self._numbers = itertools.count(1)
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        self.alive = True
        threading.Thread(target=self._listen, name="farm-listener", daemon=True).start()

    def run(self, order: str, log: Path, result: Path, limits: Workspace, ended: threading.Event) -> _End:
        """Start an order and watch it to its end."""
        number = next(self._numbers)
        answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self._lock:
            self._waiting[number] = answers
            if not self.alive:
                raise self._gone()
            if ended.is_set():
                raise _on_request()
            self._send({"ticket": number, "order": order, "log": str(log), "result": str(result)})
        try:
            pid = self._started(answers)
            return self._watch(pid, answers, limits, ended)
        finally:
            with self._lock:
                del self._waiting[number]

    def close(self) -> None:
        """End the process; it kills its children first."""
        end(self._process, _END_S)

    def _started(self, answers: queue.SimpleQueue[dict[str, Any]]) -> int:
        try:
            answer = answers.get(timeout=_START_S)
        except queue.Empty:
            self._process.kill()  # else it would start the job after all, with nobody to watch it
            raise TimedOut(f"The farm's parent process was not ready after {_START_S:.0f} s.", hint=f"Look into {self._log}.") from None
        if "pid" not in answer:
            raise self._gone()
        return int(answer["pid"])

    def _watch(self, pid: int, answers: queue.SimpleQueue[dict[str, Any]], limits: Workspace, ended: threading.Event) -> _End:
        deadline = time.monotonic() + limits.timeout_s if limits.timeout_s > 0 else float("inf")
        memory = MemoryWatch(pid)
        error: ModelPressError | None = None
        while True:
            try:
                answer = answers.get(timeout=_LOOK_S)
            except queue.Empty:
                error = error or (_on_request() if ended.is_set() else _excess(deadline, memory, limits))
                if error:
                    kill_tree(pid)
                continue
            if "status" in answer:
                return _End(status=int(answer["status"]), error=error)
            kill_tree(pid)  # the parent died; the kernel kills its child, this what the child started
            raise self._gone()

    def _listen(self) -> None:
        try:
            self._pass_on()
        finally:  # whatever it said that was not understood, nobody waits for ever
            with self._lock:
                self.alive = False
                for waiting in self._waiting.values():
                    waiting.put(_DIED)
            self._process.kill()
            self._process.wait()

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            with self._lock:
                waiting = self._waiting.get(message.get("ticket", 0))
            if waiting:
                waiting.put(message)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # it died, or the farm was closed meanwhile
            raise self._gone() from error

    def _gone(self) -> JobDied:
        lines = failures.tail(self._log).strip().splitlines()
        last = f" Its last words: {lines[-1][:300]}" if lines else ""
        return JobDied(
            f"The farm's parent process ended, and the job with it.{last}", hint=f"Run it again; see {self._log.name} if it recurs."
        )


def _shortened(workspace: Workspace, timeout_s: float | None) -> Workspace:
    if timeout_s is None or 0 < workspace.timeout_s <= timeout_s:
        return workspace
    return replace(workspace, timeout_s=max(timeout_s, _LOOK_S))


def _held(file: TextIO, how: int, ended: threading.Event) -> None:
    """Wait for a lock; raise where the job is cancelled meanwhile."""
    while True:
        try:
            return fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if ended.wait(_LOOK_S):
                raise _on_request() from None


def _on_request() -> JobDied:
    return JobDied("The job was ended on request.", hint="It is as if it had not run: plan it again.")


def _excess(deadline: float, memory: MemoryWatch, limits: Workspace) -> ModelPressError | None:
    """Return the error of a job that is over its limits."""
    if time.monotonic() > deadline:
        return TimedOut(
            f"The job took longer than {limits.timeout_s:g} s and was ended.", hint="Raise farm.timeout_s, or use a smaller model."
        )
    if limits.memory_bytes > 0 and (used := memory.bytes()) > limits.memory_bytes:
        return OutOfMemory(
            f"The job used {used / 2**30:.2f} GiB of memory, {limits.memory_bytes / 2**30:.2f} GiB are allowed; it was ended.",
            hint="Raise farm.memory_gib, or press a smaller model.",
        )
    return None


def _sweep(order: JobOrder) -> None:
    """Remove the unfinished folder that a killed press leaves beside its target."""
    if order.job.kind == "press":
        from runners.checkpoint import clear_leftovers

        with suppress(OSError):
            clear_leftovers(Path(order.workspace.artifacts_dir) / str(order.job.variant_id))
