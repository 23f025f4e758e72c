"""The farm on a Ray cluster: the same orders, results and limits as the local one, each job on one of many machines."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from hub import errors
from hub.codec import from_json, to_json
from hub.domain import Failure, Job, JobOrder, JobResult, Workspace
from hub.errors import JobDied, ModelPressError, Unavailable
from runners import checkpoint, failures
from runners.farm import artifacts
from runners.farm.artifacts import Depot
from runners.farm.demand import Demand
from runners.farm.driver import on_request
from runners.farm.node import Answer, Task, looks_at_artifact, version
from runners.farm.processes import end

if TYPE_CHECKING:
    from hub.settings import FarmSettings

INSTALL = "pip install 'modelpress[ray]'"
_CONNECT_S = 90.0
_START_S = 900.0
_END_S = 30.0
_REMOVE_S = 60.0
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELPRESS_HUB__TOKEN", "MODELPRESS_WRITE_TOKEN", "MODELPRESS_HUB__WRITE_TOKEN")


class RayFarm:
    """Runs jobs on a cluster's machines; a context manager, safe to use from several threads.

    Made as `RayFarm(session.workspace, session.folder / "logs", settings.farm, read_token=...)`; entering it joins the cluster at
    `farm.ray_address` (empty: one of this machine alone is started) and raises `Unavailable` where that cannot be. Of the workspace, the
    threads and the memory are taken from the settings instead: 0 is meant of the machine that a job comes to. A job gets its threads,
    `farm.memory_gib` and `farm.gpus` of one node; a measuring job all its CPUs. Artifacts go by way of `farm.artifacts`; what was pressed
    lies in the workspace's `artifacts_dir` when `run` returns. `read_token` is what jobs may read the Hub with; no other token leaves
    this process. The end of each job's output lies in `log_dir/<job id>.log` once it has ended. A job that is not given its place within
    `start_s` seconds fails, and may be tried again.
    """

    exclusive_measures = False

    def __init__(
        self, workspace: Workspace, log_dir: Path, settings: FarmSettings, *, read_token: str | None = None, start_s: float = _START_S
    ) -> None:
        """Take workspace, folder for logs and the farm's settings; nothing is started yet."""
        self._workspace, self._log_dir, self._settings, self._read_token = workspace, log_dir, settings, read_token
        self._demand = Demand(
            farm=uuid4().hex[:12],
            address=settings.ray_address,
            threads=settings.threads,
            workers=settings.workers,
            memory_bytes=int(settings.memory_gib * 2**30),
            gpus=settings.gpus,
            start_s=start_s,
        )
        self._marker = log_dir / f".farm-{self._demand.farm}"
        self._lock = threading.Lock()
        self._ends: dict[str, threading.Event] = {}
        self._depot: Depot | None = None
        self._link: _Link | None = None
        self._closed = False

    def __enter__(self) -> RayFarm:
        """Join the cluster; raise `Unavailable` or `SettingsError` where that, or opening the artifacts' address, cannot be."""
        require_ray()
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._marker.touch()
        if self._settings.artifacts:
            self._depot = Depot(self._settings.artifacts)
        self._joined()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End what still runs, leave the cluster, and have its machines cleaned."""
        with self._lock:
            self._closed = True
            if self._link:
                self._link.close()
        self._marker.unlink(missing_ok=True)

    @property
    def slots(self) -> int:
        """How many pressing jobs the cluster holds at once; raises while it is away, so that no job is begun only to fail."""
        return self._joined().slots

    def run(self, job: Job, *, folder: Path | None = None, economy: int = 0, timeout_s: float | None = None) -> JobResult | Failure:
        """Run a job to its end and return what came of it; never raises for what happens in the job, on its node or on the way."""
        began = time.monotonic()
        name = uuid4().hex
        with self._lock:
            ended = self._ends[job.id] = threading.Event()
        try:
            limits = self._workspace if timeout_s is None else replace(self._workspace, timeout_s=_shorter(timeout_s, self._workspace))
            order = JobOrder(job=job, workspace=limits, folder=str(folder.resolve()) if folder else None, economy=economy)
            task = artifacts.in_time(limits.timeout_s, lambda: self._task(order, name))
            answer = from_json(Answer, self._joined().run(job.id, to_json(task), ended), where=f"the answer of the cluster on {job.label}")
            with suppress(OSError):  # a disk too full for a log is no reason to lose a result
                (self._log_dir / f"{job.id}.log").write_text(answer.log, encoding="utf-8")
            if isinstance(answer.outcome, Failure):
                return replace(answer.outcome, log_tail=failures.tail(self._log_dir / f"{job.id}.log"))
            if answer.outcome.artifact:
                digest = answer.outcome.artifact.digest
                artifacts.in_time(limits.timeout_s, lambda: self._fetch(job, digest))
            return answer.outcome
        except Exception as error:
            return failures.failure(job.id, error, seconds=time.monotonic() - began, workspace=self._workspace)
        finally:
            with self._lock:
                self._ends.pop(job.id, None)
            if self._depot and folder:
                with suppress(ModelPressError):
                    artifacts.in_time(_REMOVE_S, lambda: self._forget_input(name))

    def cancel(self, job_id: str) -> None:
        """End a running job: its `run` returns a `Failure` of the category `killed`. One that does not run is left alone."""
        with self._lock:
            if job_id in self._ends:
                self._ends[job_id].set()
                if self._link:
                    self._link.cancel(job_id)

    def _task(self, order: JobOrder, name: str) -> Task:
        """Return the order as it goes to a node, with what it looks at brought to the depot, under this name where it is no artifact."""
        task = Task(
            order=order,
            version=version(),
            farm=self._demand.farm,
            artifacts=self._settings.artifacts,
            marker=str(self._marker.resolve()),
            read_token=self._read_token,
        )
        if self._depot is None:
            return task
        artifact = self._artifact(order.job)
        if order.folder is not None and not (looks_at_artifact(order.job) and Path(order.folder) == artifact):
            return replace(task, inputs=self._depot.push_input(Path(order.folder), name), input_name=name)
        if not looks_at_artifact(order.job):
            return task
        known = checkpoint.read_manifest(artifact) if artifacts.whole(artifact, None) else None
        if known and not self._depot.holds(known):
            self._depot.push(artifact)
        return replace(task, digest=known.digest if known else "")

    def _fetch(self, job: Job, digest: str) -> None:
        """Bring what was pressed to this machine."""
        if self._depot:
            self._depot.pull(str(job.variant_id), self._artifact(job), digest=digest)

    def _forget_input(self, name: str) -> None:
        if self._depot:
            self._depot.remove_input(name)

    def _artifact(self, job: Job) -> Path:
        return (Path(self._workspace.artifacts_dir) / str(job.variant_id)).resolve()

    def _joined(self) -> _Link:
        with self._lock:
            if self._closed:
                raise JobDied("The farm is closed.", hint="Run the command again.")
            if self._link is None or not self._link.alive:
                again = self._link is not None
                try:
                    self._link = _Link(self._demand, self._log_dir / "ray.log")
                except Unavailable as error:
                    if not again:
                        raise
                    raise JobDied("The Ray cluster was lost, and is not back.", hint="Start it again; see logs/ray.log.") from error
            return self._link


def require_ray() -> None:
    """Raise `Unavailable` where Ray or fsspec is not installed."""
    for name in ("ray", "fsspec"):
        try:
            found = importlib.util.find_spec(name) is not None
        except ImportError:
            found = False
        if not found:
            raise Unavailable(f'farm.kind = "ray" needs the library {name}, which is not installed.', hint=f"Run: {INSTALL}")


class _Link:
    """The farm's side of the driver process (`runners.farm.driver`)."""

    def __init__(self, demand: Demand, log: Path) -> None:
        self._log = log
        tokenless = {name: value for name, value in os.environ.items() if name.upper() not in _TOKENS}  # a cluster of its own inherits it
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "runners.farm.driver"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=tokenless | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self._numbers = itertools.count(1)
        self._waiting: dict[int, tuple[str, queue.SimpleQueue[str | None]]] = {}
        self._lock = threading.Lock()
        self.alive = True
        self.slots = 1
        self._send(demand)
        self._greet()
        threading.Thread(target=self._listen, name="ray-listener", daemon=True).start()

    def run(self, job_id: str, task: str, ended: threading.Event) -> str:
        """Send a task and wait for its answer, both JSON; `ended` tells that it was cancelled before it got here."""
        number = next(self._numbers)
        answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with self._lock:
            if not self.alive:
                raise self._gone()
            if ended.is_set():
                raise on_request()
            self._waiting[number] = (job_id, answers)
            self._send({"ticket": number, "task": task})
        answer = answers.get()
        if answer is None:
            raise self._gone()
        return answer

    def cancel(self, job_id: str) -> None:
        """Have a job ended."""
        with self._lock:
            for number, (waiting, _) in self._waiting.items():
                if waiting == job_id:
                    with suppress(JobDied):
                        self._send({"cancel": number})

    def close(self) -> None:
        """End the process; it ends its actors first."""
        end(self._process, _END_S)

    def _greet(self) -> None:
        """Take the driver's first words; raise what it says, or `Unavailable` where it says nothing for long."""
        assert self._process.stdout is not None
        late = threading.Timer(_CONNECT_S, self._process.kill)
        late.start()
        line = self._process.stdout.readline()
        late.cancel()
        message: dict[str, Any] = (
            json.loads(line) if line else {"refused": ["Unavailable", f"No answer of a Ray cluster. {self._last_words()}", ""]}
        )
        if "refused" in message:
            self.close()
            name, said, hint = message["refused"]
            raise getattr(errors, name, Unavailable)(said, hint=hint or f"Check farm.ray_address; see {self._log}.")
        self.slots = int(message["ready"])

    def _listen(self) -> None:
        try:
            self._pass_on()
        finally:  # whatever it said that was not understood, nobody waits for ever
            with self._lock:
                self.alive = False
                for _, waiting in self._waiting.values():
                    waiting.put(None)
            self._process.kill()
            self._process.wait()

    def _pass_on(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            message = json.loads(line)
            self.slots = int(message["slots"])
            with self._lock:
                _, waiting = self._waiting.pop(int(message["ticket"]))
            waiting.put(str(message["answer"]))

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write((to_json(message) + "\n").encode())
            self._process.stdin.flush()
        except (OSError, ValueError) as error:  # it died, or the farm was closed meanwhile
            raise self._gone() from error

    def _gone(self) -> JobDied:
        hint = "Run it again when it is back; see logs/ray.log."  # the last words there hold addresses, which are not for the store
        return JobDied("The connection with the Ray cluster ended, and the job with it.", hint=hint)

    def _last_words(self) -> str:
        lines = failures.tail(self._log).strip().splitlines()
        return f"Its last words: {lines[-1][:300]}" if lines else ""


def _shorter(timeout_s: float, workspace: Workspace) -> float:
    """Return the shorter of two limits; 0 of the workspace is none, 0 s left is not."""
    return min(max(timeout_s, 0.001), workspace.timeout_s or float("inf"))
