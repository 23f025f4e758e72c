"""Releases that are taken back: deprecated with a reason, or withdrawn, which is deleted on the Hub. Docs: docs/catalogue.md.

What the database keeps of a withdrawn release is a check of the gate's verdict on its bytes that says why, so that it is not published
again until somebody asks for it. The check begins with the repository's name: it is withdrawn first, and said to be deleted once it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hub import names
from hub.domain import ModelRef, Recipe
from hub.errors import PolicyRefusal, StoreError, UnknownName, UsageError
from hub.history import Check, VariantRecord, Verdict
from leaderboard import text
from leaderboard.gate import artifact_verdict

if TYPE_CHECKING:
    from hub.store import Store

WITHDRAWN = "withdrawn"
_LONGEST = 500
_WITHDRAWN, _DELETED = "is withdrawn since", "was deleted from the Hub on"


def reason(words: str) -> str:
    """Return a reason as it is stored: one plain line of at most 500 characters; raise `UsageError` where it says nothing."""
    plain = text.plain(words)
    if not any(char.isalnum() for char in plain):
        raise UsageError("the reason for retiring says nothing", hint="say it in a few words, or leave --because out")
    return plain if len(plain) <= _LONGEST else f"{plain[: _LONGEST - 1]}…"


def named(records: Sequence[VariantRecord], name: str) -> list[VariantRecord]:
    """Return the variants whose release or withdrawn release a name means, by repository or by id: the one that lies there now first.

    Raises `PolicyRefusal` for a repository that is not ours, `UnknownName` for an id that no variant has, `StoreError` for one of a
    variant that is not released, or whose repository holds another one now.
    """
    if "/" in name:
        found = [record for record in records if name in (_released_as(record), withdrawn_as(record))]
        if not found:
            raise PolicyRefusal(
                f"{names.shown(name)} was not published by ModelPress from this database, so it is left as it is",
                hint="modelpress status --json lists what is released",
            )
        return sorted(found, key=_age, reverse=True)
    one = next((record for record in records if record.variant_id == name), None)
    if one is None:
        raise UnknownName(f"no variant has the id {names.shown(name)}", hint="name a repository, or a variant's whole id")
    repo_id = _released_as(one) or withdrawn_as(one)
    if not repo_id:
        raise StoreError(f"variant {one.variant_id} is not released", hint="modelpress publish releases what passed the gate")
    family = named(records, repo_id)
    if family[0] is not one and _released_as(one):
        raise StoreError(
            f"{repo_id} does not hold variant {one.variant_id} any more, but {family[0].variant_id}", hint="name the repository instead"
        )
    return family


def _released_as(record: VariantRecord) -> str:
    return record.release.repo_id if record.release else ""


def _age(record: VariantRecord) -> tuple[str, str]:
    return (record.release.released_at if record.release else "", record.variant_id)


def withdrawn_as(record: VariantRecord) -> str:
    """Return the repository under which a variant was released that is deleted, or about to be; empty where none is."""
    check = _withdrawn(record)
    return check.detail.split()[0] if check else ""


def _withdrawn(record: VariantRecord) -> Check | None:
    verdict = artifact_verdict(record)
    return next((check for check in verdict.checks if check.name == WITHDRAWN), None) if verdict else None


def withdraw(store: Store, records: Sequence[VariantRecord], repo_id: str, *, at: str, why: str) -> None:
    """Let none of these variants be published any more: of each the verdict on its bytes says that it is withdrawn, and why."""
    for record in records:
        verdict = artifact_verdict(record)
        if record.artifact is None or (verdict and _withdrawn(record)):
            continue
        ended = why if why.endswith((".", "!", "?")) else f"{why}."
        detail = f"{repo_id} {_WITHDRAWN} {at[:10]}: {ended}"
        verdict = verdict or Verdict(
            variant_id=record.variant_id, stage="artifact", subject=record.artifact.digest, checks=(), judged_at=at
        )
        store.record_verdict(replace(verdict, checks=(*verdict.checks, Check(name=WITHDRAWN, passed=False, detail=detail))))


def note_deleted(store: Store, records: Sequence[VariantRecord], *, at: str) -> None:
    """Say of withdrawn variants that their repository is deleted on the Hub, and forget their releases; why stays as it was said."""
    for record in records:
        now = store.variant(record.variant_id) or record
        if (verdict := artifact_verdict(now)) and (check := _withdrawn(now)):
            told = replace(check, detail=f"{withdrawn_as(now)} {_DELETED} {at[:10]}: {check.detail.partition(': ')[2]}")
            store.record_verdict(replace(verdict, checks=tuple(told if one == check else one for one in verdict.checks)))
        if record.release:
            store.published.withdraw(record.variant_id)


def admit(store: Store, records: Sequence[VariantRecord]) -> bool:
    """Let withdrawn variants be published again, and say whether any was; raise `StoreError` for one that the gate never judged."""
    admitted = [(record, verdict) for record in records if _withdrawn(record) and (verdict := artifact_verdict(record))]
    for record, verdict in admitted:
        checks = tuple(check for check in verdict.checks if check.name != WITHDRAWN)
        if not checks:
            raise StoreError(f"the gate never judged variant {record.variant_id}", hint="delete its folder and press it again")
        store.record_verdict(replace(verdict, checks=checks))
    return bool(admitted)


def held_back(records: Sequence[VariantRecord]) -> Callable[[ModelRef, Recipe], str | None]:
    """Return what says why a recipe is not pressed on a base model, at whatever commit: its release was retired or withdrawn."""
    why: dict[tuple[str, str], str] = {}
    for record in records:
        undone = "; modelpress retire --undo takes that back"
        if record.release and record.release.retired_at is not None:
            words = (record.release.retired_why or "").rstrip(".")
            why[record.base.repo_id, record.recipe.name] = f"its release {record.release.repo_id} is retired ({words}){undone}"
        elif (check := _withdrawn(record)) is not None:
            why[record.base.repo_id, record.recipe.name] = f"{check.detail.rstrip('.')}{undone}"
    return lambda model, recipe: why.get((model.repo_id, recipe.name))
