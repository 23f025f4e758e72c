"""The tables of what was judged, published and looked at again, in the results database with those of `hub.tables`."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from hub.tables import Key, Number, Table, Time, Words


class VerdictRow(Table):
    """The gate's latest answer on the bytes named by `subject`."""

    __tablename__ = "verdicts"
    __table_args__ = (UniqueConstraint("variant_id", "stage", "subject"),)

    id: Mapped[Number]
    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"))
    stage: Mapped[Words]
    subject: Mapped[Words]
    passed: Mapped[bool]
    judged_at: Mapped[Time]

    checks: Mapped[list[CheckRow]] = relationship(order_by="CheckRow.position", cascade="all, delete-orphan")


class CheckRow(Table):
    """One question of the gate and its answer."""

    __tablename__ = "checks"

    verdict_id: Mapped[int] = mapped_column(ForeignKey("verdicts.id"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[Words]
    passed: Mapped[bool]
    detail: Mapped[Words]


class ReleaseRow(Table):
    """An artifact published at a commit. The primary key is the variant: a second release of it cannot be recorded."""

    __tablename__ = "releases"

    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"), primary_key=True)
    repo_id: Mapped[Words]
    sha: Mapped[Words]
    artifact_digest: Mapped[Key]
    url: Mapped[Words]
    released_at: Mapped[Time]
    verified_at: Mapped[Time | None]
    card_sha256: Mapped[str | None] = mapped_column(Text)
    retired_at: Mapped[Time | None]
    retired_why: Mapped[Words | None]
    new_version: Mapped[Words | None]


class ReleaseChangeRow(Table):
    """A line of a repository's changelog; `sha` NULL while its commit is on its way."""

    __tablename__ = "release_changes"
    __table_args__ = (Index(None, "repo_id"),)

    id: Mapped[Number]
    repo_id: Mapped[Words]
    at: Mapped[Time]
    kind: Mapped[Words]
    what: Mapped[Words]
    content: Mapped[Words]
    sha: Mapped[Words | None]


class AuditRow(Table):
    """A published release looked at again; `libraries` and `measurements` are JSON."""

    __tablename__ = "audits"
    __table_args__ = (Index(None, "variant_id"),)

    id: Mapped[Number]
    variant_id: Mapped[str] = mapped_column(ForeignKey("variants.id"))
    repo_id: Mapped[Words]
    sha: Mapped[Words]
    at: Mapped[Time]
    passed: Mapped[bool]
    reason: Mapped[Words]
    libraries: Mapped[Words]
    measurements: Mapped[Words]
