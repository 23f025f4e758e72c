"""The last look at what is released, verification or audit, and whether it passed: one answer for cards, site and collections."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub.history import Audit, ReleaseChange, VariantRecord, Verdict

if TYPE_CHECKING:
    from hub.store import Store


@dataclass(frozen=True, kw_only=True)
class Look:
    """A look at a release: when (ISO-8601), whether it passed, and in words what did not."""

    at: str
    passed: bool
    broke: str = ""


def last(record: VariantRecord, audits: Iterable[Audit], changes: Sequence[ReleaseChange]) -> Look | None:
    """Return the last look at what a repository holds now, None where there was none since it was put there.

    `audits` are the variant's, `changes` the changelog of its repository.
    """
    since = put_there(changes)
    found = [Look(at=one.at, passed=one.passed, broke="" if one.passed else f"audited {one.at[:10]}: {one.reason}") for one in audits]
    found += [
        Look(at=one.judged_at, passed=one.passed, broke="" if one.passed else f"the published bytes: {failures(one)}")
        for one in record.verdicts
        if one.stage == "release"
    ]
    return max((look for look in found if look.at >= since), key=lambda look: (look.at, look.passed), default=None)


def lasts(store: Store, records: Iterable[VariantRecord]) -> dict[str, Look]:
    """Return the last look at each release that was looked at, by variant id."""
    audits: defaultdict[str, list[Audit]] = defaultdict(list)
    for audit in store.published.audits():
        audits[audit.variant_id].append(audit)
    histories = store.published.histories()
    found = {
        record.variant_id: last(record, audits[record.variant_id], histories.get(record.release.repo_id, ()))
        for record in records
        if record.release
    }
    return {variant: look for variant, look in found.items() if look}


def broken(store: Store, records: Iterable[VariantRecord]) -> frozenset[str]:
    """Return the ids of the variants of which the last look at their release did not pass."""
    return frozenset(variant for variant, look in lasts(store, records).items() if not look.passed)


def put_there(changes: Sequence[ReleaseChange]) -> str:
    """Return when what lies in a repository now was put there, also where the same files were put right; empty where that is not known."""
    return max((change.at for change in changes if change.kind in ("released", "replaced")), default="")


def failures(verdict: Verdict) -> str:
    """Return the failed checks of a verdict in one line."""
    return "; ".join(f"{check.name}: {check.detail.removesuffix('.')}" for check in verdict.checks if not check.passed)
