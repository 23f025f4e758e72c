"""Which published releases are looked at again, and what a stranger is given today in place of what was published.

A release that broke raises `GateRefusal`, which says what broke. Every other error says why it could not be judged: the hub is away, a
library is missing here, there is no room. That is no fault of the release's and is not recorded as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hub.domain import Failure, ModelRef
from hub.errors import GateRefusal, HubCorrupt, HubNotFound, ModelPressError, PolicyRefusal, UsageError
from hub.facts import Facts
from hub.history import Audit, BaseRecord, Check, Release, VariantRecord
from leaderboard import gate
from leaderboard.verify import is_file

if TYPE_CHECKING:
    from hub.client import HubClient

_OF_THE_MACHINE = ("hub", "out_of_memory", "timed_out", "disk", "killed", "gated")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Served:
    """What the hub serves of a release today: the head's commit, and its files in a folder."""

    sha: str
    folder: Path


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


def fetch(release: Release, client: HubClient, into: Path) -> Served:
    """Download what the head of a release's repository holds, each file verified against the hub's own listing.

    Raises `GateRefusal` where there is nothing a stranger could download, `UsageError` where `client` speaks to another hub than that on
    which it was published.
    """
    if not _same_hub(release.url, client.endpoint):
        where = f"it was published at {release.url}, and the hub is {client.endpoint} now"
        raise UsageError(f"{release.repo_id} is not looked for: {where}", hint="set hub.endpoint to that hub")
    head = client.head(release.repo_id)
    if head is None:
        raise GateRefusal(f"the repository {release.repo_id} is gone from {client.endpoint}, or hidden")
    try:
        return Served(sha=head, folder=client.download(ModelRef(repo_id=release.repo_id, sha=head), into=into))
    except (HubNotFound, HubCorrupt, PolicyRefusal) as error:
        raise GateRefusal(error.message, hint=error.hint) from error


def judge(record: VariantRecord, facts: Facts, *, base: BaseRecord, served: Served, at: str) -> tuple[Check, ...]:
    """Return the gate's checks on the bytes that are served, compared with those on record too, whatever the manifest beside them says.

    That other libraries write other tokens is no break, for where two tokens are almost equally likely a rounding decides: whether the
    model still predicts as it did is for the measured sample to say.
    """
    files = record.artifact.files if record.artifact else ()
    wrong = [file.path for file in files if not is_file(served.folder / file.path, file)]
    facts = replace(facts, checksum_errors=tuple(dict.fromkeys((*wrong, *facts.checksum_errors))))
    verdict = gate.judge(record, facts, base=base, stage="release", subject=served.sha, at=at)
    return tuple(check for check in verdict.checks if check.name != "same_tokens")


def _same_hub(url: str, endpoint: str) -> bool:
    """Whether a page's address is on this hub; the embedded one may have another port today."""
    there, here = urlsplit(url), urlsplit(endpoint)
    if there.hostname in _LOOPBACK and here.hostname in _LOOPBACK:
        return True
    return (there.scheme, there.netloc) == (here.scheme, here.netloc)


def broke(failure: Failure, doing: str) -> ModelPressError:
    """Return the error of a job that failed on a release: `GateRefusal` where the release is at fault, else the job's own."""
    from hub import errors

    if failure.category not in _OF_THE_MACHINE and failure.error != errors.Unavailable.__name__:
        return GateRefusal(f"{doing} failed: {failure.reason}", hint=failure.hint)
    kind = getattr(errors, failure.error, errors.JobDied)
    return kind(f"{doing} failed here: {failure.reason}", hint=failure.hint)
