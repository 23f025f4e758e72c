"""The queue of planned jobs, shared by any number of dispatchers: claims, leases, retries, pauses, and what each attempt came to.

A job is claimed by one dispatcher at a time. Its claim ends with a result, a failure, or with the dispatcher: one of this host is looked
for among the processes, one of another host is given up when its lease has ended. What a dispatcher brings for a job that is no longer its
own is dropped, so that no clock that jumps can make a job count twice.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from hub import owners
from hub.codec import from_json
from hub.database import Database
from hub.domain import Job, JobKind, ModelRef
from hub.rows import now
from hub.scheduling import NOTHING_SPENT, Attempt, Claim, Expectation, Outcome, Outlook, Renewal, Spent
from hub.tables import AttemptRow, ControlRow, JobRow, Model, NeedRow

PAUSED = "paused"
LEASE_S = 120.0
MAX_WAIT_S = 6 * 3600.0
"""A job is never put off for longer: a time further away was written by a clock that was wrong."""


class Queue:
    """The jobs of a database as a queue. Safe to use from several threads, processes and (PostgreSQL) hosts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def claim(
        self,
        owner: str,
        *,
        kinds: Collection[JobKind],
        prefer: ModelRef | None = None,
        exclude: Collection[str] = (),
        lease_s: float = LEASE_S,
    ) -> Claim | None:
        """Take the first planned job of these kinds whose needs are done and that is due; None where there is none, or all is paused.

        `exclude` names jobs that this dispatcher does not want now, such as those that its budget does not allow.

        Jobs of the base model `prefer` come first, so that what one job fetched and computed serves the next; then the plan's order.
        """
        with self._database.claiming() as session:
            clock = self._database.clock(session)
            if session.get(ControlRow, PAUSED) is not None:
                return None
            ready = (
                select(JobRow)
                .where(JobRow.state == "planned", JobRow.waits_for <= 0, JobRow.kind.in_(kinds), JobRow.id.not_in(exclude), _due(clock))
                .order_by(JobRow.position, JobRow.number)
                .limit(1)
                .with_for_update(skip_locked=True)
            )
            row = None
            if prefer is not None:
                model = select(Model.id).where(Model.repo_id == prefer.repo_id, Model.sha == prefer.sha).scalar_subquery()
                row = session.scalar(ready.where(JobRow.model_id == model))
            row = row or session.scalar(ready)
            return take(row, owner, clock + lease_s) if row else None

    def renew(self, owner: str, jobs: Collection[str], *, lease_s: float = LEASE_S) -> Renewal:
        """Renew the leases of these jobs; say which are lost, which are to be ended, and whether all is paused."""
        with self._database.claiming() as session:
            own = (JobRow.id.in_(jobs), JobRow.owner == owner, JobRow.state == "running")
            session.execute(update(JobRow).where(*own).values(lease_until=self._database.clock(session) + lease_s))
            held = dict(session.execute(select(JobRow.id, JobRow.cancel).where(*own)).all())
            return Renewal(
                lost=frozenset(jobs) - frozenset(held),
                cancelled=frozenset(job for job, cancel in held.items() if cancel),
                paused=session.get(ControlRow, PAUSED) is not None,
            )

    def put_back(self, job: Job, owner: str) -> None:
        """Mark a job of this owner as planned again, as if it had never started: it was interrupted, which is no failure."""
        with self._database.writing() as session:
            row = session.scalar(select(JobRow).filter_by(id=job.id))
            if row is not None and row.state == "running" and row.owner == owner:
                release(session, row, "interrupted", self._database.clock(session))

    def decline(self, job: Job, owner: str) -> None:
        """Give back a claim that was not begun: nothing of it is kept."""
        with self._database.writing() as session:
            row = session.scalar(select(JobRow).filter_by(id=job.id))
            if row is not None and row.state == "running" and row.owner == owner:
                _to_planned(row)

    def outlook(self, owner: str, *, kinds: Collection[JobKind]) -> Outlook:
        """Return what is left to do of these kinds for `owner`, and whether it is worth its while to wait."""
        with self._database.reading() as session:
            clock = self._database.clock(session)
            planned = (JobRow.state == "planned", JobRow.kind.in_(kinds))
            unblocked = (*planned, JobRow.waits_for <= 0)
            put_off, first = session.execute(select(func.count(), func.min(JobRow.not_before)).where(*unblocked, ~_due(clock))).one()
            waiting = select(NeedRow.needs).join(JobRow, JobRow.id == NeedRow.job_id).where(*planned)
            others = (JobRow.state == "running", JobRow.owner != owner, JobRow.id.in_(waiting))
            return Outlook(
                ready=_count(session, *unblocked, _due(clock)),
                put_off=put_off,
                blocked=_count(session, *planned, JobRow.waits_for > 0),
                awaited=_count(session, *others),
                due_in_s=first - clock if put_off else None,
                paused=session.scalar(select(ControlRow.value).where(ControlRow.name == PAUSED)),
            )

    def recover(self) -> int:
        """Put back the jobs whose dispatcher lives no more; return how many."""
        with self._database.writing() as session:
            clock = self._database.clock(session)
            lost = [row for row in session.scalars(select(JobRow).where(JobRow.state == "running")) if _lost(row, clock)]
            for row in lost:
                release(session, row, "lost", clock)
            return len(lost)

    def pause(self, reason: str) -> None:
        """Let nothing start any more; what runs goes on to its end."""
        with self._database.writing() as session:
            session.merge(ControlRow(name=PAUSED, value=reason, at=now()))

    def resume(self) -> bool:
        """Take the pause back; False when there was none."""
        with self._database.writing() as session:
            return bool(session.execute(delete(ControlRow).where(ControlRow.name == PAUSED)).rowcount)  # type: ignore[attr-defined]

    def paused(self) -> str | None:
        """Return why all is paused; None when it is not."""
        with self._database.reading() as session:
            return session.scalar(select(ControlRow.value).where(ControlRow.name == PAUSED))

    def attempts(self, *, since: float = 0.0) -> list[Attempt]:
        """Return all attempts that began at or after `since` (epoch seconds), oldest first."""
        with self._database.reading() as session:
            rows = session.execute(
                select(AttemptRow, JobRow.document)
                .join(JobRow, JobRow.id == AttemptRow.job_id)
                .where(AttemptRow.began >= since)
                .order_by(AttemptRow.began)
            )
            return [_attempt(row, document) for row, document in rows]


def take(row: JobRow, owner: str, until: float) -> Claim:
    """Mark a row as running by `owner` until `until`, and return the claim."""
    row.state, row.owner, row.lease_until = "running", owner, until
    row.started_at = row.updated_at = now()
    row.attempts += 1
    row.cancel = False
    expected = from_json(Expectation, row.expected, where=f"the database's job {row.id}") if row.expected else None
    return Claim(
        job=from_json(Job, row.document, where=f"the database's job {row.id}"), attempt=row.attempts, economy=row.economy, expected=expected
    )


def release(session: Session, row: JobRow, outcome: Outcome, clock: float) -> None:
    """Put a running row back to planned: the try does not count as one, but is kept among the attempts."""
    note(session, row, outcome, clock)
    _to_planned(row)


def _to_planned(row: JobRow) -> None:
    row.state, row.updated_at, row.started_at = "planned", now(), None
    row.attempts = max(row.attempts - 1, 0)
    row.owner = row.lease_until = None


def note(
    session: Session,
    row: JobRow,
    outcome: Outcome,
    clock: float,
    *,
    seconds: float = 0.0,
    reason: str | None = None,
    hardware: str = "",
    spent: Spent = NOTHING_SPENT,
) -> None:
    """Write down how an attempt ended."""
    attempt = AttemptRow(
        job_id=row.id,
        number=row.attempts,
        owner=row.owner or "",
        began=clock - seconds,
        seconds=seconds,
        outcome=outcome,
        category=row.category if outcome == "failed" else None,
        reason=reason,
        hardware=hardware,
        peak_memory_bytes=row.peak_memory_bytes or 0,
        gpus=spent.gpus,
        cost=spent.cost,
        expected=row.expected,
    )
    session.add(attempt)


def unblock(session: Session, job_id: str) -> None:
    """Count a done job off for those that wait for it."""
    waiting = select(NeedRow.job_id).where(NeedRow.needs == job_id)
    session.execute(update(JobRow).where(JobRow.id.in_(waiting)).values(waits_for=JobRow.waits_for - 1))


def _count(session: Session, *conditions: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(JobRow).where(*conditions)) or 0


def _due(clock: float):  # type: ignore[no-untyped-def]
    return (JobRow.not_before <= clock) | (JobRow.not_before > clock + MAX_WAIT_S)


def _lost(row: JobRow, clock: float) -> bool:
    alive = owners.lives(row.owner) if row.owner else False
    return not alive if alive is not None else (row.lease_until or 0.0) < clock


def _attempt(row: AttemptRow, document: str) -> Attempt:
    return Attempt(
        job=from_json(Job, document, where=f"the database's job {row.job_id}"),
        number=row.number,
        owner=row.owner,
        began=row.began,
        seconds=row.seconds,
        outcome=row.outcome,  # type: ignore[arg-type]
        category=row.category,
        reason=row.reason or "",
        hardware=row.hardware,
        peak_memory_bytes=row.peak_memory_bytes,
        gpus=row.gpus,
        cost=row.cost,
        expected=from_json(Expectation, row.expected, where="the database's attempt") if row.expected else None,
    )
