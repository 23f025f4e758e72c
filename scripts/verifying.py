"""Any repository put before the gate: a release of this database, one of another ModelPress, or anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub.domain import Artifact, Candidate, Job, ModelRef
from hub.errors import HubNotFound, HubRefused, TimedOut, Unavailable, UsageError
from hub.history import Check, VariantRecord
from modelpress.pipeline import now

if TYPE_CHECKING:
    from leaderboard.findings import Finding
    from leaderboard.foreign import Promised
    from leaderboard.verify import Commands, Served
    from modelpress.session import Session

RELEASE, MANIFEST, CONFIG = "the record of its release", "its own manifest", "its own config.json and card"

_NOT_ASKED = {
    "card_unchanged": "an older program, which did not note the card's checksum, published it",
    "supplements_unchanged": "it was not noted what was published beside the card: its record was lost, or an older program made it",
    "commands": "the head, which they would take, is not the release; or it is not known that the card is ours; or its base is gated",
}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found on a repository at a commit, and who said what it should be (`promised_by`)."""

    repo_id: str
    sha: str
    promised_by: str
    findings: Sequence[Finding]

    @property
    def passed(self) -> bool:
        """Whether nothing failed; what was not checked has not passed either, and is told."""
        return not any(finding.state == "failed" for finding in self.findings)


def look(session: Session, repo_id: str, revision: str | None) -> Report:
    """Put the gate on what the hub serves of a repository at a revision (None: the head), in an empty cache and a clean process.

    Of what a repository holds by this database the verdict on the head is recorded. Raises `HubNotFound` where there is no such
    repository or revision, `PolicyRefusal` where its files have names that are not let in or, of anybody's, more than `policy.max_bytes`,
    `GateRefusal` where no inspection could be made.
    """
    from leaderboard.succession import on_the_hub

    record = next((one for one in on_the_hub(session.store) if one.release and one.release.repo_id == repo_id), None)
    with session.report.phase(f"verify {repo_id}", 0):
        if record and record.release and revision is None:
            return _ours(session, record, None)
        listed = session.client.candidate(repo_id, revision)
        if record and record.release and listed.ref.sha == record.release.sha:
            return _ours(session, record, listed.ref.sha)
        return _anybodys(session, listed)


def commands(session: Session, record: VariantRecord) -> Commands | None:
    """Return what runs the commands of a card of ours; None for a gated base's variant, which a stranger without a token cannot load."""
    from runners import card_commands

    base = next((base for base in session.store.bases() if base.candidate.ref == record.base), None)
    if base is None or base.candidate.gated:
        return None
    memory = min(session.memory_bytes, needed(record.artifact)) if record.artifact else session.memory_bytes

    def run(content: bytes, expected: str) -> Check:
        card = card_commands.TrustedCard(content=content, expected_sha256=expected)
        if missing := card_commands.missing(card):
            raise Unavailable(f"its card asks for what is not installed here: {', '.join(missing)}", hint=f"pip install {missing[0]}")
        outcomes = card_commands.run(
            card,
            endpoint=session.endpoint,
            scratch=session.folder / "scratch" / f"{record.variant_id}-commands",
            timeout_s=session.settings.farm.timeout_s,
            memory_bytes=memory,
        )
        if over := next((one for one in outcomes if one.over_limit), None):
            hint = "farm.timeout_s and farm.memory_gib set the limits; of memory no more is given than a model of this size can need."
            raise TimedOut(f"the card's command {over.command}: {over.detail}", hint=hint)
        return card_commands.check(outcomes)

    return run


def needed(artifact: Artifact) -> int:
    """Return how much memory a card's command can need, in bytes: the file's pages, the weights once in float32, and 4 GiB for the rest."""
    return artifact.bytes + 4 * artifact.parameters + (4 << 30)


def _ours(session: Session, record: VariantRecord, sha: str | None) -> Report:
    from leaderboard.findings import of_check, unchecked
    from leaderboard.verify import Verifier

    verifier = Verifier(store=session.store, client=session.client, farm=session.farm)
    scratch = session.folder / "scratch" / record.variant_id
    verdict = verifier.verify(record, scratch=scratch, commands=commands(session, record), sha=sha)
    findings = [of_check(check) for check in verdict.checks]
    asked = {finding.name for finding in findings}
    findings += [unchecked(name, why) for name, why in _NOT_ASKED.items() if name not in asked]
    assert record.release is not None
    return Report(repo_id=record.release.repo_id, sha=verdict.subject, promised_by=RELEASE, findings=findings)


def _anybodys(session: Session, listed: Candidate) -> Report:
    from leaderboard import foreign
    from leaderboard.verify import inspected, served

    ref = listed.ref
    foreign.require_size(listed, session.settings.policy.max_bytes)
    with served(session.client, ref.repo_id, ref.sha, session.folder / "scratch" / "verify") as there:
        promised = foreign.with_base(
            there,
            foreign.manifest_of(there),
            lambda name, sha: _candidate(session, name, sha),
            max_bytes=session.settings.policy.max_bytes,
        )
        facts = inspected(session.farm, _job(there, promised), there)
        findings = foreign.judge(there, facts, promised, at=now())
    by = MANIFEST if promised.exact else CONFIG
    return Report(repo_id=ref.repo_id, sha=ref.sha, promised_by=by, findings=findings)


def _job(there: Served, promised: Promised) -> Job:
    """Return the inspection: against the manifest's recipe and base where both are known, else of the bytes alone."""
    if promised.exact and promised.manifest:
        return Job(kind="inspect", base=promised.manifest.base, recipe=promised.manifest.recipe, subject=there.sha)
    return Job(kind="inspect", base=ModelRef(repo_id=there.repo_id, sha=there.sha), subject=there.sha)


def _candidate(session: Session, repo_id: str, sha: str | None) -> Candidate | None:
    """Return a base model as the hub lists it, None where it does not, or not to us."""
    try:
        return session.client.candidate(repo_id, sha)
    except (HubNotFound, HubRefused, UsageError):
        return None
