"""Where releases go: one repository for a base and a recipe, whatever the base's commit, and two bases of one name kept apart.

The base that was released first under a name keeps it; another owner's base of the same name has its owner's name put after it.
What is released stays where it is. Docs: docs/publishing.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hub import policy
from hub.history import BaseRecord, VariantRecord
from leaderboard.gate import let_through


class Names:
    """The names of releases in one namespace, from all `records` and `bases` of the store: the latest listing first, as it gives them."""

    def __init__(self, records: Sequence[VariantRecord], bases: Sequence[BaseRecord], namespace: str) -> None:
        self._namespace = namespace
        self._candidates = {base.candidate.ref: base.candidate for base in bases}
        self._newness = {base.candidate.ref: -place for place, base in enumerate(bases)}
        self._records = [record for record in records if record.base in self._candidates]
        self._released: dict[tuple[str, str], str] = {}
        for record in self._by_release():
            assert record.release is not None
            if record.release.repo_id.startswith(f"{namespace}/"):
                self._released[record.base.repo_id, record.recipe.name] = record.release.repo_id
        self._holders = self._first_come()

    def of(self, record: VariantRecord) -> str:
        """Return the repository of a variant, where it is or where it would be released."""
        kept = self._released.get((record.base.repo_id, record.recipe.name))
        if kept:
            return kept
        candidate = self._candidates[record.base]
        holder = self._holders.get(policy.stem(candidate).lower(), record.base.repo_id)
        return policy.release_name(candidate, record.recipe, self._namespace, namesake=holder != record.base.repo_id)

    def newest(self) -> Mapping[str, VariantRecord]:
        """Return by repository which variant belongs into it: of those that the gate let through the one of the base's latest listing.

        Of one commit of a base (its recipe has changed) that which was made last.
        """

        def newness(record: VariantRecord) -> tuple[int, str]:
            return self._newness[record.base], record.artifact.made_at if record.artifact else ""

        ready = sorted((record for record in self._records if let_through(record)), key=newness)
        newest = {self.of(record): record for record in ready}
        return {self.of(record): newest[self.of(record)] for record in self._records if let_through(record)}

    def _by_release(self) -> list[VariantRecord]:
        released = [(record.release.released_at, record.variant_id, record) for record in self._records if record.release]
        return [record for _, _, record in sorted(released, key=lambda entry: entry[:2])]

    def _first_come(self) -> Mapping[str, str]:
        """Return by the stem of a name, in small letters, the base that holds it: released first under it, or first to be released."""
        holders: dict[str, str] = {}
        for record in self._by_release():
            candidate = self._candidates[record.base]
            if record.release and record.release.repo_id == policy.release_name(candidate, record.recipe, self._namespace):
                holders.setdefault(policy.stem(candidate).lower(), record.base.repo_id)
        for record in self._records:
            if let_through(record):
                holders.setdefault(policy.stem(self._candidates[record.base]).lower(), record.base.repo_id)
        return holders
