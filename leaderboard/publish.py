"""Releases: what passed the gate goes to the Hub in one commit; `leaderboard.verify` looks again at the bytes that the Hub serves.

This is the only module that writes to the Hub. Publishing is idempotent: the head's manifest says which artifact lies
there, so a run that was killed after its commit adopts that commit, and different bytes are never replaced in silence.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hub import policy
from hub.codec import from_json
from hub.domain import Artifact, ArtifactFile, HubFile
from hub.errors import BadCheckpoint, BadDocument, GateRefusal, HubConflict, PolicyRefusal
from hub.history import BaseRecord, Release, VariantRecord
from hub.protocol import Protocol
from leaderboard import cards, gate, stats
from leaderboard.cards import Change, Extras

if TYPE_CHECKING:
    from hub.client import HubClient
    from hub.settings import Settings
    from hub.store import Store

MANIFEST = "modelpress.json"
CARD = "README.md"
_TRIES = 3


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What lies at a repository's head (`sha` None: there is no repository); `artifact` only where ModelPress published it."""

    sha: str | None = None
    artifact: Artifact | None = None
    files: tuple[HubFile, ...] = ()

    def holds(self, artifact: Artifact) -> bool:
        """Whether exactly this artifact lies there, complete and with a card."""
        if self.artifact is None or self.artifact.digest != artifact.digest:
            return False
        there = {file.path: file for file in self.files}
        return CARD in there and all(file.path in there and _agrees(there[file.path], file) for file in artifact.files)


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What is to be published where: a judged artifact in its folder, with all that its card is written from."""

    record: VariantRecord
    artifact: Artifact
    base: BaseRecord
    siblings: Sequence[VariantRecord]
    repo_id: str
    folder: Path
    extras: Extras

    @property
    def subject(self) -> str:
        """The variant in words, for commit messages."""
        return f"{self.record.recipe.name} of {self.record.base.repo_id}@{self.record.base.sha[:8]}"


def publish(
    record: VariantRecord,
    *,
    base: BaseRecord,
    siblings: Sequence[VariantRecord],
    store: Store,
    client: HubClient,
    settings: Settings,
    artifacts_dir: Path,
) -> Release:
    """Publish a variant's artifact with its card in one commit, record the release and return it.

    Raises `GateRefusal` when the gate has not let exactly these bytes through, `BadCheckpoint` when the files on disk are
    not those that were judged, `PolicyRefusal` when the repository holds what ModelPress did not publish.
    """
    artifact = _passed(record)
    if record.release and record.release.artifact_digest == artifact.digest:
        return record.release
    namespace = settings.hub.namespace or client.account().name
    repo_id = policy.release_name(base.candidate, record.recipe, namespace)
    order = _Order(
        record=record,
        artifact=artifact,
        base=base,
        siblings=siblings,
        repo_id=repo_id,
        folder=artifacts_dir / record.variant_id,
        extras=_extras(record, base, siblings, store, namespace),
    )
    sha = _place(order, client, store)
    release = Release(
        variant_id=record.variant_id,
        repo_id=repo_id,
        sha=sha,
        artifact_digest=artifact.digest,
        url=client.url(repo_id),
        released_at=_now(),
    )
    store.record_release(release)
    recorded = store.variant(record.variant_id)
    return recorded.release if recorded and recorded.release else release


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _passed(record: VariantRecord) -> Artifact:
    verdict, artifact = gate.artifact_verdict(record), record.artifact
    name = f"{record.recipe.name} of {record.base.repo_id}"
    if artifact is None or verdict is None:
        raise GateRefusal(
            f"{name} has not been judged, so it is not published", hint="run modelpress work, which presses, measures and judges"
        )
    if failed := [check for check in verdict.checks if not check.passed]:
        raise GateRefusal(
            f"{name} is not published: {' '.join(check.detail for check in failed)}", hint="see modelpress status for all checks"
        )
    return artifact


def _look(client: HubClient, repo_id: str, base: str) -> _Head:
    """Return what lies at a repository's head; raise `PolicyRefusal` where that is a variant of another base of the same name."""
    sha = client.head(repo_id)
    if sha is None:
        return _Head()
    files = client.files(repo_id, sha)
    manifest = client.read_text(repo_id, sha, MANIFEST) if any(file.path == MANIFEST for file in files) else None
    try:
        artifact = from_json(Artifact, manifest, where=f"{MANIFEST} of {repo_id}") if manifest else None
    except BadDocument:
        artifact = None
    if artifact is not None and artifact.base.repo_id != base:
        raise PolicyRefusal(
            f"{repo_id} holds a variant of {artifact.base.repo_id}; that of {base}, another model of the same name, is not put over it",
            hint="add one of the two to policy.banned, or choose another hub.namespace",
        )
    return _Head(sha=sha, artifact=artifact, files=files)


def _place(order: _Order, client: HubClient, store: Store) -> str:
    """Return the commit that holds the artifact: the head where it lies there already, otherwise a new one."""
    for left in reversed(range(_TRIES)):
        head = _look(client, order.repo_id, order.artifact.base.repo_id)
        if head.sha is not None and head.holds(order.artifact):
            return head.sha
        try:
            return _commit(order, head, client, store)
        except HubConflict:
            # Someone committed meanwhile: look at what is there now before anything is replaced.
            if not left:
                raise
    raise AssertionError("unreachable")


def _changes(repo_id: str, head: _Head, artifact: Artifact) -> tuple[Change, ...]:
    """Return the changelog's line for what the commit replaces; raise `PolicyRefusal` where that is not ours to replace."""
    if head.artifact is not None and head.sha is not None:
        return (Change(day=_now()[:10], what=f"artifact {artifact.digest} replaces {head.artifact.digest} (commit {head.sha[:8]})"),)
    if foreign := [file.path for file in head.files if file.path != ".gitattributes"]:
        raise PolicyRefusal(
            f"{repo_id} holds files that ModelPress did not publish ({', '.join(foreign[:3])}), so it is left as it is",
            hint="move that repository away, or choose another hub.namespace",
        )
    return ()


def _commit(order: _Order, head: _Head, client: HubClient, store: Store) -> str:
    changes = _changes(order.repo_id, head, order.artifact)
    message = f"Publish artifact {order.artifact.digest}: {order.subject}"
    if head.artifact is not None:
        message = f"Replace artifact {head.artifact.digest} -> {order.artifact.digest}: {order.subject}"
    files = {**_files(order.folder, order.artifact), **_licence_files(order, client)}
    card = cards.render(
        order.record,
        order.base,
        order.siblings,
        repo_id=order.repo_id,
        hub_url=client.endpoint,
        extras=replace(order.extras, changes=changes),
    )
    if faults := client.validate_card(card):
        raise GateRefusal(
            f"the Hub does not take the card of {order.repo_id}: {'; '.join(faults)}", hint="see what the base's own card says"
        )
    client.create(order.repo_id, gated="auto" if order.base.candidate.gated else None)
    if head.sha is None:
        store.record_hub_write("repo", order.repo_id, 0)
        # A repository that has just been made may have a first commit of its own; what somebody else put there meanwhile is left alone.
        head = _look(client, order.repo_id, order.artifact.base.repo_id)
        _changes(order.repo_id, head, order.artifact)
    sent: dict[str, Path | bytes] = {**files, CARD: card.encode()}
    others = [file.path for file in head.files if file.path not in sent and file.path != ".gitattributes"]
    sha = client.commit(order.repo_id, sent, message=message, parent=head.sha, deleted=others)
    size = sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in sent.values())
    store.record_hub_write("commit", order.repo_id, size)
    return sha


def _licence_files(order: _Order, client: HubClient) -> dict[str, Path | bytes]:
    """Return what the base's licence demands beside the artifact's own files: licence texts of the base, a NOTICE.

    Raises `PolicyRefusal` when a copy of the licence's text is demanded and neither the artifact nor the base holds one.
    """
    candidate = order.base.candidate
    demanded = policy.demands(candidate.license, candidate.license_name)
    held = {file.path for file in order.artifact.files}
    wanted = [file.path for file in candidate.files if gate.is_licence_file(file.path, demanded) and file.path not in held]
    files: dict[str, Path | bytes] = {}
    if wanted:
        folder = client.download(candidate.ref, patterns=wanted)
        files.update({path: (folder / path).read_bytes() for path in wanted})
    if demanded.agreement and not any(path.upper().startswith(("LICENSE", "LICENCE", "COPYING")) for path in (*held, *files)):
        raise PolicyRefusal(
            f"{order.repo_id} is not published: its licence {demanded.license} must be passed on as a copy, and no LICENSE file is there",
            hint="add the base to policy.banned, or publish it by hand with its licence",
        )
    if demanded.notice:
        words = f"The weights were changed from those of {candidate.ref.repo_id} at commit {candidate.ref.sha}; README.md says how."
        name = next((name for name in gate.NOTICES if name not in held and name not in files), gate.NOTICES[-1])
        files[name] = f"{demanded.notice}\n\n{words}\n".encode()
    return files


def _files(folder: Path, artifact: Artifact) -> Mapping[str, Path]:
    """Return the files to upload: those of the manifest and the manifest itself, each a regular file with the recorded checksum."""
    hint = "remove its folder and run modelpress run: it is then pressed again"
    for file in artifact.files:
        if not _is_file(folder / file.path, file):
            raise BadCheckpoint(f"{file.path} of variant {artifact.variant_id} is not the file that was judged", hint=hint)
    manifest = folder / MANIFEST
    try:
        found = from_json(Artifact, manifest.read_bytes(), where=MANIFEST)
    except (OSError, BadDocument) as error:
        raise BadCheckpoint(f"variant {artifact.variant_id} has no readable {MANIFEST}: {error}", hint=hint) from error
    if found.digest != artifact.digest or not _regular(manifest):
        raise BadCheckpoint(f"{MANIFEST} of variant {artifact.variant_id} names artifact {found.digest}, not {artifact.digest}", hint=hint)
    return {**{file.path: folder / file.path for file in artifact.files}, MANIFEST: manifest}


def _regular(path: Path) -> bool:
    """Whether the path is a file itself; a link to one would be followed on upload."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_file(path: Path, file: ArtifactFile) -> bool:
    if not _regular(path) or path.stat().st_size != file.size:
        return False
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256


def _agrees(there: HubFile, file: ArtifactFile) -> bool:
    """Whether a listed file can be the artifact's; of files kept in git itself the Hub lists no SHA-256, only the size."""
    return there.size == file.size and there.sha256 in (None, file.sha256)


def _extras(record: VariantRecord, base: BaseRecord, siblings: Iterable[VariantRecord], store: Store, namespace: str) -> Extras:
    beside = stats.shared_protocol(record.measurements, base.measurements)
    # Of two with one name the later: an older program's may have been flat.
    known: dict[str, Protocol] = {job.job.protocol.name: job.job.protocol for job in store.jobs() if job.job.protocol}
    others = sorted({one.protocol for one in record.measurements if "task" in one.conditions} - {beside})
    passed = [other for other in siblings if other.base == record.base and gate.let_through(other)]
    repos = tuple((other.variant_id, policy.release_name(base.candidate, other.recipe, namespace)) for other in passed)
    demanded = policy.demands(base.candidate.license, base.candidate.license_name)
    notices = tuple(words for words in (demanded.badge, demanded.restrictions) if words)
    return Extras(
        protocol=known.get(beside or ""),
        task_protocols=tuple(known[name] for name in others if name in known),
        sibling_repos=repos,
        notices=notices,
    )
