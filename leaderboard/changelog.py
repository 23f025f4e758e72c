"""The words of a repository's changelog: what was released, what took the place of what and why, and how the quality changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hub.domain import Artifact, ModelRef
from hub.history import BaseRecord, Release, ReleaseChange, VariantRecord
from leaderboard import stats, text
from leaderboard.cards import Change
from leaderboard.stats import Estimate

if TYPE_CHECKING:
    from hub.store import Store

NOT_RETIRED = "not deprecated any more"


def lines(changes: Sequence[ReleaseChange]) -> tuple[Change, ...]:
    """Return the lines that a card shows, newest first, of changes given oldest first; a new card alone is none."""
    return tuple(Change(day=change.at[:10], what=change.what) for change in reversed(changes) if change.kind != "card")


def released_words(artifact: Artifact) -> str:
    """Return the line of a first release."""
    return f"artifact {artifact.digest} released"


def replaced_words(old: Artifact, commit: str, new: VariantRecord, store: Store) -> str:
    """Return the line of an artifact that takes the place of the `old` one, which lies at `commit`: why, and what became of the quality."""
    assert new.artifact is not None
    why = _why(old, new.artifact)
    if old.digest == new.artifact.digest and old.variant_id == new.variant_id:
        return f"artifact {old.digest} put right: files at commit {commit[:8]} were not those that were released"
    said = f"artifact {new.artifact.digest} replaces {old.digest} (commit {commit[:8]}): {why}"
    quality = _quality(store.variant(old.variant_id) if old.variant_id != new.variant_id else None, new, store)
    return f"{said}; {quality}" if quality else said


def due_retirement(release: Release, changes: Sequence[ReleaseChange]) -> str:
    """Return the line that a deprecation, or the end of one, still wants in the changelog; empty where it says so already."""
    said = next((change.what for change in reversed(changes) if change.kind == "retired"), "")
    if release.retired_at is not None:
        wanted = f"deprecated: {release.retired_why}" if release.retired_why else "deprecated"
        return wanted if said != wanted else ""
    return NOT_RETIRED if said not in ("", NOT_RETIRED) and _is_last(changes) else ""


def _is_last(changes: Sequence[ReleaseChange]) -> bool:
    """Whether no artifact was put in after the last word on a deprecation, which would have ended it without saying so."""
    kinds = [change.kind for change in changes if change.kind != "card"]
    return bool(kinds) and kinds[-1] == "retired"


def _why(old: Artifact, new: Artifact) -> str:
    if old.base.sha != new.base.sha:
        return f"new revision of the base, {old.base.sha[:8]} to {new.base.sha[:8]}"
    if old.recipe != new.recipe:
        return "the recipe has changed"
    moved = [
        f"{name} {old.libraries.get(name, 'none')} to {version}"
        for name, version in sorted(new.libraries.items())
        if old.libraries.get(name) != version
    ]
    return f"pressed again with {', '.join(moved)}" if moved else "pressed again"


def _quality(old: VariantRecord | None, new: VariantRecord, store: Store) -> str:
    """Return the change in quality where both were measured under one protocol, each against its own revision of the base."""
    bases: Mapping[ModelRef, BaseRecord] = {base.candidate.ref: base for base in store.bases()}
    if old is None or old.base not in bases or new.base not in bases:
        return ""
    before, after = stats.compare(old, bases[old.base]), stats.compare(new, bases[new.base])
    if before.protocol is None or before.protocol != after.protocol:
        return ""
    found: list[tuple[str, Estimate | None, Estimate | None, Callable[[Estimate], str]]] = [
        ("KL divergence", before.kl_divergence, after.kl_divergence, text.uncertain),
        ("perplexity ratio", before.perplexity_ratio, after.perplexity_ratio, text.uncertain),
    ]
    parts = [f"{name} {say(was)} to {say(now)}" for name, was, now, say in found if was and now]
    return ", ".join(parts)
