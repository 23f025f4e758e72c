"""`python -m runners.farm.node`: one job on a cluster's machine, with a farm of its own: a `Task` as JSON on stdin, an `Answer` on stdout.

It ends, and the job and all that it left with it, when stdin ends: the Ray worker that holds the other end of the pipe was killed, or
with it the whole node, or the dispatcher is gone. Ray itself is not needed here.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

from hub.codec import from_json, to_json
from hub.domain import ArtifactFile, Failure, Job, JobOrder, JobResult, Workspace
from hub.errors import SettingsError, Unavailable
from runners import failures
from runners.farm import scratch
from runners.farm.artifacts import Depot, in_time
from runners.farm.local import LocalFarm

_LOG_BYTES = 1 << 20
OWN_SHARE = 0.8


@dataclass(frozen=True, kw_only=True)
class Task:
    """An order as it goes to a cluster's machine.

    `version` is the dispatcher's. `artifacts` is the depot's address; empty: the work folder is shared, which the file `marker` proves.
    `inputs` are the files of the order's folder, in the depot under the name `input_name`; None where it has none or is the variant's
    artifact. `digest` is that of the artifact to look at, empty where the dispatcher knows of none.
    """

    order: JobOrder
    version: str
    farm: str
    artifacts: str = ""
    marker: str = ""
    inputs: tuple[ArtifactFile, ...] | None = None
    input_name: str = ""
    digest: str = ""
    read_token: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What comes back: a JobResult or a Failure, and the end of the job's log."""

    outcome: JobResult | Failure
    log: str = ""


def version() -> str:
    """Return this installation's version of ModelPress."""
    try:
        return metadata.version("modelpress")
    except metadata.PackageNotFoundError:
        return "unknown"


class Place:
    """One job's place on this machine: its folders, and its farm, which `end` closes from any thread."""

    def __init__(self, task: Task, root: Path) -> None:
        """Take the scratch folder of the farm on this node."""
        self._task, self._root = task, root
        self._job = task.order.job
        self._own = root / "jobs" / f"{self._job.id}-{os.getpid()}"
        self._workspace = self._placed(task.order.workspace)
        (self._own / "tmp").mkdir(parents=True, exist_ok=True)
        os.environ["TMPDIR"] = str(self._own / "tmp")  # what libraries leave there goes with the job
        self._farm = LocalFarm(self._workspace, self._own, read_token=task.read_token, cold=True)

    def run(self) -> Answer:
        """Fetch what the job needs, run it, and send what it made; each may take as long as the job may."""
        began = time.monotonic()
        try:
            self._check()
            folder = in_time(self._workspace.timeout_s, self._folder)
            with self._farm as farm:
                outcome = farm.run(self._job, folder=folder, economy=self._task.order.economy)
            if self._task.artifacts and isinstance(outcome, JobResult) and outcome.artifact:
                in_time(self._workspace.timeout_s, lambda: Depot(self._task.artifacts).push(self._artifact))
        except Exception as error:
            outcome = failures.failure(self._job.id, error, seconds=time.monotonic() - began, workspace=self._workspace)
        return Answer(outcome=outcome, log=_end_of(self._own / f"{self._job.id}.log"))

    def end(self) -> None:
        """Kill what runs, and remove the job's own folder."""
        self._farm.__exit__(None, None, None)
        shutil.rmtree(self._own, ignore_errors=True)

    @property
    def _artifact(self) -> Path:
        return Path(self._workspace.artifacts_dir) / str(self._job.variant_id)

    def _placed(self, workspace: Workspace) -> Workspace:
        """Return the workspace as it is on this machine."""
        if workspace.memory_bytes <= 0:
            from runners.environment import memory_bytes

            workspace = replace(workspace, memory_bytes=int(memory_bytes() * OWN_SHARE))
        if self._task.artifacts:
            return replace(workspace, cache_dir=str(self._root / "cache"), artifacts_dir=str(self._root / "artifacts"))
        return workspace

    def _check(self) -> None:
        if self._task.version != version():
            raise Unavailable(
                f"This node has ModelPress {version()}, the dispatcher {self._task.version}.",
                hint="Install the same version on all machines.",
            )
        if not self._task.artifacts and not Path(self._task.marker).exists():
            raise SettingsError(
                f"The work folder with {self._task.marker} is not seen by this node.",
                hint="Share it among all machines under the same path, or set farm.artifacts to an address that all reach.",
            )

    def _folder(self) -> Path | None:
        """Bring what the job looks at, and return its folder where the order names one."""
        task = self._task
        named = Path(task.order.folder) if task.order.folder else None
        if not task.artifacts:
            return named
        if task.inputs is not None:
            folder = self._own / "input"
            Depot(task.artifacts).pull_input(task.input_name, task.inputs, folder)
            return folder
        if looks_at_artifact(self._job):
            Depot(task.artifacts).pull(str(self._job.variant_id), self._artifact, digest=task.digest)
        return self._artifact if named else None


def looks_at_artifact(job: Job) -> bool:
    """Whether a job needs the artifact of its variant, pressed before."""
    return job.recipe is not None and job.kind != "press"


def _end_of(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _LOG_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def main(root: Path) -> None:
    """Read the task, do it, answer; from now on the end of stdin is the end of all."""
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        held = scratch.join(root)
    except FileNotFoundError:
        sys.exit("The farm's folder on this node is gone, and with it who kept it.")
    with held:
        place = Place(from_json(Task, sys.stdin.buffer.readline(), where="the task"), root)

        def watch() -> None:
            while os.read(0, 4096):
                pass
            place.end()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
        answer = to_json(place.run())
        place.end()
        with os.fdopen(answers, "w") as stream:
            stream.write(answer)
    os._exit(0)


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # Ray kills the children of a worker that ends; what cleans up after it is therefore none
    main(Path(sys.argv[1]))
