"""The gate again, after publishing: on the bytes that the Hub serves, in an empty cache and a clean process."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hub.domain import Artifact, ArtifactFile, Candidate, Failure, Job, ModelRef
from hub.errors import HubNotFound, JobDied, ModelPressError, StoreError, Unavailable, UsageError
from hub.facts import Facts
from hub.history import BaseRecord, Check, Release, VariantRecord, Verdict
from hub.transfer import sums
from leaderboard import claims, gate, supplements
from leaderboard.card_reader import MAX_CARD
from leaderboard.faults import OF_RELEASES, broke, lacking
from leaderboard.findings import Finding, checks, failed, passed, unchecked

if TYPE_CHECKING:
    from hub.client import HubClient
    from hub.dispatch import Farm
    from hub.store import Store

CARD = "README.md"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
Commands = Callable[[bytes, str], Check]
"""Runs what a card of ours prints, given its bytes and the SHA-256 that they must have, and says what came of it."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """What a Hub serves of a repository at a commit: a folder with the files, and size and SHA-256 of each by path."""

    repo_id: str
    sha: str
    folder: Path
    files: Mapping[str, tuple[int, str | None]]

    @property
    def card(self) -> bytes | None:
        """The card's bytes, None where there is none or none of a card's size."""
        path = self.folder / CARD
        return path.read_bytes() if path.is_file() and path.stat().st_size <= MAX_CARD else None

    def holds(self, file: ArtifactFile) -> bool:
        """Whether a file of a manifest is served with the recorded size and checksum."""
        return self.files.get(file.path) == (file.size, file.sha256)


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Puts the gate on what a hub serves: the inspection runs on the farm, what was found stands in the store."""

    store: Store
    client: HubClient
    farm: Farm

    def verify(self, record: VariantRecord, *, scratch: Path, commands: Commands | None = None, sha: str | None = None) -> Verdict:
        """Judge what the Hub serves for a release: downloaded to an empty cache, inspected in a clean process, its card read and tried.

        The verdict on the head, which is what those who download get, is recorded: from then on the release is verified, or is not any
        more. `scratch` is emptied before and removed after; `commands` runs the card's own commands (None: they are not tried), which take
        the head and are therefore tried only where that is the release; `sha` is the commit to look at (None: the head). Raises
        `GateRefusal` where the files broke the inspection, `HubNotFound` where the repository is gone, and the others of
        `faults.OF_RELEASES`, which are recorded too; `UsageError` where it was published on another hub, and what hub or machine lacked:
        then nothing is.
        """
        release, base = record.release, next((base for base in self.store.bases() if base.candidate.ref == record.base), None)
        if release is None or base is None or record.artifact is None:
            raise StoreError(
                f"the database holds no base, no artifact or no release of the variant {record.variant_id}", hint="run modelpress discover"
            )
        require_same_hub(release, self.client)
        head = self.client.head(release.repo_id)
        if sha and head and sha != head:
            return self._judged(record, base, sha, scratch, commands=None)
        try:
            if head is None:
                raise HubNotFound(f"the repository {release.repo_id} is gone from {self.client.endpoint}, or hidden")
            tried_with = commands if head == release.sha else None
            verdict = self._judged(record, base, head, scratch, commands=tried_with)
        except OF_RELEASES as error:
            self._record(_refused(record, head or release.sha, error))
            raise
        self._record(verdict)
        return verdict

    def _record(self, verdict: Verdict) -> None:
        """Note what the head was found to be; killed in between, a release is looked at once more, never trusted for what it was."""
        self.store.mark_verified(verdict.variant_id, None)
        self.store.record_verdict(verdict)
        if verdict.passed:
            self.store.mark_verified(verdict.variant_id, verdict.judged_at)

    def _judged(self, record: VariantRecord, base: BaseRecord, sha: str, scratch: Path, *, commands: Commands | None) -> Verdict:
        release, artifact = record.release, record.artifact
        assert release is not None
        assert artifact is not None
        with served(self.client, release.repo_id, sha, scratch) as there:
            facts = inspected(self.farm, Job(kind="inspect", base=record.base, recipe=record.recipe, subject=sha), there)
            wrong = [file.path for file in artifact.files if not there.holds(file)]
            if not wrong and (missing := lacking(facts)):
                raise Unavailable(f"{release.repo_id} cannot be loaded here: {missing}", hint="install what is missing; modelpress doctor")
            facts = replace(facts, checksum_errors=tuple(dict.fromkeys((*wrong, *facts.checksum_errors))))
            verdict = gate.judge(record, facts, base=base, stage="release", subject=sha, at=_now())
            changes = self.store.published.changes(release.repo_id)
            beside = supplements.supplements_unchanged(release, changes, {path: sha256 for path, (_, sha256) in there.files.items()})
            found = [card_unchanged(release, there), beside, *card_findings(there, facts, manifest=artifact, base=base.candidate)]
            more = [_commit(release, sha), *checks(found), *tried(release, there, commands)]
        return replace(verdict, checks=(*verdict.checks, *more))


def require_same_hub(release: Release, client: HubClient) -> None:
    """Raise `UsageError` where a release was published on another hub: that it is not on this one says nothing of it."""
    there, here = urlsplit(release.url), urlsplit(client.endpoint)
    if there.hostname in _LOOPBACK and here.hostname in _LOOPBACK:
        return  # the embedded one may have another port today
    if (there.scheme, there.netloc) != (here.scheme, here.netloc):
        where = f"it was published at {release.url}, and the hub is {client.endpoint} now"
        raise UsageError(f"{release.repo_id} is not looked for: {where}", hint="set hub.endpoint to that hub")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _refused(record: VariantRecord, sha: str, error: ModelPressError) -> Verdict:
    """Return the verdict on a release that is itself at fault that it could not be examined."""
    check = Check(name="examined", passed=False, detail=error.message)
    return Verdict(variant_id=record.variant_id, stage="release", subject=sha, checks=(check,), judged_at=_now())


def _commit(release: Release, sha: str) -> Check:
    detail = f"Looked at is commit {sha[:8]}, the released one is {release.sha[:8]}; they must be the same."
    return Check(name="commit", passed=sha == release.sha, detail=detail)


@contextmanager
def served(client: HubClient, repo_id: str, sha: str, scratch: Path) -> Iterator[Served]:
    """Download a repository at a commit through an empty cache below `scratch`, which is emptied before and removed after."""
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        reader = copy.copy(client)
        reader.cache_dir = scratch / "cache"
        folder = reader.download(ModelRef(repo_id=repo_id, sha=sha), into=scratch / "checkpoint", linked=True)
        shutil.rmtree(reader.cache_dir, ignore_errors=True)  # nothing is looked at there again
        paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        found = {name: sums(path) for name, path in paths.items()}
        yield Served(repo_id=repo_id, sha=sha, folder=folder, files={name: (one.size, one.sha256) for name, one in found.items()})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def inspected(farm: Farm, job: Job, there: Served) -> Facts:
    """Return the facts on what is served, found in a clean process.

    Where that gave none: `GateRefusal` if the files are at fault, else what hub or machine lacked.
    """
    outcome = farm.run(job, folder=there.folder)
    if isinstance(outcome, Failure):
        raise broke(outcome, f"inspecting {there.repo_id} at {there.sha[:8]}")
    if outcome.facts is None:
        raise JobDied(f"the inspection of {there.repo_id} at {there.sha[:8]} gave no facts", hint="run modelpress verify again")
    return outcome.facts


def card_unchanged(release: Release, there: Served) -> Finding:
    """Return whether the card that is served is the very one that was published."""
    name, card = "card_unchanged", there.card
    if card is None:
        return failed(name, f"There is no {CARD}; 1 must be.")
    if release.card_sha256 is None:
        return unchecked(name, "the release was made by an older program, which did not note the card's checksum")
    found = hashlib.sha256(card).hexdigest()
    detail = f"The card has SHA-256 {found[:12]}, the published one {release.card_sha256[:12]}; they must be the same."
    return passed(name, detail) if found == release.card_sha256 else failed(name, detail)


def card_findings(there: Served, facts: Facts, *, manifest: Artifact | None, base: Candidate | None) -> tuple[Finding, ...]:
    """Read the served card back and compare it with what lies beside it."""
    card = there.card
    if card is None:
        return (unchecked("card_metadata", f"there is no {CARD}, or none that is as small as a card"),)
    return claims.compare(
        card.decode("utf-8", errors="replace"),
        repo_id=there.repo_id,
        config=config_of(facts),
        tensors=facts.outlines,
        manifest=manifest,
        base=base,
        files=there.files,
    )


def config_of(facts: Facts) -> Mapping[str, Any]:
    """Return what config.json held, empty where it was no JSON object."""
    try:
        config = json.loads(facts.config or "{}")
    except (ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def tried(release: Release, there: Served, commands: Commands | None) -> tuple[Check, ...]:
    """Return the check on the card's own commands, nothing where they are not to be run or the card is not known to be ours."""
    card = there.card
    if commands is None or card is None or release.card_sha256 is None:
        return ()
    if hashlib.sha256(card).hexdigest() != release.card_sha256:
        return (Check(name="commands", passed=False, detail="The card is not the one that was published, so its commands are not run."),)
    return (commands(card, release.card_sha256),)


def is_file(path: Path, file: ArtifactFile) -> bool:
    """Whether a path is a file itself, no link to one, with the recorded size and checksum."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    return sums(path).sha256 == file.sha256
