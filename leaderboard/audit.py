"""Which published releases are looked at again, and what a stranger is given today in place of what was published.

A release that broke raises `GateRefusal`, which says what broke. Every other error says why it could not be judged: the hub is away, a
library is missing here, there is no room. That is no fault of the release's and is not recorded as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hub.errors import GateRefusal, HubCorrupt, HubNotFound, HubRefused, PolicyRefusal
from hub.facts import Facts
from hub.history import Audit, BaseRecord, Check, Release, VariantRecord
from leaderboard import gate
from leaderboard.findings import checks
from leaderboard.verify import CARD, Served, card_findings, card_unchanged, require_same_hub, served

if TYPE_CHECKING:
    from hub.client import HubClient

_GIT = (".gitattributes",)


def due(records: Iterable[VariantRecord], audits: Sequence[Audit], *, retired: bool = False) -> list[VariantRecord]:
    """Return the released variants in the order in which they are to be audited: never audited first, then audited longest ago.

    Retired ones come last, and only where `retired` says so.
    """
    last = {audit.variant_id: audit.at for audit in audits}
    released = [(record, record.release) for record in records if record.release and (retired or not record.release.retired_at)]

    def turn(entry: tuple[VariantRecord, Release]) -> tuple[bool, str, str, str]:
        record, release = entry
        return release.retired_at is not None, last.get(record.variant_id, ""), release.released_at, release.repo_id

    return [record for record, _ in sorted(released, key=turn)]


@contextmanager
def at_head(release: Release, client: HubClient, scratch: Path, *, gated: bool) -> Iterator[Served]:
    """Download what the head of a release's repository holds, as a stranger gets it; `scratch` is emptied before and removed after.

    Raises `GateRefusal` where there is nothing that could be downloaded, or strangers are turned away though it is not to be `gated`;
    `UsageError` where `client` speaks to another hub than that on which it was published.
    """
    require_same_hub(release, client)
    with ExitStack() as opened:
        try:
            head = client.head(release.repo_id)
            if head is None:
                raise HubNotFound(f"the repository {release.repo_id} is gone from {client.endpoint}, or hidden")
            there = opened.enter_context(served(client, release.repo_id, head, scratch))
        except (HubNotFound, HubCorrupt, PolicyRefusal, HubRefused) as error:
            if gated and isinstance(error, HubRefused):
                raise  # it is our token that may not
            raise GateRefusal(error.message, hint=error.hint) from error
        yield there


def ours(record: VariantRecord, release: Release, client: HubClient, there: Served) -> tuple[Check, ...]:
    """Return whether what is served is what was published: the artifact's files and the card by their SHA-256, and no other change.

    It is asked before anything is loaded: bytes that are not ours are looked at no further.
    """
    wrong = [file.path for file in record.artifact.files if not there.holds(file)] if record.artifact else []
    others = [path for path in _changed_since(release, client, there) if path not in (*wrong, CARD, *_GIT)]
    return (
        _none("checksums", wrong, "of the artifact's files are gone or differ from their SHA-256"),
        *checks([card_unchanged(release, there)]),
        _none("unchanged", others, "other files were changed by a commit that ModelPress did not make"),
    )


def judge(record: VariantRecord, facts: Facts, *, base: BaseRecord, there: Served, at: str) -> tuple[Check, ...]:
    """Return the gate's checks on what is served, and the card read back beside it.

    That other libraries write other tokens is no break, for where two tokens are almost equally likely a rounding decides: whether the
    model still predicts as it did is for the measured sample to say.
    """
    verdict = gate.judge(record, facts, base=base, stage="release", subject=there.sha, at=at)
    found = card_findings(there, facts, manifest=record.artifact, base=base.candidate)
    return (*(check for check in verdict.checks if check.name != "same_tokens"), *checks(found))


def _changed_since(release: Release, client: HubClient, there: Served) -> list[str]:
    """Return the paths that differ between the commit that was published and the head, nothing where that commit is there no more."""
    if there.sha == release.sha:
        return []
    try:
        before = {file.path: file.blob_id for file in client.files(release.repo_id, release.sha)}
    except HubNotFound:
        return []
    after = {file.path: file.blob_id for file in client.files(release.repo_id, there.sha)}
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _none(name: str, paths: Sequence[str], what: str) -> Check:
    found = f" They are: {gate.listed(paths)}." if paths else ""
    return Check(name=name, passed=not paths, detail=f"{len(paths)} {what}; 0 may.{found}")
