"""The results database: what was found, planned, made, measured, judged and released. All writes are here.

Each write is one transaction, and doing one again changes nothing. Docs: docs/results.md (the views).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from hub import owners, records
from hub.codec import from_json, to_json
from hub.database import Database
from hub.domain import Candidate, Facts, Failure, Job, JobResult, Refusal, Scores
from hub.errors import StoreError
from hub.history import BaseRecord, HubWrite, JobRecord, Listing, MeasuredJob, Release, UnreadableJob, VariantRecord, Verdict
from hub.plans import forget_jobs, record_plan
from hub.published import Published
from hub.queue import LEASE_S, NO_FAILURE, NO_OWNER, AttemptedRow, Queue, held, note, settle, take
from hub.reader import Reader
from hub.release_tables import CheckRow, ReleaseRow, VerdictRow
from hub.rows import (
    add_artifact,
    add_layer_errors,
    add_measurements,
    add_scores,
    environment_row_id,
    job_row,
    model_row,
    refuse,
    snapshot,
    stamp,
    unblock,
)
from hub.scheduling import NOTHING_SPENT, Plan, Spent
from hub.screening import screen
from hub.tables import ArtifactRow, FileRow, HubWriteRow, JobRow, LayerErrorRow, MeasurementRow, RefusalRow, ScoresRow, Variant

NO_SCORES: Mapping[str, float] = MappingProxyType({})


class Store:
    """The database in a SQLite file, or behind any SQLAlchemy address (`postgresql://…`), migrated to this program's revision.

    A file given as a path may have any name; in an address, `?` and `%` have a meaning of their own. Safe to use from several threads.
    Raises `StoreError` when the database is newer than this program, damaged, or held by another.
    """

    def __init__(self, where: str | Path) -> None:
        self._database = Database(where)
        self.queue = Queue(self._database)
        self.reader = Reader(self._database)
        self.published = Published(self._database)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    @property
    def file(self) -> Path | None:
        """The SQLite file; None for another database, or for one in memory."""
        url = self._database.url
        on_disk = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
        return Path(str(url.database)) if on_disk else None

    # Writes: models and refusals

    def record_models(
        self,
        candidates: Sequence[Candidate],
        at: str,
        *,
        scores: Mapping[str, float] = NO_SCORES,
        refused: Sequence[Candidate] = (),
    ) -> None:
        """Record accepted models in order of rank, with a snapshot of their popularity dated `at`; lifts their earlier refusals.

        `scores` holds by `owner/name` the score by which they were ranked. Of `refused` models the popularity alone is kept.
        """
        with self._database.writing() as session:
            for candidate in refused:
                snapshot(session, candidate, at, rank=0, score=scores.get(candidate.ref.repo_id), model_id=None)
            for rank, candidate in enumerate(candidates, start=1):
                model = model_row(session, candidate.ref)
                model.document = to_json(candidate)
                snapshot(session, candidate, at, rank=rank, score=scores.get(candidate.ref.repo_id), model_id=model.id)
                session.execute(delete(RefusalRow).filter_by(repo_id=candidate.ref.repo_id, recipe=""))

    def record_refusals(self, refusals: Sequence[Refusal]) -> None:
        """Record why models, or recipes on models, are not pressed; the latest word on each counts."""
        with self._database.writing() as session:
            for refusal in refusals:
                refuse(session, refusal)

    # Writes: jobs

    def record_plan(self, plan: Plan) -> None:
        """Make the plan the present one: add its jobs in its order, drop planned ones that it leaves out, replace refusals of recipes.

        A planned job that was tried and is left out becomes cancelled, so that what it took stays known. Jobs that the plan names are
        planned again when they failed or were left out before, but not when people cancelled them. Running and done jobs keep their state,
        whoever runs them. A recipe's title, summary, name and thresholds are brought up to date.
        """
        with self._database.writing(alone=True) as session:
            record_plan(session, plan, self._database.clock(session))

    def start(self, job: Job) -> bool:
        """Mark this very job as running in this process; False, and nothing changed, when it is done or runs already."""
        with self._database.writing() as session:
            row = job_row(session, job)
            if row.state in ("done", "running"):
                return False
            session.flush()
            take(session, row, owners.own(), self._database.clock(session), LEASE_S)
            return True

    def finish(self, job: Job, result: JobResult, *, owner: str | None = None, spent: Spent = NOTHING_SPENT) -> bool:
        """Record a result and mark its job done. A senseless result raises `BadDocument`.

        False, and nothing is changed, when the job is done already, or is no longer that of `owner` (None: whoever has it).
        """
        screen(job, result)
        with self._database.writing() as session:
            row = _open(session, job, owner)
            if row is None:
                return False
            clock = self._database.clock(session)
            settle(
                session,
                job.id,
                state="done",
                environment_id=environment_row_id(session, result.environment),
                started_at=result.started_at,
                updated_at=stamp(clock),
                attempts=max(row.attempts, 1),
                seconds=result.seconds,
                peak_memory_bytes=result.peak_memory_bytes,
                stages=to_json(result.stages),
                facts=to_json(result.facts) if result.facts else None,
                notes=to_json(result.notes),
                machine=to_json(result.state),
                cancel=False,
                **NO_FAILURE,
                **NO_OWNER,
            )
            note(session, row, "done", clock, seconds=result.seconds, result=result, spent=spent)
            if result.artifact:
                add_artifact(session, job, result.artifact)
            add_measurements(session, job, row, result)
            add_layer_errors(session, job, result)
            add_scores(session, job, row, result)
            unblock(session, job.id)
            return True

    def fail(
        self,
        job: Job,
        failure: Failure,
        *,
        owner: str | None = None,
        spent: Spent = NOTHING_SPENT,
        retry_after: float | None = None,
        economy: int = 0,
    ) -> bool:
        """Record why a job failed; with `retry_after` it is planned again, to be started in so many seconds at the earliest.

        One that people cancelled meanwhile is cancelled, whatever it failed of.

        False, and nothing is changed, when the job is done already, or is no longer that of `owner` (None: whoever has it).
        """
        with self._database.writing() as session:
            row = _open(session, job, owner)
            if row is None:
                return False
            clock = self._database.clock(session)
            again = retry_after is not None and not row.cancel
            settle(
                session,
                job.id,
                state="cancelled" if row.cancel else "planned" if again else "failed",
                updated_at=stamp(clock),
                attempts=max(row.attempts, 1),
                seconds=failure.seconds,
                error=failure.error,
                reason=failure.reason,
                hint=failure.hint,
                log_tail=failure.log_tail,
                retryable=failure.retryable,
                category=failure.category,
                not_before=clock + (retry_after or 0.0) if again else 0.0,
                economy=economy if again else row.economy,
                **NO_OWNER,
            )
            note(session, row, "interrupted" if row.cancel else "failed", clock, seconds=failure.seconds, failure=failure, spent=spent)
            return True

    def put_back(self, job: Job) -> None:
        """Mark a job that runs in this process as planned again, as if it had never started: it was interrupted, which is no failure."""
        self.queue.put_back(job, owners.own())

    def recover(self) -> int:
        """Put back the jobs marked running whose dispatcher lives no more; return how many."""
        return self.queue.recover()

    def forget(self, variant_id: str) -> None:
        """Forget what was made of a variant whose files are lost, so that it can be pressed again; a released one raises `StoreError`.

        Its jobs are cancelled until a plan names them again; what they took stays known, and those that run are left to their dispatcher.
        """
        with self._database.writing(alone=True) as session:
            self._demand(session, variant_id)
            if session.get(ReleaseRow, variant_id) is not None:
                raise StoreError(f"variant {variant_id} is released, so it is not forgotten", hint="its files are on the Hub")
            verdicts = select(VerdictRow.id).where(VerdictRow.variant_id == variant_id)
            session.execute(delete(CheckRow).where(CheckRow.verdict_id.in_(verdicts)))
            for table in (VerdictRow, MeasurementRow, ScoresRow, LayerErrorRow, FileRow, ArtifactRow):
                session.execute(delete(table).where(table.variant_id == variant_id))
            forget_jobs(session, variant_id, self._database.clock(session))

    # Writes: the Hub

    def record_hub_write(self, action: str, repo_id: str, size: int) -> None:
        """Note that something was sent to the Hub just now: what (`repo`, `commit`), where to, and how many bytes."""
        with self._database.writing() as session:
            session.add(HubWriteRow(at=self._database.clock(session), action=action, repo_id=repo_id, bytes=size))

    # Writes: verdicts and releases

    def record_verdict(self, verdict: Verdict) -> None:
        """Record the gate's answer on some bytes; a later answer on the same bytes replaces it, the same answer changes nothing.

        Of a release the same answer is given anew: what else was found since (an audit, another commit) holds no more.
        """
        with self._database.writing() as session:
            self._demand(session, verdict.variant_id)
            row = session.scalar(select(VerdictRow).filter_by(variant_id=verdict.variant_id, stage=verdict.stage, subject=verdict.subject))
            checks = [(check.name, check.passed, check.detail) for check in verdict.checks]
            if row is None:
                row = VerdictRow(variant_id=verdict.variant_id, stage=verdict.stage, subject=verdict.subject)
                session.add(row)
            elif checks == [(check.name, check.passed, check.detail) for check in row.checks]:
                if verdict.stage == "release":
                    row.judged_at = verdict.judged_at
                return
            row.passed, row.judged_at = verdict.passed, verdict.judged_at
            row.checks.clear()
            session.flush()
            row.checks.extend(CheckRow(position=i, name=n, passed=p, detail=d) for i, (n, p, d) in enumerate(checks))

    def mark_verified(self, variant_id: str, at: str | None) -> None:
        """Note that the published bytes of a variant passed the gate at the time `at`; None: that nothing says so any more."""
        with self._database.writing() as session:
            row = session.get(ReleaseRow, variant_id)
            if row is None:
                raise StoreError(f"variant {variant_id} has no release to mark as verified", hint="publish it first")
            row.verified_at = at

    # Reads

    def done(self) -> set[str]:
        """Return the ids of all done jobs."""
        with self._database.reading() as session:
            return set(session.scalars(select(JobRow.id).where(JobRow.state == "done")))

    def failed_attempts(self) -> dict[str, tuple[int, bool]]:
        """Return, by id of each failed job, how often it was tried and whether trying again may help."""
        with self._database.reading() as session:
            rows = session.execute(select(JobRow.id, JobRow.attempts, JobRow.retryable).where(JobRow.state == "failed"))
            return {job: (attempts, bool(retryable)) for job, attempts, retryable in rows}

    def jobs(self) -> list[JobRecord]:
        """Return all jobs in the order in which they were first planned, but for those whose rows cannot be read."""
        return self.jobs_apart()[0]

    def jobs_apart(self) -> tuple[list[JobRecord], list[UnreadableJob]]:
        """Return all jobs in the order in which they were first planned: those that can be read, and those that cannot."""
        with self._database.reading() as session:
            return records.jobs(session)

    def hub_writes(self, since: float) -> list[HubWrite]:
        """Return what was sent to the Hub at or after `since` (epoch seconds), oldest first."""
        with self._database.reading() as session:
            rows = session.scalars(select(HubWriteRow).where(HubWriteRow.at >= since).order_by(HubWriteRow.at, HubWriteRow.id))
            return [HubWrite(at=row.at, action=row.action, repo_id=row.repo_id, bytes=row.bytes) for row in rows]

    def popularity(self, *, since: str = "") -> dict[str, list[Listing]]:
        """Return by `owner/name` how popular each listed model was, refused ones too, from `since` (ISO-8601) on, oldest first."""
        with self._database.reading() as session:
            return records.popularity(session, since)

    def candidates(self, repo_id: str | None = None) -> dict[str, tuple[Candidate, ...]]:
        """Return by `owner/name` each commit that was accepted, as last seen, newest listing first; of one repository, or of all."""
        with self._database.reading() as session:
            return records.candidates(session, repo_id)

    def facts(self, job: Job) -> Facts | None:
        """Return what a done inspection found; None when it is not done."""
        with self._database.reading() as session:
            document = session.scalar(select(JobRow.facts).where(JobRow.id == job.id))
            return from_json(Facts, document, where=f"the database's facts of {job.id}") if document else None

    def bases(self, *, current: bool = False) -> list[BaseRecord]:
        """Return base models with their numbers, latest listing first, by rank; with `current`, the latest listing's alone."""
        with self._database.reading() as session:
            return records.bases(session, current=current)

    def variants(self) -> list[VariantRecord]:
        """Return all variants in the order in which they were first planned."""
        with self._database.reading() as session:
            return records.variants(session)

    def variant(self, variant_id: str) -> VariantRecord | None:
        """Return one variant; None for an unknown id."""
        with self._database.reading() as session:
            return next(iter(records.variants(session, variant_id)), None)

    def measured(self, name: str) -> list[MeasuredJob]:
        """Return the done measuring jobs that a job's id, a variant's id or label, or a base's `owner/name[@sha]` names; newest first."""
        with self._database.reading() as session:
            return records.measured(session, name)

    def scores(self, job_id: str) -> list[Scores]:
        """Return what a measuring job scored by window, and by document of each task; they are large, so no record carries them."""
        with self._database.reading() as session:
            return records.scores(session, job_id)

    def refusals(self) -> list[Refusal]:
        """Return what is refused, models first."""
        with self._database.reading() as session:
            return records.refusals(session)

    def releases(self) -> list[Release]:
        """Return all releases, oldest first."""
        with self._database.reading() as session:
            return records.releases(session)

    @staticmethod
    def _demand(session: Session, variant: str) -> None:
        if session.get(Variant, variant) is None:
            raise StoreError(f"no variant {variant} is recorded", hint="record the plan that makes it first")


def _open(session: Session, job: Job, owner: str | None) -> AttemptedRow | None:
    """Return the row of a job that may be settled now: not done yet, and running for `owner` (None: for whom it may be)."""
    if owner is not None:
        return held(session, job, owner)
    row = job_row(session, job)
    session.flush()
    return None if row.state == "done" else row
