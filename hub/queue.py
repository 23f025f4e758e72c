"""The queue of planned jobs, shared by any number of dispatchers: claims, leases, retries, pauses, and what each attempt came to.

A job is claimed by one dispatcher at a time. Its claim ends with a result, a failure, or with the dispatcher: one of this host is looked
for among the processes, one of another host is given up when its lease has ended. What a dispatcher brings for a job that is no longer its
own is dropped, so that no clock that jumps can make a job count twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast
from typing import Protocol as Shape

from sqlalchemy import Select, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.elements import ColumnElement

from hub import owners, records
from hub.codec import from_json, readable
from hub.database import Database, among
from hub.domain import Failure, Job, JobKind, JobResult, ModelRef
from hub.errors import BadDocument
from hub.history import JobRecord, JobState
from hub.rows import count_needs, now, stamp
from hub.scheduling import NOTHING_SPENT, Attempt, Claim, Expectation, Outcome, Outlook, Renewal, Spent
from hub.tables import AttemptRow, ControlRow, JobRow, Model, Variant, plain

T = TypeVar("T")

PAUSED = "paused"
LEASE_S = 120.0
NO_OWNER: Mapping[str, None] = MappingProxyType(dict.fromkeys(("owner", "lease_until", "began")))
NO_FAILURE: Mapping[str, None] = MappingProxyType(dict.fromkeys(("error", "reason", "hint", "log_tail", "category", "retryable")))


class AttemptedRow(Shape):
    """What beginning and ending an attempt need of a job's row: an object of it, or these of its columns."""

    id: str
    document: str
    expected: str | None
    attempts: int
    economy: int
    cancel: bool
    owner: str | None
    began: float | None
    lease_until: float | None
    model_id: int
    variant_id: str | None
    protocol_id: str | None


class Queue:
    """The jobs of a database as a queue. Safe to use from several threads, processes and (PostgreSQL) hosts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # For dispatchers

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

        Jobs of the base model `prefer` come first, so that what one job fetched and computed serves the next; then the plan's order.
        `exclude` names jobs that this dispatcher does not want now, such as those that its budget does not allow. A job that this program
        cannot read fails on the spot: it must not hold up those behind it.
        """
        with self._database.claiming() as session:
            clock = self._database.clock(session)
            ready = _READY
            wanted = {"kinds": tuple(kinds), "clock": clock, "stamp": stamp(clock)}
            if exclude:
                ready = ready.where(_JOBS.c.id.not_in(among(session, exclude)))
            while row := _first(session, ready, wanted, prefer):
                try:
                    return take(session, row, owner, clock, lease_s)
                except BadDocument as error:
                    said = {"error": error.name, "reason": error.message, "hint": "make a new plan", "category": "bug"}
                    settle(session, row.id, state="failed", updated_at=stamp(clock), retryable=True, **said)
            return None

    def renew(self, owner: str, jobs: Collection[str], *, lease_s: float = LEASE_S) -> Renewal:
        """Renew the leases of these jobs; say which are lost, which are to be ended, and whether all is paused."""
        with self._database.claiming() as session:
            own = (JobRow.id.in_(among(session, jobs)), JobRow.owner == owner, JobRow.state == "running")
            session.execute(update(JobRow).where(*own).values(lease_until=self._database.clock(session) + lease_s))
            held = {row.id: row.cancel for row in session.execute(select(JobRow.id, JobRow.cancel).where(*own))}
            return Renewal(
                lost=frozenset(jobs) - frozenset(held),
                cancelled=frozenset(job for job, cancel in held.items() if cancel),
                paused=session.get(ControlRow, PAUSED) is not None,
            )

    def put_back(self, job: Job, owner: str, *, spent: Spent = NOTHING_SPENT, why: Failure | None = None) -> None:
        """Mark a job of this owner as planned again, as if it had never started: it was interrupted, which is no failure.

        The attempt keeps the class and the reason of `why`.
        """
        with self._database.writing() as session:
            if row := held(session, job, owner):
                release(session, row, "interrupted", self._database.clock(session), spent=spent, why=why)

    def decline(self, job: Job, owner: str) -> None:
        """Give back a claim that was not begun: nothing of it is kept."""
        with self._database.writing() as session:
            if row := held(session, job, owner):
                _to_planned(session, row, self._database.clock(session))

    def outlook(self, owner: str, *, kinds: Collection[JobKind]) -> Outlook:
        """Return what is left to do of these kinds for `owner`, and whether it is worth its while to wait."""
        with self._database.reading() as session:
            clock = self._database.clock(session)
            due, unblocked = _due(clock), _ready(kinds)
            planned = (JobRow.state == "planned", JobRow.kind.in_(kinds))
            put_off, first = session.execute(select(func.count(), func.min(JobRow.not_before)).where(*unblocked, ~due)).one()
            others = (JobRow.state == "running", JobRow.kind.in_(kinds), JobRow.owner != owner)
            return Outlook(
                ready=_count(session, *unblocked, due),
                put_off=put_off,
                blocked=_count(session, *planned, JobRow.waits_for > 0),
                elsewhere=_count(session, *others),
                due_in_s=first - clock if put_off else None,
                paused=session.scalar(select(ControlRow.value).where(ControlRow.name == PAUSED)),
            )

    def expected_elsewhere(self, owner: str) -> list[Expectation | None]:
        """Return what is expected of each job that runs under another dispatcher, None of one of which nothing is known."""
        with self._database.reading() as session:
            rows = session.scalars(select(JobRow.expected).where(JobRow.state == "running", JobRow.owner != owner))
            return [readable(Expectation, row) for row in rows]

    def newest_elsewhere(self, owner: str) -> int:
        """Return the number of the latest attempt of another dispatcher; 0: there is none."""
        with self._database.reading() as session:
            return session.scalar(select(func.max(AttemptRow.id)).where(AttemptRow.owner != owner)) or 0

    def recover(self) -> int:
        """Put back the jobs whose dispatcher lives no more; return how many. Those cancelled meanwhile are cancelled."""
        running = select(JobRow).where(JobRow.state == "running")
        with self._database.reading() as session:  # mostly there is nothing to write, and no writer need wait
            clock = self._database.clock(session)
            if not any(_lost(row, clock) for row in session.scalars(running)):
                return 0
        with self._database.writing(alone=True) as session:
            clock = self._database.clock(session)
            lost = [row for row in session.scalars(running) if _lost(row, clock)]
            for row in lost:
                release(session, row, "lost", clock)
            return len(lost)

    # For people

    def cancel(self, job_ids: Collection[str]) -> int:
        """Cancel planned jobs, and have running ones ended by their dispatcher at its next renewal; return how many these were.

        They stay cancelled, also when a later plan names them, until `retry`. Jobs that are done or failed are left alone.
        """
        with self._database.writing(alone=True) as session:
            chosen = (JobRow.id.in_(among(session, job_ids)), ~JobRow.cancel)
            when = {"updated_at": stamp(self._database.clock(session))}
            asked = _changed(session, *chosen, JobRow.state == "running", values={"cancel": True})
            return asked + _changed(
                session, *chosen, JobRow.state.in_(("planned", "cancelled")), values={"state": "cancelled", "cancel": True, **when}
            )

    def retry(self, job_ids: Collection[str]) -> int:
        """Plan failed and cancelled jobs again, as if they had never been tried; return how many these were."""
        with self._database.writing(alone=True) as session:
            chosen = list(session.scalars(select(JobRow.id).where(JobRow.id.in_(among(session, job_ids)), _ended())))
            again = {"state": "planned", "cancel": False, "attempts": 0, "not_before": 0.0, "economy": 0}
            again["updated_at"] = stamp(self._database.clock(session))
            _changed(session, JobRow.id.in_(among(session, chosen)), values=again)
            count_needs(session, among(session, chosen))
            return len(chosen)

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

    # Reads

    def counts(self) -> Mapping[JobState, int]:
        """Return how many jobs there are in each state; states without a job are left out."""
        with self._database.reading() as session:
            rows = session.execute(select(JobRow.state, func.count()).group_by(JobRow.state))
            return {cast(JobState, state): number for state, number in rows}

    def find(self, name: str) -> list[JobRecord]:
        """Return the jobs that a name stands for, in the plan's order; none for a name that stands for nothing.

        The name is the beginning of a job's id, else a job's label or title (`press tiny gptq-w4a16-g128`), a variant's id or label, or
        a base model's `owner/name`.
        """
        with self._database.reading() as session:
            jobs = select(JobRow).order_by(JobRow.position, JobRow.number)
            rows = list(session.scalars(jobs.where(JobRow.id.startswith(name, autoescape=True)))) if name else []
            if rows:
                return [records.job(row) for row in rows]
            of_variant = or_(Variant.id == name, Variant.label == name)
            named = jobs.join(Model).outerjoin(Variant, Variant.id == JobRow.variant_id).where(or_(of_variant, Model.repo_id == name))
            if rows := list(session.scalars(named)):
                return [records.job(row) for row in rows]
            kind, _, rest = name.partition(" ")
            base = rest.partition(" ")[0]
            of_base = jobs.join(Model).where(JobRow.kind == kind, Model.repo_id.endswith(f"/{base}", autoescape=True))
            found = records.jobs(session, of_base)[0] if base else []
            return [record for record in found if name in (record.job.label, record.job.title)]

    def attempts(self, *, since: float = 0.0) -> list[Attempt]:
        """Return all attempts that began at or after `since` (epoch seconds), oldest first."""
        with self._database.reading() as session:
            return _attempts(session, AttemptRow.began >= since)

    def attempts_of(self, job_id: str) -> list[Attempt]:
        """Return all attempts at one job, oldest first."""
        with self._database.reading() as session:
            return _attempts(session, AttemptRow.job_id == job_id)


def take(session: Session, row: AttemptedRow, owner: str, clock: float, lease_s: float) -> Claim:
    """Mark a row as running by `owner` for so many seconds, and return the claim; raise `BadDocument` when it cannot be read."""
    where = f"the database's job {row.id}"
    job = from_json(Job, row.document, where=where)
    expected = from_json(Expectation, row.expected, where=where) if row.expected else None
    if job.id != row.id:
        raise BadDocument(f"{where} is now the job {job.id}: another version of this program planned it", hint="make a new plan")
    attempt = row.attempts + 1
    lease = {"owner": owner, "began": clock, "lease_until": clock + lease_s}
    when = stamp(clock)
    settle(session, row.id, state="running", started_at=when, updated_at=when, attempts=attempt, cancel=False, **lease, **NO_FAILURE)
    return Claim(job=job, attempt=attempt, economy=row.economy, expected=expected)


def release(
    session: Session, row: AttemptedRow, outcome: Outcome, clock: float, *, spent: Spent = NOTHING_SPENT, why: Failure | None = None
) -> None:
    """Put a running row back to planned: the try does not count as one, but is kept among the attempts."""
    note(session, row, outcome, clock, spent=spent, failure=why)
    _to_planned(session, row, clock)


def _to_planned(session: Session, row: AttemptedRow, clock: float) -> None:
    state = "cancelled" if row.cancel else "planned"
    settle(session, row.id, state=state, updated_at=stamp(clock), started_at=None, attempts=max(row.attempts - 1, 0), **NO_OWNER)


def settle(session: Session, job_id: str, **values: object) -> None:
    """Change a job's row."""
    session.connection().execute(_SETTLE, {"key": job_id, **values})


def note(
    session: Session,
    row: AttemptedRow,
    outcome: Outcome,
    clock: float,
    *,
    seconds: float | None = None,
    failure: Failure | None = None,
    result: JobResult | None = None,
    spent: Spent = NOTHING_SPENT,
) -> None:
    """Write down how an attempt ended; where nobody timed it, it lasted from its claim to now, or to its lease's end if that was before."""
    if seconds is None:
        seconds = max(0.0, min(clock, row.lease_until or clock) - (row.began or clock))
    attempt = {
        "job_id": row.id,
        "number": max(row.attempts, 1),
        "owner": row.owner or "",
        "began": row.began if row.began is not None else clock - seconds,
        "seconds": seconds,
        "outcome": outcome,
        "category": failure.category if failure and not row.cancel else None,
        "reason": failure.reason if failure else None,
        "hardware": result.environment.hardware if result else "",
        "peak_memory_bytes": result.peak_memory_bytes if result else 0,
        "gpus": spent.gpus,
        "cost": spent.cost,
        "expected": row.expected,
    }
    session.connection().execute(_ADD_ATTEMPT, attempt)


def _ready(kinds: Collection[JobKind]) -> tuple[ColumnElement[bool], ...]:
    """Planned jobs whose needs are done; equality, so that an index gives them in the plan's order."""
    return (JobRow.state == "planned", JobRow.waits_for == 0, JobRow.kind.in_(kinds))


def _due(clock: float) -> ColumnElement[bool]:
    """Those not put off. One that was put off later than now was so by a clock that has been set back since: it is due."""
    return or_(JobRow.not_before <= clock, JobRow.updated_at > stamp(clock))


def _ended() -> ColumnElement[bool]:
    return JobRow.state.in_(("failed", "cancelled"))


def _first(session: Session, ready: Select[*tuple[Any, ...]], wanted: dict[str, Any], prefer: ModelRef | None) -> AttemptedRow | None:
    run = session.connection().execute
    if prefer is not None:
        of_base = ready.where(_OF_BASE)
        if row := run(of_base, {**wanted, "repo_id": prefer.repo_id, "sha": prefer.sha}).first():
            return cast(AttemptedRow, row)
    return cast("AttemptedRow | None", run(ready, wanted).first())


def held(session: Session, job: Job, owner: str) -> AttemptedRow | None:
    """Return the row of a job that runs for this owner; None when it is not, or no longer, its own."""
    return cast("AttemptedRow | None", session.connection().execute(_HELD, {"key": job.id, "by": owner}).first())


def _changed(session: Session, *conditions: ColumnElement[bool], values: Mapping[str, object]) -> int:
    result = session.execute(update(JobRow).where(*conditions).values(**values), execution_options={"synchronize_session": False})
    return int(result.rowcount)  # type: ignore[attr-defined]


def _count(session: Session, *conditions: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).select_from(JobRow).where(*conditions)) or 0


def _lost(row: JobRow, clock: float) -> bool:
    alive = owners.lives(row.owner) if row.owner else False
    return not alive if alive is not None else (row.lease_until or 0.0) < clock


def _attempts(session: Session, which: ColumnElement[bool]) -> list[Attempt]:
    query = select(AttemptRow, JobRow.document).join(JobRow, JobRow.id == AttemptRow.job_id).where(which)
    return [_attempt(row, document) for row, document in session.execute(query.order_by(AttemptRow.began, AttemptRow.id))]


def _attempt(row: AttemptRow, document: str) -> Attempt:
    return Attempt(
        job=readable(Job, document),
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
        expected=readable(Expectation, row.expected),
    )


# Made once: to make a statement takes longer than to run it.
_JOBS = plain(JobRow)
_COLUMNS = tuple(_JOBS.c[name] for name in AttemptedRow.__annotations__)
_READY = (
    select(*_COLUMNS)
    .where(_JOBS.c.state == "planned", _JOBS.c.waits_for == 0, _JOBS.c.kind.in_(bindparam("kinds", expanding=True)))
    .where(or_(_JOBS.c.not_before <= bindparam("clock"), _JOBS.c.updated_at > bindparam("stamp")))
    .where(~select(ControlRow.name).where(ControlRow.name == PAUSED).exists())
    .order_by(_JOBS.c.position, _JOBS.c.number)
    .limit(1)
    .with_for_update(skip_locked=True, of=_JOBS)
)
_OF_BASE = _JOBS.c.model_id == (
    select(Model.id).where(Model.repo_id == bindparam("repo_id"), Model.sha == bindparam("sha")).scalar_subquery()
)
_HELD = (
    select(*_COLUMNS).where(_JOBS.c.id == bindparam("key"), _JOBS.c.state == "running", _JOBS.c.owner == bindparam("by")).with_for_update()
)
_SETTLE = update(_JOBS).where(_JOBS.c.id == bindparam("key"))
_ADD_ATTEMPT = insert(plain(AttemptRow))
