"""Variants whose files are gone from the work folder: which are pressed again, and what is not measured of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hub import owners
from hub.domain import Job, Refusal
from hub.scheduling import Plan

if TYPE_CHECKING:
    from hub.history import VariantRecord
    from modelpress.session import Session
    from runners.farm.artifacts import Depot


def forget(session: Session) -> frozenset[str]:
    """Let variants be pressed again whose files are gone or cut before they were released, so that they cannot be published any more.

    Those that the gate refused are not: they would be refused again. Nor are those whose files this machine cannot miss, as they lie in
    the depot or were made on another machine that shares the database. Return the refused and the released ones whose files are gone.
    """
    from leaderboard.gate import artifact_verdict

    gone = set()
    far: dict[str, int] = {}
    for record in session.store.variants():
        if record.artifact is None or whole(session, record) or in_depot(session, record):
            continue
        verdict = artifact_verdict(record)
        if record.release is not None or (verdict is not None and not verdict.passed):
            gone.add(record.variant_id)
        elif host := other_host(session, record):
            far[host] = far.get(host, 0) + 1
        else:
            session.report.say(f"the files of {record.base.name} {record.recipe.name} are gone or cut: it is pressed again")
            session.store.forget(record.variant_id)
    for host, count in far.items():
        session.report.say(f"the files of {count} variants are not here: they were made on {host}, and only there can they go on")
    return frozenset(gone)


def whole(session: Session, record: VariantRecord) -> bool:
    """Whether a variant's artifact is there: its manifest, without which it does not exist, and all its files with their sizes."""
    from runners.checkpoint import MANIFEST

    folder, files = session.artifacts / record.variant_id, record.artifact.files if record.artifact else ()
    return (folder / MANIFEST).is_file() and all(
        (folder / file.path).is_file() and (folder / file.path).stat().st_size == file.size for file in files
    )


def in_depot(session: Session, record: VariantRecord) -> bool:
    """Whether a variant's artifact lies at `farm.artifacts`, where a cluster's machines leave it; raise where that cannot be asked."""
    found = depot(session)
    return found is not None and record.artifact is not None and found.holds(record.artifact)


def bring(session: Session, record: VariantRecord) -> None:
    """Fetch an artifact that lies in the depot alone to this work folder, where it is published from; raise where that cannot be done."""
    if record.artifact is None or whole(session, record):
        return
    found = depot(session)
    if found is not None and found.holds(record.artifact):
        found.pull(record.variant_id, session.artifacts / record.variant_id, digest=record.artifact.digest)


def depot(session: Session) -> Depot | None:
    """Return the depot of the settings' cluster; None where there is none."""
    farm = session.settings.farm
    if farm.kind != "ray" or not farm.artifacts:
        return None
    from runners.farm.artifacts import Depot

    return Depot(farm.artifacts)


def other_host(session: Session, record: VariantRecord) -> str:
    """Return on which other machine the variant was made last; empty where it was this one, or the database is of this folder alone."""
    file = session.store.file
    if file is not None and file.resolve() == session.database:
        return ""
    made = session.store.reader.detail(Job(kind="press", base=record.base, recipe=record.recipe).id)
    maker = next((one.owner for one in reversed(made.tries) if one.outcome == "done"), "") if made else ""
    host = owners.host_of(maker)
    return "" if host == owners.host() else host


def without(plan: Plan, gone: frozenset[str]) -> Plan:
    """Leave out of a plan what would measure variants whose files are gone, with the reason."""
    left_out = {job.id: job for job in plan.jobs if job.kind == "measure" and job.variant_id in gone}
    told = {
        Refusal(
            repo_id=job.base.repo_id,
            sha=job.base.sha,
            code="pruned",
            reason=f"{job.recipe.name} is done and its files are gone from the work folder, so no further protocol is measured on it",
            recipe=job.recipe.name,
        )
        for job in left_out.values()
        if job.recipe
    }
    refusals = (*plan.refusals, *sorted(told, key=lambda refusal: (refusal.repo_id, refusal.recipe or "")))
    return replace(plan, jobs=tuple(job for job in plan.jobs if job.id not in left_out), refusals=refusals)
