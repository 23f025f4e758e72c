"""Finds or makes the rows that a write needs, inside the store's transaction."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol as Shape

from sqlalchemy import Select, Update, bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Session

from hub.codec import content_id, to_json
from hub.domain import Artifact, Candidate, Environment, Job, JobResult, ModelRef, Recipe, Refusal, variant_id
from hub.errors import BadDocument
from hub.protocol import Protocol
from hub.tables import (
    ArtifactRow,
    EnvironmentRow,
    FileRow,
    JobRow,
    LayerErrorRow,
    MeasurementRow,
    Model,
    NeedRow,
    Popularity,
    ProtocolRow,
    RefusalRow,
    ScoresRow,
    Variant,
    plain,
)


class SettledRow(Shape):
    """What the rows of a result need of the job's: an object of it, or some of its columns."""

    model_id: int
    variant_id: str | None
    protocol_id: str | None


def now() -> str:
    """Return the present as an ISO-8601 string in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def stamp(clock: float) -> str:
    """Return a time in epoch seconds as an ISO-8601 string in UTC."""
    return datetime.fromtimestamp(clock, UTC).isoformat(timespec="seconds")


def model_row(session: Session, ref: ModelRef) -> Model:
    """Return a base model's row, made when it is new."""
    known: dict[ModelRef, Model] = session.info.setdefault("models", {})  # a plan names the same few models again and again
    row = known.get(ref) or session.scalar(select(Model).filter_by(repo_id=ref.repo_id, sha=ref.sha))
    if row is None:
        row = Model(repo_id=ref.repo_id, sha=ref.sha)
        session.add(row)
        session.flush()
    known[ref] = row
    return row


def refuse(session: Session, refusal: Refusal) -> None:
    """Record a refusal; one that refuses a whole model replaces those of its other commits."""
    recipe = refusal.recipe or ""
    if not recipe:
        session.execute(
            delete(RefusalRow).where(RefusalRow.repo_id == refusal.repo_id, RefusalRow.recipe == "", RefusalRow.sha != refusal.sha)
        )
    row = session.scalar(select(RefusalRow).filter_by(repo_id=refusal.repo_id, sha=refusal.sha, recipe=recipe))
    row = row or RefusalRow(repo_id=refusal.repo_id, sha=refusal.sha, recipe=recipe)
    row.code, row.reason = refusal.code, refusal.reason
    session.add(row)


def variant_row_id(session: Session, base: ModelRef, recipe: Recipe, model: Model) -> str:
    """Return the id of a variant whose row is there and holds the recipe's present words."""
    key = variant_id(base, recipe)
    written: dict[str, Recipe] = session.info.setdefault("variants", {})
    if written.get(key) == recipe:
        return key
    row = session.get(Variant, key)
    if row is None:
        row = Variant(id=key, model_id=model.id, method=recipe.method, scheme=recipe.scheme, format=recipe.format)
    if row.recipe_name != recipe.name:
        others = select(Variant.id).where(Variant.id != key)
        row.label = variant_label(base, recipe, key, taken=lambda label: session.scalar(others.where(Variant.label == label)) is not None)
        row.recipe_name = recipe.name
    row.recipe = to_json(recipe)
    session.add(row)
    session.flush()
    written[key] = recipe
    return key


def variant_label(base: ModelRef, recipe: Recipe, key: str, *, taken: Callable[[str], bool]) -> str:
    """Return a variant's name for people; where another variant has it, with the beginning of the id."""
    label = f"{base.name}-{recipe.name}"
    return f"{label}-{key[:8]}" if taken(label) else label


def protocol_row_id(session: Session, name: str, protocol: Protocol | None) -> str:
    """Return the id of a protocol whose row is there: that of the job, or, for a number that names another, one by name alone."""
    spelled = protocol if protocol and protocol.name == name else None
    key = content_id(spelled or name)
    known: set[str] = session.info.setdefault("protocols", set())
    if key not in known and session.connection().execute(_KNOWN_PROTOCOL, {"id": key}).first() is None:
        session.add(ProtocolRow(id=key, name=name, document=to_json(spelled) if spelled else None))
        session.flush()
    known.add(key)
    return key


def environment_row_id(session: Session, environment: Environment) -> str:
    """Return the id of an environment whose row is there."""
    if session.connection().execute(_KNOWN_ENVIRONMENT, {"id": environment.id}).first() is None:
        row = {"id": environment.id, "hardware": environment.hardware, "device": environment.device, "document": to_json(environment)}
        session.connection().execute(_ADD[EnvironmentRow], row)
    return environment.id


def job_row(session: Session, job: Job) -> JobRow:
    """Return a job's row, made as planned when it is new."""
    model = model_row(session, job.base)
    variant = variant_row_id(session, job.base, job.recipe, model) if job.recipe else None
    row = session.scalar(select(JobRow).filter_by(id=job.id).with_for_update())
    if row is None:
        protocol = protocol_row_id(session, job.protocol.name, job.protocol) if job.protocol else None
        row = JobRow(id=job.id, kind=job.kind, model_id=model.id, variant_id=variant, protocol_id=protocol, state="planned", attempts=0)
        row.updated_at = now()
    row.document = to_json(job)
    session.add(row)
    return row


def snapshot(session: Session, candidate: Candidate, at: str, *, rank: int, score: float | None, model_id: int | None) -> None:
    """Record how popular a listed model was at a time; `model_id` None: policy refused it."""
    repo_id = candidate.ref.repo_id
    row = session.scalar(select(Popularity).filter_by(repo_id=repo_id, taken_at=at)) or Popularity(repo_id=repo_id, taken_at=at)
    row.model_id, row.rank, row.score = model_id, rank, score
    row.downloads, row.likes, row.trending_score = candidate.downloads, candidate.likes, candidate.trending_score
    session.add(row)


def count_needs(session: Session, jobs: Select[str]) -> None:
    """Count anew how many needs of these jobs are not done. Counted, not counted off, so that no order of events makes it wrong."""
    session.flush()
    session.connection().execute(_count_needs(jobs))


def unblock(session: Session, job_id: str) -> None:
    """Count anew for those that wait for a job."""
    session.connection().execute(_UNBLOCK, {"done": job_id})


def add_artifact(session: Session, job: Job, artifact: Artifact) -> None:
    """Add a variant's artifact; the same one again changes nothing, another one raises `BadDocument`."""
    known = session.get(ArtifactRow, artifact.variant_id)
    if known is not None:
        if known.digest != artifact.digest:
            raise BadDocument(
                f"variant {artifact.variant_id} has an artifact {known.digest} already, and now another one, {artifact.digest}, was made",
                hint="what was measured and released is the first one: keep it, or begin a new work folder",
            )
        return
    run = session.connection().execute
    row = {"variant_id": artifact.variant_id, "job_id": job.id, "digest": artifact.digest, "parameters": artifact.parameters}
    row |= {
        "bytes": artifact.bytes,
        "made_at": artifact.made_at,
        "libraries": to_json(artifact.libraries),
        "steps": to_json(artifact.steps),
    }
    run(_ADD[ArtifactRow], row)
    files = [
        {"variant_id": artifact.variant_id, "position": i, "path": file.path, "size": file.size, "sha256": file.sha256}
        for i, file in enumerate(artifact.files)
    ]
    if files:
        run(_ADD[FileRow], files)


def add_measurements(session: Session, job: Job, row: SettledRow, result: JobResult) -> None:
    """Add the numbers of a result whose job and environment are there."""
    protocols = {name: protocol_row_id(session, name, job.protocol) for name in {number.protocol for number in result.measurements}}
    about = {"job_id": job.id, "model_id": row.model_id, "variant_id": row.variant_id, "environment_id": result.environment.id}
    numbers = [
        {
            **about,
            "protocol_id": protocols[number.protocol],
            "metric": number.metric,
            "value": number.value,
            "unit": number.unit,
            "higher_is_better": number.higher_is_better,
            "ci_low": number.ci_low,
            "ci_high": number.ci_high,
            "ci_method": number.interval,
            "samples": number.samples,
            "engine": number.engine,
            "measured_at": number.measured_at,
            "conditions": to_json(number.conditions),
            "percentiles": to_json(number.percentiles),
            "basis": number.basis,
        }
        for number in result.measurements
    ]
    if numbers:
        session.connection().execute(_ADD[MeasurementRow], numbers)


def add_scores(session: Session, job: Job, row: SettledRow, result: JobResult) -> None:
    """Add the scores of a measuring job whose row is there."""
    about = {"job_id": job.id, "model_id": row.model_id, "variant_id": row.variant_id, "protocol_id": row.protocol_id}
    for scores in result.scores:
        found = {"source": scores.source, "samples": scores.samples, "fingerprint": scores.fingerprint}
        found |= {"tokenizer_sha256": scores.tokenizer_sha256, "document": to_json(scores)}
        session.connection().execute(_ADD[ScoresRow], {**about, **found})


def add_layer_errors(session: Session, job: Job, result: JobResult) -> None:
    """Add the layer errors of a variant's result whose job is there."""
    about = {"job_id": job.id, "variant_id": job.variant_id}
    found = [{**about, "layer": one.layer, "error": one.error, "tokens": one.tokens, "protocol": one.protocol} for one in result.layers]
    if found:
        session.connection().execute(_ADD[LayerErrorRow], found)


def _count_needs(jobs: Select[str]) -> Update:
    need = plain(JobRow).alias("need")
    open_needs = select(func.count()).select_from(plain(NeedRow)).join(need, need.c.id == NeedRow.needs)
    open_needs = open_needs.where(NeedRow.job_id == plain(JobRow).c.id, need.c.state != "done")
    return update(plain(JobRow)).where(plain(JobRow).c.id.in_(jobs)).values(waits_for=open_needs.scalar_subquery())


# Made once: what a job brings is many rows, and to make a statement takes longer than to run it.
_ADD = {row: insert(plain(row)) for row in (EnvironmentRow, ArtifactRow, FileRow, MeasurementRow, ScoresRow, LayerErrorRow)}
_KNOWN_ENVIRONMENT = select(plain(EnvironmentRow).c.id).where(plain(EnvironmentRow).c.id == bindparam("id"))
_KNOWN_PROTOCOL = select(plain(ProtocolRow).c.id).where(plain(ProtocolRow).c.id == bindparam("id"))
_UNBLOCK = _count_needs(select(NeedRow.job_id).where(NeedRow.needs == bindparam("done")))
