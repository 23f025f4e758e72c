"""The files that ModelPress puts beside a card: its chart, its numbers, its bill of materials, results for the Hub's benchmarks.

All are made from the record alone: the same record gives the same bytes, so publishing again changes nothing. The gate asks this module
which names may lie in a release, so it imports what makes the files, which asks the gate, only when they are made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hub.history import BaseRecord, Release, ReleaseChange, VariantRecord
from leaderboard.findings import Finding, failed, passed, unchecked

if TYPE_CHECKING:
    from leaderboard.cards import Extras

PATHS = frozenset({"chart.svg", "bench.json", "sbom.cdx.json"})
EVAL_RESULTS = re.compile(r"\.eval_results/[a-z0-9][a-z0-9_.-]{0,95}\.yaml\Z", re.ASCII)


def is_supplement(path: str) -> bool:
    """Return whether a path in a release is one that `supplements` may give."""
    return path in PATHS or EVAL_RESULTS.match(path) is not None


def fingerprint(sums: Mapping[str, str | None]) -> str:
    """Return one hash of the supplements among some files, of which the SHA-256 are given by path."""
    beside = sorted((path, found) for path, found in sums.items() if is_supplement(path))
    return hashlib.sha256(repr(beside).encode()).hexdigest()[:16]


def supplements_unchanged(release: Release, changes: Sequence[ReleaseChange], sums: Mapping[str, str | None]) -> Finding:
    """Return whether the supplements that are served are those that were published, by the newest of the `changes` of the repository."""
    name = "supplements_unchanged"
    artifact, _, noted = changes[-1].content.rpartition(":") if changes else ("", "", "")
    if not noted or artifact != f"{release.variant_id}:{release.artifact_digest}":
        return unchecked(name, "it was not noted what was published beside the card: its record was lost, or an older program made it")
    found, paths = fingerprint(sums), ", ".join(sorted(filter(is_supplement, sums))) or "nothing"
    detail = f"Beside the card there is {paths}, with the hash {found}, and {noted} was published; they must be the same."
    return passed(name, detail) if found == noted else failed(name, detail)


def supplements(
    record: VariantRecord, base: BaseRecord, siblings: Sequence[VariantRecord], *, repo_id: str, hub_url: str, extras: Extras
) -> dict[str, bytes]:
    """Return the files to publish beside the card, by path; one that would have nothing to show is left out.

    Raises `PolicyRefusal` where no card can be written either.
    """
    from leaderboard import bench, card_chart, cards, eval_results, sbom

    cards.check(record, repo_id)
    page = hub_url.rstrip("/")
    files = {
        card_chart.NAME: card_chart.draw(record, base, siblings),
        bench.NAME: bench.document(record, base, repo_id=repo_id, hub_url=page, extras=extras),
        sbom.NAME: sbom.document(record, base, repo_id=repo_id, hub_url=page),
        **eval_results.documents(record, base, extras.protocols, repo_id=repo_id, hub_url=page),
    }
    return {path: content.encode() for path, content in files.items() if content}
