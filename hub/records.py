"""Builds the domain's records from rows of the results database; reads only."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement, Row, Select, func, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload

from hub.codec import from_json, readable
from hub.domain import (
    Artifact,
    ArtifactFile,
    Basis,
    Candidate,
    Environment,
    Failure,
    FailureClass,
    Job,
    LayerError,
    Measurement,
    ModelRef,
    Recipe,
    Refusal,
    Scores,
    StepRecord,
)
from hub.errors import BadDocument
from hub.history import BaseRecord, Check, JobRecord, JobState, Listing, MeasuredJob, Release, Stage, UnreadableJob, VariantRecord, Verdict
from hub.release_tables import ReleaseRow, VerdictRow
from hub.scheduling import Expectation
from hub.tables import (
    ArtifactRow,
    EnvironmentRow,
    JobRow,
    LayerErrorRow,
    MeasurementRow,
    Model,
    Popularity,
    ProtocolRow,
    RefusalRow,
    ScoresRow,
    Variant,
)

T = TypeVar("T")
Number = Row[Any]
"""A row of `measurements` with its protocol's name as `protocol`."""


def jobs(session: Session, which: Select[JobRow] | None = None) -> tuple[list[JobRecord], list[UnreadableJob]]:
    """Return these jobs, or all in the order in which they were first planned; those that cannot be read apart."""
    found: list[JobRecord] = []
    unreadable: list[UnreadableJob] = []
    for row in session.scalars(select(JobRow).order_by(JobRow.number) if which is None else which):
        try:
            found.append(job(row))
        except (BadDocument, ValueError) as error:
            unreadable.append(UnreadableJob(id=row.id, state=cast(JobState, row.state), why=str(error)))
    return found, unreadable


def listed(session: Session) -> list[tuple[int, ModelRef, int]]:
    """Return number, reference and rank of every listed base model, in the order of `bases`; reads no documents."""
    query = _listed().with_only_columns(Model.id, Model.repo_id, Model.sha, Popularity.rank)
    return [(number, ModelRef(repo_id=repo_id, sha=sha), rank) for number, repo_id, sha, rank in session.execute(query)]


def _listed() -> Select[Model, Popularity]:
    """Select models with their newest popularity: those of the latest listing first, each listing by rank."""
    last = select(Popularity.model_id, func.max(Popularity.taken_at).label("at")).where(Popularity.model_id.is_not(None))
    latest = last.group_by(Popularity.model_id).subquery()
    return (
        select(Model, Popularity)
        .join(latest, latest.c.model_id == Model.id)
        .join(Popularity, (Popularity.model_id == Model.id) & (Popularity.taken_at == latest.c.at))
        .order_by(Popularity.taken_at.desc(), Popularity.rank, Model.id)
    )


def bases(session: Session, *, current: bool = False, models: Collection[int] | None = None) -> list[BaseRecord]:
    """Return listed base models, those of the latest listing first, each listing by rank; of `models` (their numbers) alone, or of all.

    With `current` only the latest, less what was refused since: a discovery that accepts nothing makes no listing.
    """
    query = _listed()
    if current:
        refused = select(RefusalRow.repo_id).where(RefusalRow.recipe == "")
        newest = select(func.max(Popularity.taken_at)).where(Popularity.model_id.is_not(None)).scalar_subquery()
        query = query.where(Popularity.taken_at == newest, Model.repo_id.not_in(refused))
    of_bases: ColumnElement[bool] = MeasurementRow.variant_id.is_(None)
    if models is not None:
        query, of_bases = query.where(Model.id.in_(models)), of_bases & MeasurementRow.model_id.in_(models)
    measured = _grouped(_numbers(session, of_bases), "model_id")
    environments = _environments(session)
    found = []
    for model, popularity in session.execute(query):
        rows = measured[model.id]
        found.append(
            BaseRecord(
                candidate=from_json(Candidate, model.document or "", where=f"the database's entry of {model.repo_id}"),
                rank=popularity.rank,
                measurements=tuple(_measurement(row) for row in rows),
                environment=environments[rows[-1].environment_id] if rows else None,
                environments=_by_protocol(rows, environments),
            )
        )
    return found


def popularity(session: Session, since: str) -> dict[str, list[Listing]]:
    """Return by repository how popular each listed model was, from `since` (ISO-8601) on, oldest first."""
    found: defaultdict[str, list[Listing]] = defaultdict(list)
    row = Popularity
    columns = (row.repo_id, row.taken_at, row.downloads, row.likes, row.trending_score, row.rank, row.score)
    for repo_id, at, downloads, likes, trending, rank, score in session.execute(
        select(*columns).where(row.taken_at >= since).order_by(row.taken_at, row.id)
    ):
        found[repo_id].append(Listing(at=at, downloads=downloads, likes=likes, trending_score=trending, rank=rank, score=score))
    return dict(found)


def candidates(session: Session, repo_id: str | None) -> dict[str, tuple[Candidate, ...]]:
    """Return by repository what was last seen of each accepted commit, newest listing first."""
    latest = select(Popularity.model_id, func.max(Popularity.taken_at).label("at")).group_by(Popularity.model_id).subquery()
    query = select(Model).join(latest, latest.c.model_id == Model.id).order_by(latest.c.at.desc(), Model.id.desc())
    rows = session.scalars(query if repo_id is None else query.where(Model.repo_id == repo_id))
    groups = _grouped((row for row in rows if row.document), "repo_id")
    return {
        name: tuple(from_json(Candidate, row.document or "", where=f"the database's entry of {name}") for row in models)
        for name, models in groups.items()
    }


def variants(session: Session, only: str | None = None, *, models: Collection[int] | None = None) -> list[VariantRecord]:
    """Return all variants in the order in which they were first planned; only that with the id, or those of base models by number."""
    query = select(Variant).options(joinedload(Variant.model))
    ids: list[str] | None = None
    if only is not None or models is not None:
        query = query.where(Variant.id == only if only is not None else Variant.model_id.in_(models or ()))
        ids = list(session.scalars(query.with_only_columns(Variant.id)))
    parts = _parts(session, ids)
    planned = {variant: min(job.number for job in jobs) for variant, jobs in parts.jobs.items()}
    rows = sorted(session.scalars(query), key=lambda row: (planned.get(row.id, 0), row.id))
    return [_variant(row, parts) for row in rows]


def measured(session: Session, name: str) -> list[MeasuredJob]:
    """Return the done measuring jobs that a name stands for, newest first.

    The name is a job's id, a variant's id or label, or a base model's repository (with `@` and the beginning of a commit, if need be).
    """
    repo_id, _, sha = name.partition("@")
    of_base = JobRow.variant_id.is_(None) & (Model.repo_id == repo_id) & Model.sha.startswith(sha, autoescape=True)
    query = (
        select(JobRow)
        .join(Model, Model.id == JobRow.model_id)
        .outerjoin(Variant, Variant.id == JobRow.variant_id)
        .where(JobRow.kind == "measure", JobRow.state == "done")
        .where(or_(JobRow.id == name, Variant.id == name, Variant.label == name, of_base))
        .order_by(JobRow.started_at.desc(), JobRow.number.desc())
    )
    environments = _environments(session)
    return [_measured(session, row, environments) for row in session.scalars(query)]


def scores(session: Session, job_id: str) -> list[Scores]:
    """Return what a measuring job scored by window and by document, windows and tasks by name."""
    rows = session.scalars(select(ScoresRow).where(ScoresRow.job_id == job_id).order_by(ScoresRow.source))
    return [from_json(Scores, row.document, where=f"the database's scores of {job_id}") for row in rows]


def refusals(session: Session) -> list[Refusal]:
    """Return what is refused, models first."""
    rows = session.scalars(select(RefusalRow).order_by(RefusalRow.recipe != "", RefusalRow.id))
    return [Refusal(repo_id=r.repo_id, sha=r.sha, code=r.code, reason=r.reason, recipe=r.recipe or None) for r in rows]


def releases(session: Session) -> list[Release]:
    """Return all releases, oldest first."""
    return [release(row) for row in session.scalars(select(ReleaseRow).order_by(ReleaseRow.released_at, ReleaseRow.variant_id))]


def release(row: ReleaseRow) -> Release:
    """Return a row as a release."""
    return Release(
        variant_id=row.variant_id,
        repo_id=row.repo_id,
        sha=row.sha,
        artifact_digest=row.artifact_digest,
        url=row.url,
        released_at=row.released_at,
        verified_at=row.verified_at,
        card_sha256=row.card_sha256,
        retired_at=row.retired_at,
        retired_why=row.retired_why,
        new_version=row.new_version,
    )


def _grouped(rows: Iterable[T], column: str) -> defaultdict[Any, list[T]]:
    groups: defaultdict[Any, list[T]] = defaultdict(list)
    for row in rows:
        groups[getattr(row, column)].append(row)
    return groups


def _environments(session: Session) -> dict[str, Environment]:
    return {row.id: from_json(Environment, row.document, where="an environment") for row in session.scalars(select(EnvironmentRow))}


def _by_protocol(numbers: Iterable[Number], environments: Mapping[str, Environment]) -> dict[str, Environment]:
    """Return where the last of the numbers of each protocol was taken, by the protocol's name."""
    return {number.protocol: environments[number.environment_id] for number in numbers}


def job(row: JobRow) -> JobRecord:
    """Return a row as a record."""
    return JobRecord(
        job=from_json(Job, row.document, where=f"the database's job {row.id}"),
        state=cast(JobState, row.state),
        attempts=row.attempts,
        updated_at=row.updated_at,
        seconds=row.seconds,
        failure=_failure(row),
        stages=json.loads(row.stages) if row.stages else {},
        id=row.id,
        position=row.position,
        waits_for=row.waits_for,
        not_before=row.not_before,
        economy=row.economy,
        cancel=row.cancel,
        owner=row.owner,
        lease_until=row.lease_until,
        expected=readable(Expectation, row.expected),
    )


def _failure(row: JobRow | Row[Any]) -> Failure | None:
    if row.state != "failed":
        return None
    return Failure(
        job_id=row.id,
        error=row.error or "",
        reason=row.reason or "",
        hint=row.hint or "",
        log_tail=row.log_tail or "",
        seconds=row.seconds or 0.0,
        retryable=bool(row.retryable),
        category=cast(FailureClass, row.category or "bug"),
    )


def _numbers(session: Session, which: ColumnElement[bool]) -> list[Number]:
    """Return the chosen numbers, oldest first, as plain rows: there are far more of them than of anything else."""
    query = select(*(MeasurementRow.__table__.columns), ProtocolRow.name.label("protocol")).join(ProtocolRow).where(which)
    return list(session.execute(query.order_by(MeasurementRow.id)))


def _measurement(row: Number) -> Measurement:
    return Measurement(
        metric=row.metric,
        value=row.value,
        unit=row.unit,
        higher_is_better=row.higher_is_better,
        ci_low=row.ci_low,
        ci_high=row.ci_high,
        interval=row.ci_method,
        samples=row.samples,
        protocol=row.protocol,
        engine=row.engine,
        measured_at=row.measured_at,
        conditions=json.loads(row.conditions) if row.conditions != "{}" else {},
        percentiles=json.loads(row.percentiles) if row.percentiles != "{}" else {},
        basis=cast(Basis, row.basis),
    )


def _measured(session: Session, row: JobRow, environments: Mapping[str, Environment]) -> MeasuredJob:
    return MeasuredJob(
        id=row.id,
        job=from_json(Job, row.document, where=f"the database's job {row.id}"),
        started_at=row.started_at or "",
        environment=environments[row.environment_id or ""],
        measurements=tuple(_measurement(number) for number in _numbers(session, MeasurementRow.job_id == row.id)),
        notes=tuple(json.loads(row.notes or "[]")),
        state=json.loads(row.machine or "{}"),
    )


def _artifact(row: ArtifactRow, base: ModelRef, recipe: Recipe) -> Artifact:
    return Artifact(
        variant_id=row.variant_id,
        base=base,
        recipe=recipe,
        files=tuple(ArtifactFile(path=file.path, size=file.size, sha256=file.sha256) for file in row.files),
        parameters=row.parameters,
        made_at=row.made_at,
        libraries=json.loads(row.libraries),
        steps=tuple(from_json(StepRecord, json.dumps(step), where=f"a step of {row.variant_id}") for step in json.loads(row.steps or "[]")),
    )


def _layers(rows: Sequence[LayerErrorRow]) -> tuple[LayerError, ...]:
    """Return the layer errors that the last of all jobs found; another protocol's job finds the same ones again."""
    newest = rows[-1].job_id if rows else None
    return tuple(LayerError(layer=r.layer, error=r.error, tokens=r.tokens, protocol=r.protocol) for r in rows if r.job_id == newest)


def _verdict(row: VerdictRow) -> Verdict:
    return Verdict(
        variant_id=row.variant_id,
        stage=cast(Stage, row.stage),
        subject=row.subject,
        checks=tuple(Check(name=check.name, passed=check.passed, detail=check.detail) for check in row.checks),
        judged_at=row.judged_at,
    )


@dataclass(frozen=True)
class _Parts:
    """Rows about variants, by variant id; environments by their own."""

    artifacts: Mapping[str, ArtifactRow]
    releases: Mapping[str, ReleaseRow]
    jobs: Mapping[str, list[Row[Any]]]
    measurements: Mapping[str, list[Number]]
    layers: Mapping[str, list[LayerErrorRow]]
    verdicts: Mapping[str, list[VerdictRow]]
    environments: Mapping[str, Environment]


def _parts(session: Session, ids: Collection[str] | None) -> _Parts:
    """Read all rows about variants, or about those with the ids, with one query a table."""

    def chosen(column: Any) -> Any:
        return column.is_not(None) if ids is None else column.in_(ids)

    def about(query: Any, column: Any) -> Any:
        return session.scalars(query.where(chosen(column)))

    artifacts = about(select(ArtifactRow).options(selectinload(ArtifactRow.files)), ArtifactRow.variant_id)
    verdicts = select(VerdictRow).options(selectinload(VerdictRow.checks)).order_by(VerdictRow.judged_at, VerdictRow.id)
    outcome = (JobRow.error, JobRow.reason, JobRow.hint, JobRow.log_tail, JobRow.retryable, JobRow.category)
    made = (JobRow.kind, JobRow.state, JobRow.seconds, JobRow.peak_memory_bytes, JobRow.environment_id)
    jobs = select(JobRow.id, JobRow.number, JobRow.variant_id, *made, *outcome)
    return _Parts(
        artifacts={row.variant_id: row for row in artifacts},
        releases={row.variant_id: row for row in about(select(ReleaseRow), ReleaseRow.variant_id)},
        jobs=_grouped(session.execute(jobs.where(chosen(JobRow.variant_id)).order_by(JobRow.updated_at, JobRow.number)), "variant_id"),
        measurements=_grouped(_numbers(session, chosen(MeasurementRow.variant_id)), "variant_id"),
        layers=_grouped(about(select(LayerErrorRow).order_by(LayerErrorRow.id), LayerErrorRow.variant_id), "variant_id"),
        verdicts=_grouped(about(verdicts, VerdictRow.variant_id), "variant_id"),
        environments=_environments(session),
    )


def _variant(row: Variant, parts: _Parts) -> VariantRecord:
    base = ModelRef(repo_id=row.model.repo_id, sha=row.model.sha)
    recipe = from_json(Recipe, row.recipe, where=f"the database's recipe {row.recipe_name}")
    artifact, released = parts.artifacts.get(row.id), parts.releases.get(row.id)
    work, measured = parts.jobs[row.id], parts.measurements[row.id]
    press = next((job for job in work if job.kind == "press" and job.state == "done"), None)
    environment = measured[-1].environment_id if measured else press.environment_id if press else None
    failures = [failure for failure in map(_failure, work) if failure]
    return VariantRecord(
        variant_id=row.id,
        base=base,
        recipe=recipe,
        artifact=_artifact(artifact, base, recipe) if artifact else None,
        press_seconds=press.seconds if press else None,
        press_peak_memory_bytes=press.peak_memory_bytes if press else None,
        measurements=tuple(_measurement(number) for number in measured),
        environment=parts.environments[environment] if environment else None,
        environments=_by_protocol(measured, parts.environments),
        verdicts=tuple(_verdict(verdict) for verdict in parts.verdicts[row.id]),
        release=release(released) if released else None,
        failure=failures[-1] if failures else None,
        layers=_layers(parts.layers[row.id]),
    )
