"""The tables of the results database, but for those of `hub.release_tables`. `hub/migrations` makes them; a test keeps them equal."""

from __future__ import annotations

from typing import Annotated

from sqlalchemy import BigInteger, Dialect, ForeignKey, Index, MetaData, String, Text, TypeDecorator, UniqueConstraint, false
from sqlalchemy import Table as SqlTable
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

HEAD = "0005"
"""The newest revision in `hub/migrations/versions`, known without importing Alembic; a test keeps it so."""


class AnyText(TypeDecorator[str]):
    """Text that any database takes: a NUL character, or half of a surrogate pair, in a log or from the Hub is replaced."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        """Replace what PostgreSQL, or UTF-8, has no room for."""
        if value is None or (value.isascii() and "\0" not in value):
            return value
        return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


Key = Annotated[str, mapped_column(String(40))]
Time = Annotated[str, mapped_column(String(32))]
Words = Annotated[str, mapped_column(AnyText)]
Size = Annotated[int, mapped_column(BigInteger)]
Number = Annotated[int, mapped_column(primary_key=True)]


class Table(DeclarativeBase):
    """Base of all tables. Documents are canonical JSON text, read back through `hub.codec` alone."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def plain(row: type[Table]) -> SqlTable:
    """Return the table behind a class, for statements that make no objects."""
    return Table.metadata.tables[row.__tablename__]


class Model(Table):
    """A base model at one commit; `document` is the `Candidate` as last seen on the Hub, NULL for one that no Hub listed."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("repo_id", "sha"),)

    id: Mapped[Number]
    repo_id: Mapped[Words]
    sha: Mapped[Words]
    document: Mapped[Words | None]


class Popularity(Table):
    """How popular a model was at one time; `rank` 1 is the best of a listing, 0 that of a model that policy refused (`model_id` NULL)."""

    __tablename__ = "popularity"
    __table_args__ = (UniqueConstraint("repo_id", "taken_at"), Index(None, "taken_at"), Index(None, "model_id"))

    id: Mapped[Number]
    repo_id: Mapped[Words]
    model_id: Mapped[int | None] = mapped_column(ForeignKey("models.id"))
    taken_at: Mapped[Time]
    rank: Mapped[int]
    score: Mapped[float | None]
    downloads: Mapped[Size]
    likes: Mapped[Size]
    trending_score: Mapped[float]


class Variant(Table):
    """A base model with a recipe; `label` is its name for people, distinct among all variants."""

    __tablename__ = "variants"
    __table_args__ = (UniqueConstraint("label"), Index(None, "model_id"))

    id: Mapped[Key] = mapped_column(primary_key=True)
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    label: Mapped[Words]
    recipe_name: Mapped[Words]
    method: Mapped[Words]
    scheme: Mapped[Words]
    format: Mapped[Words]
    recipe: Mapped[Words]

    model: Mapped[Model] = relationship()


class ProtocolRow(Table):
    """A protocol, by the hash of its content; one known by name alone (no job spelled it out) has no document."""

    __tablename__ = "protocols"

    id: Mapped[Key] = mapped_column(primary_key=True)
    name: Mapped[Words]
    document: Mapped[Words | None]


class EnvironmentRow(Table):
    """Hardware and library versions, by the hash of their content."""

    __tablename__ = "environments"

    id: Mapped[Key] = mapped_column(primary_key=True)
    hardware: Mapped[Words]
    device: Mapped[Words]
    document: Mapped[Words]


class JobRow(Table):
    """A job with its state. While it runs, `owner`, who claimed it at `began`, answers for it until `lease_until`.

    `position` is its place in the plan, `waits_for` how many of its needs are not done, `not_before` when it may be tried again,
    `economy` how sparing the next try is, `cancel` that people want it ended (and not planned again, until they say so), `expected` an
    `Expectation`. Times are by the database's own clock, in epoch seconds where they are compared; `updated_at` is when its state changed.
    `notes` say what was not measured, `machine` what the machine was doing meanwhile.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("id"),
        Index(None, "state", "waits_for", "position"),
        Index(None, "model_id", "state", "waits_for", "position"),
        Index(None, "variant_id"),
    )

    number: Mapped[Number]
    id: Mapped[Key]
    kind: Mapped[Words]
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    variant_id: Mapped[str | None] = mapped_column(ForeignKey("variants.id"))
    protocol_id: Mapped[str | None] = mapped_column(ForeignKey("protocols.id"))
    environment_id: Mapped[str | None] = mapped_column(ForeignKey("environments.id"))
    document: Mapped[Words]
    state: Mapped[Words]
    attempts: Mapped[int] = mapped_column(default=0)
    position: Mapped[int] = mapped_column(server_default="0", default=0)
    waits_for: Mapped[int] = mapped_column(server_default="0", default=0)
    not_before: Mapped[float] = mapped_column(server_default="0", default=0.0)
    economy: Mapped[int] = mapped_column(server_default="0", default=0)
    cancel: Mapped[bool] = mapped_column(server_default=false(), default=False)
    expected: Mapped[Words | None]
    owner: Mapped[Words | None]
    lease_until: Mapped[float | None]
    began: Mapped[float | None]
    started_at: Mapped[Time | None]
    updated_at: Mapped[Time]
    seconds: Mapped[float | None]
    peak_memory_bytes: Mapped[Size | None]
    stages: Mapped[Words | None]
    facts: Mapped[Words | None]
    notes: Mapped[Words | None]
    machine: Mapped[Words | None]
    error: Mapped[Words | None]
    reason: Mapped[Words | None]
    hint: Mapped[Words | None]
    log_tail: Mapped[Words | None]
    retryable: Mapped[bool | None]
    category: Mapped[Words | None]


class NeedRow(Table):
    """One job must be done before another starts."""

    __tablename__ = "job_needs"
    __table_args__ = (Index(None, "needs"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    needs: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)


class AttemptRow(Table):
    """One try at a job, as it ended: `outcome` is done, failed, interrupted or lost. `began` in epoch seconds."""

    __tablename__ = "attempts"
    __table_args__ = (Index(None, "began"), Index(None, "job_id"))

    id: Mapped[Number]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    owner: Mapped[Words]
    began: Mapped[float]
    seconds: Mapped[float]
    outcome: Mapped[Words]
    category: Mapped[Words | None]
    reason: Mapped[Words | None]
    hardware: Mapped[Words]
    peak_memory_bytes: Mapped[Size] = mapped_column(server_default="0")
    gpus: Mapped[float] = mapped_column(server_default="0")
    cost: Mapped[float] = mapped_column(server_default="0")
    expected: Mapped[Words | None]


class ControlRow(Table):
    """What people asked of all dispatchers: `paused`, with the reason as its value."""

    __tablename__ = "controls"

    name: Mapped[Key] = mapped_column(primary_key=True)
    value: Mapped[Words]
    at: Mapped[Time]


class HubWriteRow(Table):
    """A repository made or a commit sent to the Hub, so that its limits a day are kept; `at` in epoch seconds."""

    __tablename__ = "hub_writes"
    __table_args__ = (Index(None, "at"),)

    id: Mapped[Number]
    at: Mapped[float]
    action: Mapped[Words]
    repo_id: Mapped[Words]
    bytes: Mapped[Size] = mapped_column(server_default="0")


class ArtifactRow(Table):
    """A variant's checkpoint; one a variant. `steps` holds a list of `StepRecord`, NULL for one made before they were kept."""

    __tablename__ = "artifacts"

    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    digest: Mapped[Key]
    parameters: Mapped[Size]
    bytes: Mapped[Size]
    made_at: Mapped[Time]
    libraries: Mapped[Words]
    steps: Mapped[Words | None]

    files: Mapped[list[FileRow]] = relationship(order_by="FileRow.position")


class FileRow(Table):
    """A file of an artifact."""

    __tablename__ = "artifact_files"
    __table_args__ = (UniqueConstraint("variant_id", "path"),)

    variant_id: Mapped[str] = mapped_column(ForeignKey("artifacts.variant_id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[Words]
    size: Mapped[Size]
    sha256: Mapped[Words]


class MeasurementRow(Table):
    """One number of a base model (`variant_id` NULL) or of a variant, as one job took it; `conditions` say at which point of a curve."""

    __tablename__ = "measurements"
    __table_args__ = (
        UniqueConstraint("job_id", "metric", "engine", "conditions"),
        Index(None, "variant_id", "metric"),
        Index(None, "model_id", "metric"),
    )

    id: Mapped[Number]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    variant_id: Mapped[str | None] = mapped_column(ForeignKey("variants.id"))
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocols.id"))
    environment_id: Mapped[str] = mapped_column(ForeignKey("environments.id"))
    metric: Mapped[Words]
    value: Mapped[float]
    unit: Mapped[Words]
    higher_is_better: Mapped[bool]
    ci_low: Mapped[float]
    ci_high: Mapped[float]
    ci_method: Mapped[Words]
    samples: Mapped[Size]
    engine: Mapped[Words]
    measured_at: Mapped[Time]
    conditions: Mapped[Words] = mapped_column(server_default="{}")
    percentiles: Mapped[Words] = mapped_column(server_default="{}")
    basis: Mapped[Words] = mapped_column(server_default="measured")

    protocol: Mapped[ProtocolRow] = relationship()


class ScoresRow(Table):
    """What a model scored on each of `samples` windows, or documents of the task `source`; `document` holds the `Scores`."""

    __tablename__ = "scores"
    __table_args__ = (UniqueConstraint("job_id", "source"), Index(None, "variant_id", "source"), Index(None, "model_id", "source"))

    id: Mapped[Number]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    model_id: Mapped[int] = mapped_column(ForeignKey("models.id"))
    variant_id: Mapped[str | None] = mapped_column(ForeignKey("variants.id"))
    protocol_id: Mapped[str] = mapped_column(ForeignKey("protocols.id"))
    source: Mapped[Words]
    samples: Mapped[Size]
    fingerprint: Mapped[Words]
    tokenizer_sha256: Mapped[Words]
    document: Mapped[Words]

    protocol: Mapped[ProtocolRow] = relationship()


class LayerErrorRow(Table):
    """How far one layer of a variant is from its base's, as one job found it; `protocol` says on which text."""

    __tablename__ = "layer_errors"
    __table_args__ = (UniqueConstraint("job_id", "layer"), Index(None, "variant_id"))

    id: Mapped[Number]
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"))
    layer: Mapped[Words]
    error: Mapped[float]
    tokens: Mapped[Size]
    protocol: Mapped[Words]


class RefusalRow(Table):
    """Why a model (`recipe` empty), or a recipe on a model, is not pressed; models are named by text, as refused ones are not recorded."""

    __tablename__ = "refusals"
    __table_args__ = (UniqueConstraint("repo_id", "sha", "recipe"),)

    id: Mapped[Number]
    repo_id: Mapped[Words]
    sha: Mapped[Words]
    recipe: Mapped[Words]
    code: Mapped[Words]
    reason: Mapped[Words]
