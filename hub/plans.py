"""Makes a plan the present one, in few statements however many jobs it has; inside the store's transaction."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, tuple_, update
from sqlalchemy.orm import Session

from hub.codec import to_json
from hub.database import among
from hub.domain import Job
from hub.errors import UsageError
from hub.rows import count_needs, model_row, protocol_row_id, refuse, stamp, variant_label
from hub.scheduling import Plan
from hub.tables import AttemptRow, JobRow, NeedRow, RefusalRow, Variant, plain


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the database says of a job that is not done."""

    state: str
    cancel: bool
    attempts: int
    present: tuple[int, str, str | None]  # its place, document and expectation


def record_plan(session: Session, plan: Plan, clock: float) -> None:
    """Make the plan the present one (see `Store.record_plan`); raise `UsageError`, and change nothing, for a need that is no known job."""
    jobs = {job.id: job for job in plan.jobs}
    known = _known(session)
    done = set(session.scalars(select(JobRow.id).where(JobRow.state == "done")))
    needs = {(job_id, need) for job_id in jobs for need in plan.needs.get(job_id, ())}
    for job_id, need in needs:
        if not (need in jobs or need in known or need in done):
            raise UsageError(f"the plan's job {job_id} needs {need}, which is neither planned nor recorded", hint="plan both")
    session.execute(delete(RefusalRow).where(RefusalRow.recipe != ""))
    for refusal in plan.refusals:
        refuse(session, refusal)
    _leave_out(session, {job_id: row for job_id, row in known.items() if row.state == "planned" and job_id not in jobs}, clock)
    _write_jobs(session, plan, jobs, known, done, clock)
    _write_needs(session, jobs, needs)
    count_needs(session, select(JobRow.id).where(JobRow.state != "done"))
    used = select(JobRow.variant_id).where(JobRow.variant_id.is_not(None))
    session.execute(delete(Variant).where(Variant.id.not_in(used)))


def forget_jobs(session: Session, variant_id: str, clock: float) -> None:
    """Cancel the jobs of a variant until a plan names them again, and let those that need them wait; running ones are left alone."""
    own = (JobRow.variant_id == variant_id, JobRow.state != "running")
    lost = {"state": "cancelled", "attempts": 0, "environment_id": None, "facts": None, "updated_at": stamp(clock)}
    session.execute(update(JobRow).where(*own).values(**lost))
    needed = select(JobRow.id).where(JobRow.variant_id == variant_id)
    count_needs(session, select(NeedRow.job_id).where(NeedRow.needs.in_(needed)))


def _known(session: Session) -> dict[str, _Known]:
    columns = (JobRow.id, JobRow.state, JobRow.cancel, JobRow.attempts, JobRow.position, JobRow.document, JobRow.expected)
    rows = session.execute(select(*columns).where(JobRow.state != "done"))
    return {
        job_id: _Known(state=state, cancel=cancel, attempts=attempts, present=(position, document, expected))
        for job_id, state, cancel, attempts, position, document, expected in rows
    }


def _leave_out(session: Session, dropped: Mapping[str, _Known], clock: float) -> None:
    """Remove planned jobs that a plan leaves out. What a job took stays known: one that was tried, or that another needs, is cancelled."""
    tried = {job_id for job_id, row in dropped.items() if row.attempts}
    tried |= set(session.scalars(select(AttemptRow.job_id).where(AttemptRow.job_id.in_(among(session, dropped)))))
    pairs = session.execute(select(NeedRow.job_id, NeedRow.needs).where(NeedRow.needs.in_(among(session, dropped)))).all()
    gone = set(dropped) - tried
    while needed := {need for job_id, need in pairs if need in gone and job_id not in gone}:
        gone -= needed
    session.execute(delete(NeedRow).where(NeedRow.job_id.in_(among(session, gone))))
    session.execute(delete(JobRow).where(JobRow.id.in_(among(session, gone))))
    kept = JobRow.id.in_(among(session, set(dropped) - gone))
    session.execute(update(JobRow).where(kept).values(state="cancelled", updated_at=stamp(clock)))


def _write_jobs(
    session: Session, plan: Plan, jobs: Mapping[str, Job], known: Mapping[str, _Known], done: Collection[str], clock: float
) -> None:
    """Add the new jobs, bring the known ones up to date, and plan again those that failed or were left out by an earlier plan."""
    when = stamp(clock)
    new: list[dict[str, Any]] = []
    moved: list[dict[str, Any]] = []
    _write_variants(session, jobs.values())
    for position, (job_id, job) in enumerate(jobs.items(), start=1):
        present = (position, to_json(job), to_json(plan.expected[job_id]) if job_id in plan.expected else None)
        row = known.get(job_id)
        if row is None and job_id not in done:
            about = {"model_id": model_row(session, job.base).id, "variant_id": job.variant_id}
            about["protocol_id"] = protocol_row_id(session, job.protocol.name, job.protocol) if job.protocol else None
            new.append({"id": job_id, "kind": job.kind, "state": "planned", "updated_at": when, **about, **_columns(present)})
        elif row is None or row.present != present:
            moved.append({"key": job_id, **_columns(present)})
    if new:
        session.connection().execute(insert(plain(JobRow)), new)
    if moved:
        table = plain(JobRow)
        changed: dict[str, Any] = {name: bindparam(name) for name in ("position", "document", "expected")}
        session.connection().execute(update(table).where(table.c.id == bindparam("key")).values(changed), moved)
    again = {
        job_id for job_id in jobs if (row := known.get(job_id)) and (row.state == "failed" or (row.state == "cancelled" and not row.cancel))
    }
    session.execute(update(JobRow).where(JobRow.id.in_(among(session, again))).values(state="planned", not_before=0.0, updated_at=when))


def _write_variants(session: Session, jobs: Iterable[Job]) -> None:
    """Add the variants of jobs that are new, and bring the words of the others up to date."""
    table = plain(Variant)
    rows = session.execute(select(table.c.id, table.c.label, table.c.recipe_name, table.c.recipe))
    known = {key: (name, recipe) for key, _, name, recipe in rows}
    labels = {label: key for key, label in session.execute(select(table.c.id, table.c.label))}
    documents: dict[int, str] = {}  # by the identity of the recipe: a plan names the same few again and again
    new: dict[str, dict[str, Any]] = {}
    changed: dict[str, dict[str, Any]] = {}
    for job in jobs:
        recipe, key = job.recipe, job.variant_id
        if recipe is None or key is None:
            continue
        document = documents.get(id(recipe)) or documents.setdefault(id(recipe), to_json(recipe))
        name, written = known.get(key, ("", ""))
        if written == document:
            continue
        known[key] = (recipe.name, document)
        words = {"recipe_name": recipe.name, "recipe": document}
        if recipe.name != name:
            words["label"] = variant_label(job.base, recipe, key, taken=lambda label, key=key: labels.get(label, key) != key)  # type: ignore[misc]
            labels[words["label"]] = key
        if name:
            changed[key] = {"key": key, **words}
        else:
            about = {"method": recipe.method, "scheme": recipe.scheme, "format": recipe.format}
            new[key] = {"id": key, "model_id": model_row(session, job.base).id, **about, **words}
    if new:
        session.connection().execute(insert(table), list(new.values()))
    for words in changed.values():
        session.connection().execute(update(table).where(table.c.id == bindparam("key")), words)


def _columns(present: tuple[int, str, str | None]) -> dict[str, Any]:
    position, document, expected = present
    return {"position": position, "document": document, "expected": expected}


def _write_needs(session: Session, jobs: Collection[str], needs: Iterable[tuple[str, str]]) -> None:
    """Make these (job, need) the needs of these jobs; those of other jobs stay."""
    wanted = set(needs)
    rows = session.execute(select(NeedRow.job_id, NeedRow.needs))
    present = {(job_id, need) for job_id, need in rows if job_id in jobs}
    for pair in present - wanted:
        session.execute(delete(NeedRow).where(tuple_(NeedRow.job_id, NeedRow.needs) == pair))
    if missing := sorted(wanted - present):
        session.connection().execute(insert(plain(NeedRow)), [{"job_id": job_id, "needs": need} for job_id, need in missing])
