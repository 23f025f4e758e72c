"""Variants whose files are gone from the work folder: which are pressed again, and what is not measured of the others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hub.domain import Refusal
from hub.scheduling import Plan

if TYPE_CHECKING:
    from hub.history import VariantRecord
    from modelpress.session import Session


def forget(session: Session) -> frozenset[str]:
    """Let variants be pressed again whose files are gone or cut before they were released, so that they cannot be published any more.

    Those that the gate refused are not: they would be refused again. Return these, and the released ones, whose files are gone.
    """
    from leaderboard.gate import artifact_verdict

    gone = set()
    for record in session.store.variants():
        if record.artifact is None or whole(session, record):
            continue
        verdict = artifact_verdict(record)
        if record.release is not None or (verdict is not None and not verdict.passed):
            gone.add(record.variant_id)
            continue
        session.report.say(f"the files of {record.base.name} {record.recipe.name} are gone or cut: it is pressed again")
        session.store.forget(record.variant_id)
    return frozenset(gone)


def whole(session: Session, record: VariantRecord) -> bool:
    """Whether all files of a variant's artifact are there, with their sizes."""
    folder, files = session.artifacts / record.variant_id, record.artifact.files if record.artifact else ()
    return all((folder / file.path).is_file() and (folder / file.path).stat().st_size == file.size for file in files)


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
