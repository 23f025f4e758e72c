"""Reads what people look at while the work goes on: counts and lists of jobs at one moment, without the documents of the many.

It only reads, so it waits for no writer and no writer for it. Times are compared by the database's own clock.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, literal_column, or_, select
from sqlalchemy.orm import Session, aliased

from hub.codec import from_json, readable
from hub.database import Database
from hub.domain import Job, ModelRef
from hub.history import JobState
from hub.overview import ANY, Blocked, JobDetail, JobLine, MadeArtifact, Overview, Try, Used, Wanted, Wish
from hub.queue import PAUSED
from hub.release_tables import ReleaseRow
from hub.rows import stamp
from hub.scheduling import Expectation
from hub.tables import (
    ArtifactRow,
    AttemptRow,
    ControlRow,
    EnvironmentRow,
    HubWriteRow,
    JobRow,
    Model,
    NeedRow,
    ProtocolRow,
    RefusalRow,
    Variant,
)

MOST_NEIGHBOURS = 100
"""Of one job's needs, and of the jobs that wait for it, no more are read."""


class Reader:
    """Looks at a database's jobs; safe to use from several threads and beside dispatchers at work."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def overview(self, *, most: int = 20) -> Overview:
        """Return all at a glance; of what waits and of what blocks others, the first `most`."""
        with self._database.reading() as session:
            clock = self._database.clock(session)
            later = (JobRow.state == "planned", JobRow.not_before > clock, JobRow.updated_at <= stamp(clock))
            pause = session.get(ControlRow, PAUSED)
            return Overview(
                at=clock,
                states=_counted(session, select(JobRow.state, func.count()).group_by(JobRow.state)),
                failures=_counted(session, _failures()),
                running=_lines(session, _order(_select().where(JobRow.state == "running"), JobRow.began), clock),
                waiting=_lines(session, _order(_select().where(*later), JobRow.not_before).limit(most), clock),
                waiting_count=session.scalar(select(func.count()).select_from(JobRow).where(*later)) or 0,
                blocked=_blocked(session, clock, most),
                paused=pause.value if pause else None,
                paused_at=pause.at if pause else None,
                releases=session.scalar(select(func.count()).select_from(ReleaseRow)) or 0,
                verified=session.scalar(select(func.count()).select_from(ReleaseRow).where(ReleaseRow.verified_at.is_not(None))) or 0,
                refused=session.scalar(select(func.count()).select_from(RefusalRow)) or 0,
            )

    def count(self, wish: Wish = ANY) -> int:
        """Return how many jobs fit."""
        with self._database.reading() as session:
            query = select(func.count()).select_from(JobRow).join(Model, Model.id == JobRow.model_id)
            return session.scalar(query.outerjoin(Variant, Variant.id == JobRow.variant_id).where(*_conditions(wish))) or 0

    def lines(self, wish: Wish = ANY, *, limit: int | None = None, states: Collection[JobState] = ()) -> tuple[JobLine, ...]:
        """Return jobs that fit: what runs, then failed ones, planned ones in the plan's order, cancelled and done ones, newest first."""
        urgency = case({"running": 0, "failed": 1, "planned": 2, "cancelled": 3}, value=JobRow.state, else_=4)
        place = case((JobRow.state == "planned", JobRow.position), else_=0)
        with self._database.reading() as session:
            query = _select().where(*_conditions(wish), *([JobRow.state.in_(states)] if states else []))
            query = query.order_by(urgency, place, JobRow.updated_at.desc(), JobRow.number)
            return _lines(session, query.limit(limit), self._database.clock(session))

    def wanted(self) -> Wanted:
        """Return what planned and running jobs need."""
        with self._database.reading() as session:
            query = select(JobRow.id, JobRow.variant_id, Model.repo_id, Model.sha).join(Model, Model.id == JobRow.model_id)
            rows = session.execute(query.where(JobRow.state.in_(("planned", "running")))).all()
            return Wanted(
                jobs=frozenset(row.id for row in rows),
                variants=frozenset(row.variant_id for row in rows if row.variant_id),
                bases=frozenset(ModelRef(repo_id=row.repo_id, sha=row.sha) for row in rows),
            )

    def used(self, *, period_s: float, hub_period_s: float) -> Used:
        """Return what was used in the last `period_s` seconds, and what was put on the Hub in the last `hub_period_s`."""
        with self._database.reading() as session:
            clock = self._database.clock(session)
            seconds = AttemptRow.seconds
            unnoted = AttemptRow.outcome.in_(("interrupted", "lost")) & (AttemptRow.gpus == 0) & (AttemptRow.cost == 0)
            sums = (
                func.count(),
                func.sum(seconds),
                func.sum(seconds * AttemptRow.gpus),
                func.sum(AttemptRow.cost),
                func.sum(case((unnoted, seconds), else_=0.0)),
            )
            ended = AttemptRow.began + seconds > clock - period_s
            tried, *used = session.execute(select(*sums).where(ended)).one()
            running, began = session.execute(select(func.count(), func.sum(JobRow.began)).where(JobRow.state == "running")).one()
            job_s, gpu_s, money, unpriced_s = (float(one or 0) for one in used)
            running_s = running * clock - float(began or 0)
            writes = select(HubWriteRow.action, func.count()).where(HubWriteRow.at > clock - hub_period_s).group_by(HubWriteRow.action)
            sent = _counted(session, writes)
            stored = session.scalar(select(func.sum(ArtifactRow.bytes)).join(ReleaseRow, ReleaseRow.variant_id == ArtifactRow.variant_id))
            return Used(
                jobs=tried + running,
                job_hours=(job_s + running_s) / 3600,
                gpu_hours=gpu_s / 3600,
                money=money,
                unpriced_hours=(unpriced_s + running_s) / 3600,
                repos=sent.get("repo", 0),
                commits=sent.get("commit", 0),
                stored_bytes=int(stored or 0),
            )

    def ids(self, wish: Wish = ANY, *, states: Collection[JobState] = ()) -> list[str]:
        """Return the ids of all jobs that fit, in the order in which they were first planned."""
        with self._database.reading() as session:
            query = select(JobRow.id).join(Model, Model.id == JobRow.model_id).outerjoin(Variant, Variant.id == JobRow.variant_id)
            fitting = query.where(*_conditions(wish), *([JobRow.state.in_(states)] if states else []))
            return list(session.scalars(fitting.order_by(JobRow.number)))

    def detail(self, job_id: str) -> JobDetail | None:
        """Return everything about the job of this id; None where there is none."""
        with self._database.reading() as session:
            row = session.scalar(select(JobRow).where(JobRow.id == job_id))
            if row is None:
                return None
            clock = self._database.clock(session)
            (line,) = _lines(session, _select().where(JobRow.id == job_id), clock)
            needs = select(NeedRow.needs).where(NeedRow.job_id == job_id)
            wanted_by = select(NeedRow.job_id).where(NeedRow.needs == job_id)
            environment = session.get(EnvironmentRow, row.environment_id) if row.environment_id else None
            return JobDetail(
                line=line,
                job=from_json(Job, row.document, where=f"the database's job {row.id}"),
                position=row.position,
                hardware=environment.hardware if environment else None,
                peak_memory_bytes=row.peak_memory_bytes,
                stages=json.loads(row.stages or "{}"),
                notes=tuple(json.loads(row.notes or "[]")),
                log_tail=row.log_tail or "",
                tries=_tries(session, job_id),
                needs=_lines(session, _order(_select().where(JobRow.id.in_(needs)), JobRow.number).limit(MOST_NEIGHBOURS), clock),
                wanted_by=_lines(session, _order(_select().where(JobRow.id.in_(wanted_by)), JobRow.position).limit(MOST_NEIGHBOURS), clock),
                wanted_by_count=session.scalar(select(func.count()).select_from(NeedRow).where(NeedRow.needs == job_id)) or 0,
                artifact=_artifact(session, row),
                machine=json.loads(row.machine or "{}"),
            )


def _counted(session: Session, query: Select[*tuple[Any, ...]]) -> dict[str, int]:
    return {str(name or "bug"): count for name, count in session.execute(query)}


def _failures() -> Select[*tuple[Any, ...]]:
    """Count failures by class, the most frequent first."""
    return select(JobRow.category, func.count()).where(JobRow.state == "failed").group_by(JobRow.category).order_by(func.count().desc())


def _select() -> Select[*tuple[Any, ...]]:
    """Select the columns of a `JobLine`."""
    return (
        select(
            JobRow.id,
            JobRow.kind,
            Model.repo_id,
            Variant.recipe_name.label("recipe"),
            ProtocolRow.name.label("protocol"),
            JobRow.state,
            JobRow.attempts,
            JobRow.economy,
            JobRow.waits_for,
            JobRow.not_before,
            JobRow.cancel,
            JobRow.owner,
            JobRow.began,
            JobRow.updated_at,
            JobRow.seconds,
            JobRow.category,
            JobRow.error,
            JobRow.reason,
            JobRow.hint,
            JobRow.expected,
        )
        .join(Model, Model.id == JobRow.model_id)
        .outerjoin(Variant, Variant.id == JobRow.variant_id)
        .outerjoin(ProtocolRow, ProtocolRow.id == JobRow.protocol_id)
    )


def _order(query: Select[*tuple[Any, ...]], *columns: Any) -> Select[*tuple[Any, ...]]:
    return query.order_by(*columns, JobRow.number)


def _lines(session: Session, query: Select[*tuple[Any, ...]], clock: float) -> tuple[JobLine, ...]:
    return tuple(_line(dict(row._mapping), clock) for row in session.execute(query))


def _line(row: dict[str, Any], clock: float) -> JobLine:
    not_before, expected, began = row.pop("not_before"), row.pop("expected"), row.pop("began")
    ahead = row["state"] == "planned" and not_before > clock and row["updated_at"] <= stamp(clock)  # as the queue sees it
    return JobLine(
        **row,
        due=not_before if ahead else None,
        since=began if row["state"] == "running" else None,
        expected=readable(Expectation, expected),
    )


def _conditions(wish: Wish) -> list[ColumnElement[bool]]:
    found: list[ColumnElement[bool]] = []
    if wish.state is not None:
        found.append(JobRow.state == wish.state)
    if wish.category is not None:
        found.append(JobRow.category == wish.category)
    if wish.kind is not None:
        found.append(JobRow.kind == wish.kind)
    if wish.model is not None:
        found.append(or_(Model.repo_id == wish.model, Model.repo_id.endswith(f"/{wish.model}", autoescape=True)))
    if wish.recipe is not None:
        found.append(Variant.recipe_name == wish.recipe)
    return found


def _blocked(session: Session, clock: float, most: int) -> tuple[Blocked, ...]:
    """Return the jobs that failed or were cancelled and that planned ones wait for; those that hold up most first."""
    waiting = aliased(JobRow)
    held = (
        select(NeedRow.needs.label("root"), NeedRow.job_id.label("job"))
        .join(JobRow, JobRow.id == NeedRow.needs)
        .where(JobRow.state.in_(("failed", "cancelled")))
        .cte("held", recursive=True)
    )
    held = held.union(select(held.c.root, NeedRow.job_id).join(NeedRow, NeedRow.needs == held.c.job))
    count = func.count().label("held_up")
    query = (
        select(held.c.root, count)
        .join(waiting, waiting.id == held.c.job)
        .where(waiting.state == "planned")
        .group_by(held.c.root)
        .order_by(literal_column("held_up").desc())
        .limit(most)
    )
    counts: dict[str, int] = {row.root: row.held_up for row in session.execute(query)}
    lines = _lines(session, _select().where(JobRow.id.in_(counts)), clock)
    return tuple(Blocked(job=line, jobs=counts[line.id]) for line in sorted(lines, key=lambda line: -counts[line.id]))


def _tries(session: Session, job_id: str) -> tuple[Try, ...]:
    names = ("number", "began", "seconds", "owner", "outcome", "category", "hardware", "peak_memory_bytes")
    rows = session.scalars(select(AttemptRow).filter_by(job_id=job_id).order_by(AttemptRow.began, AttemptRow.id))
    return tuple(Try(**{name: getattr(row, name) for name in names}, reason=row.reason or "") for row in rows)


def _artifact(session: Session, row: JobRow) -> MadeArtifact | None:
    made = session.get(ArtifactRow, row.variant_id) if row.variant_id and row.kind == "press" else None
    if made is None:
        return None
    release = session.get(ReleaseRow, made.variant_id)
    return MadeArtifact(
        variant_id=made.variant_id,
        digest=made.digest,
        bytes=made.bytes,
        made_at=made.made_at,
        release=f"{release.repo_id}@{release.sha}" if release else None,
    )
