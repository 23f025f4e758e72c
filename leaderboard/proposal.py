"""What a release would be: its files set beside what is up, with no write anywhere. `leaderboard.publish` sends it, a dry run shows it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hub import policy
from hub.codec import from_json
from hub.commits import Content
from hub.domain import Artifact, ArtifactFile, HubFile, ModelRef
from hub.errors import BadCheckpoint, BadDocument, PolicyRefusal
from hub.history import BaseRecord, ChangeKind, Release, ReleaseChange, VariantRecord
from hub.licences import POLICIES, TEXTS, LicenceDemands
from hub.transfer import sums
from leaderboard import cards, changelog, gate
from leaderboard.cards import Extras
from leaderboard.supplements import fingerprint, is_supplement, supplements

if TYPE_CHECKING:
    from hub.client import HubClient
    from hub.store import Store

MANIFEST, CARD, GIT = "modelpress.json", "README.md", ".gitattributes"
State = Literal["new", "changed", "same", "deleted"]
_ANY_LICENCE = LicenceDemands(license="", carry=TEXTS + POLICIES)


@dataclass(frozen=True, kw_only=True)
class Head:
    """What lies at a repository's head (`sha` None: there is no repository); `artifact` only where ModelPress published it."""

    sha: str | None = None
    artifact: Artifact | None = None
    files: tuple[HubFile, ...] = ()

    @cached_property
    def by_path(self) -> Mapping[str, HubFile]:
        """The files by their path."""
        return {file.path: file for file in self.files}

    @property
    def foreign(self) -> tuple[str, ...]:
        """The paths that ModelPress did not put there: what is neither the manifest's nor card, supplement or a licence's file."""
        if self.artifact is None:
            return tuple(path for path in self.by_path if path != GIT)
        ours = {GIT, MANIFEST, CARD, *(file.path for file in self.artifact.files)}
        return tuple(
            path for path in self.by_path if path not in ours and not is_supplement(path) and not gate.is_licence_file(path, _ANY_LICENCE)
        )

    def require_ours(self, repo_id: str, *, paths: Collection[str] | None = None) -> None:
        """Raise `PolicyRefusal` where the repository holds what ModelPress did not publish, among these paths where some are named."""
        if foreign := [path for path in self.foreign if paths is None or path in paths]:
            raise PolicyRefusal(
                f"{repo_id} holds files that ModelPress did not publish ({gate.listed(foreign)}), so it is left as it is",
                hint="move them away on the Hub, or choose another hub.namespace",
            )


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to lie where: an artifact and its folder, with all that its card is written from; `known` is what the store has there.

    `gated`: access is to be asked for, as it is for the base.
    """

    record: VariantRecord
    artifact: Artifact
    base: BaseRecord
    siblings: Sequence[VariantRecord]
    repo_id: str
    gated: bool
    folder: Path
    extras: Extras
    known: Release | None
    changes: tuple[ReleaseChange, ...]
    hub_url: str

    @property
    def subject(self) -> str:
        """The variant in words, for commit messages."""
        return f"{self.record.recipe.name} of {self.record.base.repo_id}@{self.record.base.sha[:8]}"

    def holds_ours(self, head: Head) -> bool:
        """Whether the head's manifest is that of this artifact, of this variant."""
        return head.artifact is not None and identity(head.artifact) == identity(self.artifact)

    @property
    def is_known(self) -> bool:
        """Whether the store knows this artifact, of this variant, as what the repository holds now."""
        return self.known is not None and f"{self.known.variant_id}:{self.known.artifact_digest}" == identity(self.artifact)

    def is_recorded(self, head: Head) -> bool:
        """Whether the head is the very commit that the store knows of this artifact: what we sent lies there, for commits never change."""
        return self.known is not None and self.is_known and self.known.sha == head.sha

    def written(self, *more: ReleaseChange) -> dict[str, bytes]:
        """Return card and supplements, with the changelog as it is and one line `more`."""
        extras = replace(self.extras, changes=changelog.lines((*self.changes, *more)))
        beside = supplements(self.record, self.base, self.siblings, repo_id=self.repo_id, hub_url=self.hub_url, extras=extras)
        card = cards.render(self.record, self.base, self.siblings, repo_id=self.repo_id, hub_url=self.hub_url, extras=extras)
        return {**beside, CARD: card.encode()}


@dataclass(frozen=True, kw_only=True)
class FileState:
    """A file of a release beside what is up."""

    path: str
    size: int
    state: State


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A commit that is wanted: what goes up and what goes away, with the changelog's line; nothing of both: it lies there already."""

    order: Order
    head: Head
    change: ReleaseChange
    card: str
    sent: Mapping[str, Content]
    states: tuple[FileState, ...]

    @property
    def deleted(self) -> tuple[str, ...]:
        """The paths that the commit takes away."""
        return tuple(state.path for state in self.states if state.state == "deleted")

    @property
    def empty(self) -> bool:
        """Whether the head holds all of it already, and nothing else."""
        return not self.sent and not self.deleted

    @property
    def size(self) -> int:
        """The bytes that go up."""
        return sum(len(one) if isinstance(one, bytes) else one.stat().st_size for one in self.sent.values())

    @property
    def artifact_bytes(self) -> int:
        """What goes up where an artifact does; a card takes no room worth counting."""
        return self.size if self.change.kind in ("released", "replaced") else 0

    @property
    def message(self) -> str:
        """The commit's message."""
        order, old = self.order, self.head.artifact
        if self.change.kind == "released" or old is None:
            return f"Publish artifact {order.artifact.digest}: {order.subject}"
        if self.change.kind == "replaced":
            return f"Replace artifact {old.digest} -> {order.artifact.digest}: {order.subject}"
        return f"Card of {order.subject}" + (f": {self.change.what}" if self.change.kind == "retired" else "")[:200]


def identity(artifact: Artifact) -> str:
    """Return what tells one artifact from another: variant (base's commit and recipe) and digest of the files."""
    return f"{artifact.variant_id}:{artifact.digest}"


def content(artifact: Artifact, written: Mapping[str, bytes]) -> str:
    """Return what a commit is known by afterwards: the artifact, then a hash of all that was written beside it but the card."""
    return f"{identity(artifact)}:{fingerprint({path: hashlib.sha256(held).hexdigest() for path, held in written.items()})}"


def look(client: HubClient, repo_id: str, base: str) -> Head:
    """Return what lies at a repository's head; raise `PolicyRefusal` where that is a variant of another base, or not ours at all."""
    sha = client.head(repo_id)
    if sha is None:
        return Head()
    files = client.files(repo_id, sha)
    manifest = client.read_text(repo_id, sha, MANIFEST, listed=files)
    try:
        artifact = from_json(Artifact, manifest, where=f"{MANIFEST} of {repo_id}") if manifest else None
    except BadDocument:
        artifact = None
    if artifact is not None and artifact.base.repo_id != base:
        raise PolicyRefusal(
            f"{repo_id} holds a variant of {artifact.base.repo_id}; that of {base}, another model of the same name, is not put over it",
            hint="add one of the two to policy.banned, or choose another hub.namespace",
        )
    found = Head(sha=sha, artifact=artifact, files=files)
    if artifact is None:
        found.require_ours(repo_id)
    return found


def propose(order: Order, head: Head, client: HubClient, store: Store, *, at: str) -> Proposal:
    """Set what is wanted beside the head.

    Raises `BadCheckpoint` where a file that must go up is not the one that was judged, and `PolicyRefusal` where another artifact would
    take away, or write over, a file that ModelPress did not publish.

    Where this artifact lies there already, what others put beside it is kept; where it lies there whole, card and supplements are all that
    a commit would change.
    """
    ours = order.holds_ours(head)
    whole = ours and (order.is_recorded(head) or lies_whole(order, head, client))
    change = _change(order, head, store, whole=whole, at=at)
    fixed = _manifest_alone(order, head) if whole else _artifact_files(order)
    if not whole or _lacks_licence(order, head):
        fixed |= _licence_files(order, client)
    wanted: dict[str, Content] = {**fixed, **order.written(change)}
    card = wanted[CARD]
    assert isinstance(card, bytes)
    states = sorted([*_wanted_states(wanted, head), *_other_states(wanted, head, kept=ours)], key=lambda state: state.path)
    if not ours:
        head.require_ours(order.repo_id, paths=[state.path for state in states if state.state in ("changed", "deleted")])
    differing = {state.path for state in states if state.state in ("new", "changed")}
    sent = {path: held for path, held in wanted.items() if path in differing}
    return Proposal(order=order, head=head, change=change, card=card.decode(), sent=sent, states=tuple(states))


def unchanged(order: Order) -> bool:
    """Whether what the store knows of a release says that card and supplements would be the same, so that nobody need ask the Hub.

    Of a gated base it is never said, for only the Hub knows whether access to the release is gated too.
    """
    known, written = order.known, order.written()
    return (
        known is not None
        and bool(order.changes)
        and not order.gated
        and known.card_sha256 == hashlib.sha256(written[CARD]).hexdigest()
        and order.changes[-1].content == content(order.artifact, written)
        and not changelog.due_retirement(known, order.changes)
    )


def _change(order: Order, head: Head, store: Store, *, whole: bool, at: str) -> ReleaseChange:
    """Return the changelog's line of what is wanted; begun before with the same words, it keeps its day."""
    kind: ChangeKind
    if head.artifact is None:
        kind, what = "released", changelog.released_words(order.artifact)
    elif not whole:
        kind, what = "replaced", changelog.replaced_words(head.artifact, head.sha or "", order.record, store)
    elif order.known and (retired := changelog.due_retirement(order.known, order.changes)):
        kind, what = "retired", retired
    else:
        kind, what = "card", "card brought up to date"
    change = ReleaseChange(repo_id=order.repo_id, at=at, kind=kind, what=what, content=content(order.artifact, order.written()))
    begun = store.published.begun(order.repo_id)
    return begun if begun is not None and replace(begun, at=at) == change else change


def lies_whole(order: Order, head: Head, client: HubClient) -> bool:
    """Whether every file of the artifact lies at the head as it was judged; the Hub lists no SHA-256 of files kept in git itself."""
    for file in order.artifact.files:
        there = head.by_path.get(file.path)
        if there is None or there.size != file.size or (there.sha256 or file.sha256) != file.sha256:
            return False
        local = order.folder / file.path
        if there.sha256 is None and is_file(local, file):
            if not sums(local).match(there):
                return False
        elif there.sha256 is None:
            folder = client.download(ModelRef(repo_id=order.repo_id, sha=head.sha or ""), patterns=[file.path])
            if sums(folder / file.path).sha256 != file.sha256:
                return False
    return True


def _wanted_states(wanted: Mapping[str, Content], head: Head) -> list[FileState]:
    found = []
    for path, held in wanted.items():
        size = len(held) if isinstance(held, bytes) else held.stat().st_size
        there = head.by_path.get(path)
        state: State = "new" if there is None else "same" if sums(held).match(there) else "changed"
        found.append(FileState(path=path, size=size, state=state))
    return found


def _other_states(wanted: Mapping[str, Content], head: Head, *, kept: bool) -> list[FileState]:
    """Return what is up and not wanted: with `kept` only supplements of before go away, else all but git's own file."""
    return [
        FileState(path=file.path, size=file.size, state="same" if kept and not is_supplement(file.path) else "deleted")
        for file in head.files
        if file.path not in wanted and file.path != GIT
    ]


def _manifest_alone(order: Order, head: Head) -> dict[str, Content]:
    """Return the manifest where that which is up tells the same artifact otherwise: the very same bytes were made again."""
    manifest = order.folder / MANIFEST
    return {MANIFEST: manifest} if head.artifact != order.artifact and is_regular(manifest) else {}


def _artifact_files(order: Order) -> dict[str, Content]:
    """Return the files to upload: those of the manifest and the manifest itself, each a regular file with the recorded checksum."""
    folder, artifact = order.folder, order.artifact
    hint = "remove its folder and run modelpress run: it is then pressed again"
    for file in artifact.files:
        if not is_file(folder / file.path, file):
            raise BadCheckpoint(f"{file.path} of variant {artifact.variant_id} is not the file that was judged", hint=hint)
    manifest = folder / MANIFEST
    try:
        found = from_json(Artifact, manifest.read_bytes(), where=MANIFEST)
    except (OSError, BadDocument) as error:
        raise BadCheckpoint(f"variant {artifact.variant_id} has no readable {MANIFEST}: {error}", hint=hint) from error
    if found.digest != artifact.digest or not is_regular(manifest):
        raise BadCheckpoint(f"{MANIFEST} of variant {artifact.variant_id} names artifact {found.digest}, not {artifact.digest}", hint=hint)
    return {**{file.path: folder / file.path for file in artifact.files}, MANIFEST: manifest}


def _lacks_licence(order: Order, head: Head) -> bool:
    """Whether the head lacks what the base's licence wants passed on, as the gate's `files` asks for it."""
    candidate = order.base.candidate
    demanded = policy.demands(candidate.license, candidate.license_name)
    return bool(gate.not_passed_on(demanded, candidate, {file.path for file in order.artifact.files}, set(head.by_path)))


def _licence_files(order: Order, client: HubClient) -> dict[str, Content]:
    """Return what the base's licence demands beside the artifact's own files: licence texts of the base, a NOTICE.

    Raises `PolicyRefusal` when a copy of the licence's text is demanded and neither the artifact nor the base holds one.
    """
    candidate = order.base.candidate
    demanded = policy.demands(candidate.license, candidate.license_name)
    held = {file.path for file in order.artifact.files}
    wanted = [file.path for file in candidate.files if gate.is_licence_file(file.path, demanded) and file.path not in held]
    files: dict[str, Content] = {}
    if wanted:
        folder = client.download(candidate.ref, patterns=wanted)
        files.update({path: (folder / path).read_bytes() for path in wanted})
    if demanded.agreement and not any(path.upper().startswith(gate.AGREEMENT) for path in (*held, *files)):
        raise PolicyRefusal(
            f"{order.repo_id} is not published: its licence {demanded.license} must be passed on as a copy, and no LICENSE file is there",
            hint="add the base to policy.banned, or publish it by hand with its licence",
        )
    if demanded.notice:
        words = f"The weights were changed from those of {candidate.ref.repo_id} at commit {candidate.ref.sha}; README.md says how."
        name = next((name for name in gate.NOTICES if name not in held and name not in files), gate.NOTICES[-1])
        files[name] = f"{demanded.notice}\n\n{words}\n".encode()
    return files


def is_regular(path: Path) -> bool:
    """Whether the path is a file itself; a link to one would be followed on upload."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def is_file(path: Path, file: ArtifactFile) -> bool:
    """Whether a path is a file itself with the recorded size and checksum."""
    return is_regular(path) and path.stat().st_size == file.size and sums(path).sha256 == file.sha256
