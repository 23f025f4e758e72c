"""What is on the Hub: releases as they are now, the changelog of each repository, and what audits found."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from hub import records
from hub.codec import from_json, to_json
from hub.database import Database
from hub.domain import Measurement
from hub.errors import StoreError
from hub.history import Audit, Release, ReleaseChange
from hub.release_tables import AuditRow, ReleaseChangeRow, ReleaseRow
from hub.tables import Variant


class Published:
    """The part of the store that the publisher keeps."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # The changelog: begun before a commit, settled with the release after it

    def begin(self, change: ReleaseChange) -> ReleaseChange:
        """Note what a commit is about to change, and return it; the same begun before keeps its day.

        Another one that was begun in this repository and never settled is forgotten: look at the head before.
        """
        with self._database.writing() as session:
            begun = _begun(session, change.repo_id)
            if begun is not None and (begun.content, begun.kind, begun.what) == (change.content, change.kind, change.what):
                return _change(begun)
            session.execute(delete(ReleaseChangeRow).where(ReleaseChangeRow.repo_id == change.repo_id, ReleaseChangeRow.sha.is_(None)))
            session.add(ReleaseChangeRow(**asdict(change)))
            return change

    def begun(self, repo_id: str) -> ReleaseChange | None:
        """Return the change whose commit may or may not have landed; None where there is none."""
        with self._database.reading() as session:
            row = _begun(session, repo_id)
            return _change(row) if row else None

    def settle(self, release: Release) -> Release:
        """Record a release as it is now, with the commit of the change that was begun for it, and return it.

        Of a variant released before, `released_at` stays, unless another has lain in its place since; `verified_at`, `retired_*` and
        `new_version` stay while the artifact is the same. Raises `StoreError` for another repository than before.
        """
        with self._database.writing() as session:
            if session.get(Variant, release.variant_id) is None:
                raise StoreError(f"no variant {release.variant_id} is recorded", hint="record the plan that makes it first")
            known = session.get(ReleaseRow, release.variant_id)
            if known is not None and known.repo_id != release.repo_id:
                raise StoreError(
                    f"variant {release.variant_id} is released already as {known.repo_id}, so not as {release.repo_id}",
                    hint="a variant is released in one place; look at the repository of the recorded release",
                )
            begun = _begun(session, release.repo_id)
            if begun is not None:
                begun.sha = release.sha
            others = select(func.max(ReleaseRow.released_at)).where(
                ReleaseRow.repo_id == release.repo_id, ReleaseRow.variant_id != release.variant_id
            )
            before = session.scalar(others) or ""
            if known is None:
                release = replace(release, released_at=_later(release.released_at, before))
                session.add(ReleaseRow(**asdict(release)))
                return release
            if known.released_at <= before:
                known.released_at = _later(release.released_at, before)
            if known.artifact_digest != release.artifact_digest:
                known.verified_at = known.retired_at = known.retired_why = known.new_version = None
            known.sha, known.artifact_digest, known.url = release.sha, release.artifact_digest, release.url
            known.card_sha256 = release.card_sha256
            session.flush()
            return records.release(known)

    def changes(self, repo_id: str) -> tuple[ReleaseChange, ...]:
        """Return the changelog of a repository, oldest first, without what was begun only."""
        with self._database.reading() as session:
            rows = select(ReleaseChangeRow).where(ReleaseChangeRow.repo_id == repo_id, ReleaseChangeRow.sha.is_not(None))
            return tuple(_change(row) for row in session.scalars(rows.order_by(ReleaseChangeRow.id)))

    def histories(self) -> Mapping[str, tuple[ReleaseChange, ...]]:
        """Return the changelog of every repository by its id, each as `changes` gives it."""
        found: defaultdict[str, list[ReleaseChange]] = defaultdict(list)
        with self._database.reading() as session:
            rows = select(ReleaseChangeRow).where(ReleaseChangeRow.sha.is_not(None)).order_by(ReleaseChangeRow.id)
            for row in session.scalars(rows):
                found[row.repo_id].append(_change(row))
        return {repo_id: tuple(changes) for repo_id, changes in found.items()}

    # Releases

    def current(self) -> Mapping[str, Release]:
        """Return what each repository holds now, by its id: of variants of several commits of a base the one released last."""
        with self._database.reading() as session:
            return {release.repo_id: release for release in records.releases(session)}

    def at(self, repo_id: str) -> Release | None:
        """Return what a repository holds now; None where nothing was released there."""
        with self._database.reading() as session:
            rows = select(ReleaseRow).where(ReleaseRow.repo_id == repo_id)
            row = session.scalar(rows.order_by(ReleaseRow.released_at.desc(), ReleaseRow.variant_id.desc()).limit(1))
            return records.release(row) if row else None

    def retire(self, variant_id: str, *, at: str, why: str) -> None:
        """Note that a release is deprecated, with a reason; empty: it is not any more. Raises `StoreError` where there is no release."""
        with self._database.writing() as session:
            row = _release(session, variant_id)
            row.retired_at, row.retired_why = (at, why) if why else (None, None)

    def supersede(self, variant_id: str, new_version: str | None) -> None:
        """Note which repository is to be taken in place of a release's, None: none. Raises `StoreError` where there is no release."""
        with self._database.writing() as session:
            _release(session, variant_id).new_version = new_version

    def withdraw(self, variant_id: str) -> None:
        """Forget a release whose repository was deleted, with its changelog. Raises `StoreError` where there is no release."""
        with self._database.writing() as session:
            row = _release(session, variant_id)
            session.execute(delete(ReleaseChangeRow).where(ReleaseChangeRow.repo_id == row.repo_id))
            session.delete(row)

    # Audits

    def record_audit(self, audit: Audit) -> None:
        """Keep what an audit found: a release that passed is verified as of then, one that broke is not verified any more."""
        values = asdict(audit) | {"libraries": to_json(audit.libraries), "measurements": to_json(audit.measurements)}
        with self._database.writing() as session:
            session.add(AuditRow(**values))
            if release := session.get(ReleaseRow, audit.variant_id):
                release.verified_at = audit.at if audit.passed else None

    def audits(self, variant_id: str | None = None) -> tuple[Audit, ...]:
        """Return all audits, or those of one variant, oldest first."""
        with self._database.reading() as session:
            rows = select(AuditRow).order_by(AuditRow.id)
            if variant_id is not None:
                rows = rows.where(AuditRow.variant_id == variant_id)
            return tuple(_audit(row) for row in session.scalars(rows))


def _later(at: str, before: str) -> str:
    """Return a time, or the second after `before` where it is not later: what a repository holds now is what was released last."""
    return at if at > before else (datetime.fromisoformat(before) + timedelta(seconds=1)).isoformat(timespec="seconds")


def _begun(session: Session, repo_id: str) -> ReleaseChangeRow | None:
    rows = select(ReleaseChangeRow).where(ReleaseChangeRow.repo_id == repo_id, ReleaseChangeRow.sha.is_(None))
    return session.scalar(rows.order_by(ReleaseChangeRow.id.desc()).limit(1))


def _release(session: Session, variant_id: str) -> ReleaseRow:
    row = session.get(ReleaseRow, variant_id)
    if row is None:
        raise StoreError(f"variant {variant_id} has no release", hint="publish it first")
    return row


def _change(row: ReleaseChangeRow) -> ReleaseChange:
    return ReleaseChange(repo_id=row.repo_id, at=row.at, kind=row.kind, what=row.what, content=row.content, sha=row.sha)  # type: ignore[arg-type]


def _audit(row: AuditRow) -> Audit:
    where = "the database's audit"
    return Audit(
        variant_id=row.variant_id,
        repo_id=row.repo_id,
        sha=row.sha,
        at=row.at,
        passed=row.passed,
        reason=row.reason,
        libraries=json.loads(row.libraries),
        measurements=tuple(from_json(Measurement, json.dumps(one), where=where) for one in json.loads(row.measurements)),
    )
