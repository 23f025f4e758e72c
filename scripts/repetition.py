"""A measurement taken again: of a stored job on the farm, of a file in this process. Nothing is recorded."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from modelpress.compare import measured_jobs
from modelpress.compress import locate

if TYPE_CHECKING:
    from hub.domain import Environment, Failure, Job, JobResult, Measurement
    from hub.errors import ModelPressError
    from modelpress.session import Session

_AGAIN = "again"


@dataclass(frozen=True, kw_only=True)
class Twice:
    """A measurement and its repetition: numbers, environment and notes of each."""

    what: str
    then: Sequence[Measurement]
    now: Sequence[Measurement]
    environment_then: Environment
    environment_now: Environment
    notes_then: Sequence[str]
    notes_now: Sequence[str]


def from_file(session: Session, path: Path, metric: Sequence[str] | None, log: Path | None, *, data: Path | None) -> Twice:
    """Measure again in this process, as `modelpress measure` did, with as many threads."""
    from hub.codec import from_json
    from hub.history import MeasurementFile
    from modelpress.quiet import quiet
    from runners import environment, texts
    from runners.measure import Places, measure
    from runners.work import use_threads

    read = from_json(MeasurementFile, path.read_bytes(), where=str(path))
    wanted(read.measurements, metric)
    places = Places(cache=session.folder / "cache", data=data)
    texts.bring(read.protocol.text, places.texts, lambda: session.client, session.folder / "cache" / "texts")
    folder = _same_bytes(session, read.folder, read.folder_sha)
    base = _same_bytes(session, read.base, read.base_sha) if read.base is not None else None
    with quiet(log):
        use_threads(_threads(read.environment) or session.threads)
        again = measure(folder, base, read.protocol, places=places)
        now = environment.current()
    return Twice(
        what=f"{read.folder}, protocol {read.protocol.name}",
        then=read.measurements,
        now=again.measurements,
        environment_then=read.environment,
        environment_now=now,
        notes_then=read.notes,
        notes_now=again.notes,
    )


def _threads(then: Environment) -> int:
    """Return the threads of then, 0 where they were not noted or there are not so many cores here."""
    from runners.environment import cores

    return then.threads if then.threads <= cores() else 0


def _same_bytes(session: Session, named: str, sha: str) -> Path:
    """Return a checkpoint's folder; raise `BadCheckpoint` where its content is not what was measured."""
    from hub.errors import BadCheckpoint
    from runners.checkpoint import folder_ref

    folder = locate(session, named)[1]
    found = folder_ref(folder).sha
    if sha and found != sha:
        raise BadCheckpoint(
            f"{named} holds other weights than those that were measured: {found}, not {sha}",
            hint="give it the old content again (of an id on the hub name the commit, owner/name@commit), or measure it anew",
        )
    return folder


def from_store(session: Session, name: str, metric: Sequence[str] | None) -> Twice:
    """Measure again in a job of its own on the farm, of several jobs the newest that took the metrics asked for; nothing is recorded."""
    from hub.domain import Failure

    jobs = measured_jobs(session, name)
    done = next((job for job in jobs if {one.metric for one in job.measurements}.issuperset(metric or ())), jobs[0])
    wanted(done.measurements, metric)
    job = replace(done.job, subject=_AGAIN)  # an id of its own: the first job's log and samples stay as they are
    outcome = _run(session, job, _threads(done.environment))
    if isinstance(outcome, Failure):
        raise _error(outcome)
    return Twice(
        what=f"{done.job.title}, job {done.id} of {done.started_at}",
        then=done.measurements,
        now=outcome.measurements,
        environment_then=done.environment,
        environment_now=outcome.environment,
        notes_then=done.notes,
        notes_now=outcome.notes,
    )


def _run(session: Session, job: Job, threads: int) -> JobResult | Failure:
    """Run a measuring job where its artifact lies; one that is gone from the work folder is downloaded as it was released."""
    from runners.farm.local import LocalFarm

    workspace = replace(session.workspace, threads=threads or session.threads)
    with tempfile.TemporaryDirectory(prefix="reproduce-", dir=session.folder) as scratch:
        if job.variant_id is not None and not (session.artifacts / job.variant_id).is_dir():
            _fetch_released(session, job, Path(scratch) / job.variant_id)
            workspace = replace(workspace, artifacts_dir=scratch)
        with LocalFarm(workspace, session.folder / "logs") as farm:
            return farm.run(job)


def _fetch_released(session: Session, job: Job, folder: Path) -> None:
    """Download the artifact as it was released, without what only its repository has, such as the card: sizes are to be the artifact's."""
    from hub.domain import ModelRef
    from hub.errors import BadCheckpoint
    from runners.checkpoint import MANIFEST

    record = session.store.variant(job.variant_id or "")
    if record is None or record.release is None or record.artifact is None:
        raise BadCheckpoint(
            f"the files of {job.label} are gone from {session.artifacts}, and it was never released",
            hint="press it again: modelpress run",
        )
    session.client.download(
        ModelRef(repo_id=record.release.repo_id, sha=record.release.sha),
        patterns=[MANIFEST, *(file.path for file in record.artifact.files)],
        into=folder,
    )


def _error(failure: Failure) -> ModelPressError:
    """Return a job's failure as the error that it was."""
    from hub import errors

    kind = getattr(errors, failure.error, errors.ModelPressError)
    known = isinstance(kind, type) and issubclass(kind, errors.ModelPressError)
    return (kind if known else errors.ModelPressError)(f"measuring again failed: {failure.reason}", hint=failure.hint)


def wanted(measurements: Sequence[Measurement], metrics: Sequence[str] | None) -> list[Measurement]:
    """Return the numbers of the metrics asked for, all where none is named; raise `UnknownName` for one that was not measured."""
    from hub.errors import UnknownName

    taken = sorted({one.metric for one in measurements})
    for name in metrics or ():
        if name not in taken:
            raise UnknownName(f"{name} is not among the metrics of this measurement.", hint=f"There are: {', '.join(taken)}.")
    return [one for one in measurements if not metrics or one.metric in metrics]
