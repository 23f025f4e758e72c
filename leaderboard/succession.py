"""Which release takes the place of another (`new_version` on its card): an outdated or a worse one is told so, by fixed rules.

*Outdated*: the base has a newer revision whose variant of the same recipe is released in another repository. *Worse*: another variant of
the same base commit in the same format is at most as large (within half a per cent), not surely slower, and its KL divergence lies wholly
below this one's under every protocol that both were measured with. Docs: docs/catalogue.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub.domain import ModelRef
from hub.history import BaseRecord, Release, VariantRecord
from leaderboard import stats, text
from leaderboard.retirement import withdrawn_as
from leaderboard.stats import Estimate

if TYPE_CHECKING:
    from hub.store import Store

AS_LARGE = 1.005
"""Longer texts beside the same weights make nothing larger: the configuration of one method has more keys than another's."""


@dataclass(frozen=True, kw_only=True)
class Successor:
    """The repository that takes the place of a release, and why in words."""

    repo_id: str
    why: str


def on_the_hub(store: Store) -> list[VariantRecord]:
    """Return the variants that repositories hold now: of several commits of a base in one repository the one released last."""
    current = {release.variant_id for release in store.published.current().values()}
    return [record for record in store.variants() if record.variant_id in current]


def mark(store: Store) -> list[tuple[VariantRecord, Successor | None]]:
    """Bring `new_version` of all releases up to date, and return those that changed with what takes their place now (None: nothing)."""
    changed = due(store)
    for record, successor in changed:
        store.published.supersede(record.variant_id, successor.repo_id if successor else None)
    return changed


def due(store: Store) -> list[tuple[VariantRecord, Successor | None]]:
    """Return the releases whose `new_version` is not up to date, with what takes their place (None: nothing)."""
    records, withdrawn = on_the_hub(store), frozenset(map(withdrawn_as, store.variants()))
    bases = {base.candidate.ref: base for base in store.bases()}
    commits = {repo_id: [one.ref.sha for one in known] for repo_id, known in store.candidates().items()}
    found = successors(records, bases, commits, withdrawn)
    told = [(record, record.release.new_version, found[record.variant_id]) for record in records if record.release]
    return [(record, successor) for record, named, successor in told if named != (successor.repo_id if successor else None)]


def successors(
    records: Sequence[VariantRecord],
    bases: Mapping[ModelRef, BaseRecord],
    commits: Mapping[str, Sequence[str]],
    withdrawn: AbstractSet[str] = frozenset(),
) -> dict[str, Successor | None]:
    """Return by variant id what takes the place of each released variant, at the end of the chain; None where nothing does. Pure.

    `records` are those that repositories hold now, `commits` by `owner/name` the commits of each base, newest first. What people named
    when they retired a release stands; a retired release takes no other's place, nor does a research variant or one that is not verified,
    nor, whoever named it, a repository that is `withdrawn`: deleted, or about to be.
    """
    released = [(record, record.release) for record in records if record.release]
    fit = {release.repo_id: _may_follow(record, release) for record, release in released} | dict.fromkeys(withdrawn, False)
    rivals = [record for record, release in released if fit[release.repo_id] and release.verified_at]
    direct = {release.repo_id: _direct(record, release, rivals, bases, commits) for record, release in released}
    return {record.variant_id: _end(release.repo_id, direct, fit) for record, release in released}


def _may_follow(record: VariantRecord, release: Release) -> bool:
    return release.retired_at is None and record.recipe.track == "serving"


def _direct(
    record: VariantRecord,
    release: Release,
    rivals: Sequence[VariantRecord],
    bases: Mapping[ModelRef, BaseRecord],
    commits: Mapping[str, Sequence[str]],
) -> Successor | None:
    if release.retired_at is not None:
        return Successor(repo_id=release.new_version, why="it was named when this one was retired") if release.new_version else None
    if record.recipe.track != "serving":
        return None
    return _newer(record, release, rivals, commits.get(record.base.repo_id, ())) or _better(record, rivals, bases.get(record.base))


def _newer(record: VariantRecord, release: Release, rivals: Sequence[VariantRecord], shas: Sequence[str]) -> Successor | None:
    """Return the same recipe's variant of the newest revision that has one; None where this is the newest, or its age is not known."""
    newer = list(shas[: shas.index(record.base.sha)]) if record.base.sha in shas else []
    made_alike = (record.recipe.format, record.recipe.steps)
    found = {
        other.base.sha: other.release.repo_id
        for other in rivals
        if other.release and other.base.repo_id == record.base.repo_id and (other.recipe.format, other.recipe.steps) == made_alike
    }
    sha = next((sha for sha in newer if found.get(sha, release.repo_id) != release.repo_id), None)
    return Successor(repo_id=found[sha], why=f"it is made of a newer revision of the base, {sha[:8]}") if sha else None


def _better(record: VariantRecord, rivals: Sequence[VariantRecord], base: BaseRecord | None) -> Successor | None:
    """Return the closest to the base of those that a variant is worse than."""
    if base is None:
        return None
    better = [(least, other) for other in rivals for least in _surely_closer(record, other, base)]
    if not better:
        return None
    least, other = min(better, key=lambda pair: (pair[0].value, pair[1].variant_id))
    assert other.release is not None
    return Successor(
        repo_id=other.release.repo_id, why=f"it is at most as large and closer to the base: KL divergence {text.uncertain(least)}"
    )


def _surely_closer(record: VariantRecord, other: VariantRecord, base: BaseRecord) -> Iterator[Estimate]:
    """Yield the other's KL divergence where a variant is worse than it by the rule, else nothing."""
    if (other.base, other.recipe.format) != (record.base, record.recipe.format) or record.artifact is None or other.artifact is None:
        return
    if other.artifact.bytes > AS_LARGE * record.artifact.bytes:
        return
    own, rival = stats.compare(record, base), stats.compare(other, base)
    if own.decode and rival.decode and own.protocol == rival.protocol and stats.surely_better(own.decode, rival.decode):
        return
    here, there = _divergences(record), _divergences(other)
    pairs = [(here[name], there[name]) for name in sorted(here.keys() & there.keys())]
    if pairs and all(stats.surely_better(theirs, mine) for mine, theirs in pairs):
        yield pairs[0][1]


def _divergences(record: VariantRecord) -> dict[str, Estimate]:
    """Return a variant's KL divergence from its base by protocol, the newest under each."""
    protocols = {one.protocol for one in record.measurements if one.metric == "kl_divergence"}
    found = {name: stats.find(record.measurements, "kl_divergence", name) for name in protocols}
    return {name: Estimate.of(one) for name, one in found.items() if one}


def _end(start: str, direct: Mapping[str, Successor | None], fit: Mapping[str, bool]) -> Successor | None:
    """Follow a release's successors to the last; None where that may take nobody's place, or where they lead back."""
    seen, at = {start}, direct[start]
    while at is not None and at.repo_id not in seen:
        seen.add(at.repo_id)
        after = direct.get(at.repo_id)
        if after is None:
            return at if fit.get(at.repo_id, True) else None
        at = after
    return None
