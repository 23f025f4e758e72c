"""Releases: what passed the gate goes to the Hub in one commit, and the gate looks again at the bytes that the Hub serves.

This is the only module that writes releases to the Hub. What a commit changes is written down before it is sent, so a run that was killed
finds its own commit again; what lies there already is not sent again, and nothing is replaced in silence. Docs: docs/publishing.md.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub import headers
from hub.budget import DAY, hub_refusal
from hub.domain import Artifact, ModelRef
from hub.errors import BadCheckpoint, GateRefusal, HubConflict, HubNotFound, OverBudget, StoreError
from hub.history import BaseRecord, HubWrite, Release, ReleaseChange, VariantRecord
from hub.protocol import Protocol
from leaderboard import claims, gate, looks, notices, stats
from leaderboard.cards import Extras
from leaderboard.naming import Names
from leaderboard.proposal import CARD, Head, Order, Proposal, identity, lies_whole, look, propose, unchanged
from leaderboard.retirement import withdrawn_as
from leaderboard.rights import gated_today

if TYPE_CHECKING:
    from hub.client import HubClient
    from hub.settings import Settings
    from hub.store import Store

_TRIES = 3


class Publisher:
    """Sends releases of one work folder; what the store held when it was made, or `look_again` was called, is what cards are written from.

    With a `client` that may only read it can still `preview`.
    """

    def __init__(self, *, store: Store, client: HubClient, settings: Settings, artifacts_dir: Path) -> None:
        self._store, self._client, self._settings, self._artifacts = store, client, settings, artifacts_dir
        self.look_again()

    def look_again(self) -> None:
        """Read records, base models and protocols from the store anew."""
        bases = self._store.bases()
        self._bases = {base.candidate.ref: base for base in bases}
        self.records = tuple(self._store.variants())
        # Of two with one name the later: an older program's may have been flat.
        self._protocols = {job.job.protocol.name: job.job.protocol for job in self._store.jobs() if job.job.protocol}
        self.names = Names(self.records, bases, self.namespace)
        self._withdrawn = frozenset(map(withdrawn_as, self.records))
        broken = looks.broken(self._store, self.records)
        self._sound = frozenset(record.variant_id for record in self.released() if record.variant_id not in broken)
        self._coming = frozenset(record.variant_id for record in self.ready())

    @cached_property
    def namespace(self) -> str:
        """The user or organisation under which is published."""
        return self._settings.hub.namespace or self._client.account().name

    def suppose(self, successors: Mapping[str, str | None]) -> None:
        """Look at releases as if these repositories (None: none), by variant id, were noted as taking their place."""
        self.records = tuple(
            replace(record, release=replace(record.release, new_version=successors[record.variant_id]))
            if record.release and record.variant_id in successors
            else record
            for record in self.records
        )

    # What there is to do

    def ready(self) -> list[VariantRecord]:
        """Return the variants that the gate let through and whose repositories do not hold them yet, in the order of the plan."""
        current = self._store.published.current()
        ready = []
        for repo_id, record in self.names.newest().items():
            known = current.get(repo_id)
            if repo_id in self._withdrawn or (known and known.retired_at):
                continue  # it gets no other artifact until that is taken back
            held = (known.variant_id, known.artifact_digest) if known else None
            if record.artifact and held != (record.variant_id, record.artifact.digest):
                ready.append(record)
        return ready

    def released(self) -> list[VariantRecord]:
        """Return the variants that repositories hold now, as they were released."""
        current = {release.variant_id: release for release in self._store.published.current().values()}
        return [
            record
            for record in self.records
            if record.variant_id in current
            and record.artifact
            and record.base in self._bases
            and record.artifact.digest == current[record.variant_id].artifact_digest
        ]

    def is_stale(self, record: VariantRecord, *, coming: bool = False) -> bool:
        """Whether a released variant's card or supplements may differ from what is up; the Hub is not asked.

        With `coming`: once what is ready is published.
        """
        return record.release is not None and record.artifact is not None and not unchanged(self._released_order(record, coming=coming))

    def limit(self, *, size: int, repository: bool, coming: Sequence[HubWrite] = ()) -> str:
        """Return which daily limit keeps a commit from the Hub now, after those that are `coming`; empty where none does.

        `size` are an artifact's bytes, 0 for a card; `repository`: one is to be made for it.
        """
        no_matter: dict[str, float] = {**({} if repository else {"repos_per_day": 0}), **({} if size else {"storage_gib": 0.0})}
        settings = self._settings.budget.model_copy(update=no_matter)
        sizes = {record.variant_id: record.artifact.bytes for record in self.records if record.artifact}
        stored = sum(sizes.get(release.variant_id, 0) for release in self._store.releases()) + sum(write.bytes for write in coming)
        writes = (*self._store.hub_writes(time.time() - DAY), *coming)
        return hub_refusal(settings, writes, stored_bytes=stored, wanted_bytes=size)

    # Doing it

    def publish(self, record: VariantRecord) -> Release:
        """Publish a variant's artifact with card and supplements in one commit, record the release and return it.

        Raises `GateRefusal` when the gate has not let exactly these bytes through or the card says what they contradict, `BadCheckpoint`
        when the files on disk are not those that were judged, `PolicyRefusal` when the base's rights do not allow it (by today's settings)
        or the repository holds what ModelPress did not publish, `OverBudget` where a daily limit is in the way.
        """
        order = self._new_order(record)
        self._require_room(order.artifact.bytes, repository=order.known is None)  # before files are read for nothing
        return self._place(order)

    def refresh(self, record: VariantRecord) -> Release | None:
        """Bring card and supplements of a released variant up to date in one commit; None where nothing has changed.

        Nothing is sent where another artifact is found to have taken its place meanwhile. Files that did not change are neither looked for
        on this disk nor sent. Raises `HubNotFound` where the repository is gone.
        """
        order = self._released_order(record)
        if unchanged(order):
            return None
        before, after = order.known, self._place(order, must_exist=True)
        same = (after.variant_id, after.artifact_digest) == (record.variant_id, order.artifact.digest)
        return after if same and (before is None or after.sha != before.sha) else None

    def preview(self, record: VariantRecord) -> Proposal:
        """Return what `publish` or `refresh` would send for a variant, beside what is up; nothing is written anywhere.

        Raises what these would raise.
        """
        held = record.release.artifact_digest if record.release else None
        same = record.artifact is not None and record.artifact.digest == held
        order = self._released_order(record, coming=True) if same else self._new_order(record)
        head = look(self._client, order.repo_id, record.base.repo_id)
        landed = self._landed(order, head)
        order = replace(order, changes=(*order.changes, replace(landed, sha=head.sha))) if landed else order
        proposal = propose(order, head, self._client, self._store, at=_now())
        if not proposal.empty:
            self._judge(proposal)
        return proposal

    # How

    def _released_order(self, record: VariantRecord, *, coming: bool = False) -> Order:
        if record.release is None or record.artifact is None:
            raise StoreError(f"variant {record.variant_id} has no release", hint="publish it first")
        base = self._base(record)
        gated = base.candidate.gated is not None
        return self._order(record, record.artifact, base, repo_id=record.release.repo_id, gated=gated, coming=coming)

    def _new_order(self, record: VariantRecord) -> Order:
        artifact, base = _passed(record), self._base(record)
        gated = gated_today(record, base, self._client, self._settings)
        return self._order(record, artifact, base, repo_id=self._named(record), gated=gated, coming=True)

    def _base(self, record: VariantRecord) -> BaseRecord:
        base = self._bases.get(record.base)
        if base is None:
            raise StoreError(f"the database does not hold {record.base.repo_id} as the Hub listed it", hint="run modelpress discover")
        return base

    def _order(self, record: VariantRecord, artifact: Artifact, base: BaseRecord, *, repo_id: str, gated: bool, coming: bool) -> Order:
        """Return what is to be placed.

        Its card recommends what can be downloaded and did not fail the last look at it; where they are `coming`, also what will be up.
        """
        siblings = [other for other in self.records if other.base == record.base and self.names.of(other) not in self._withdrawn]
        recommended = self._sound | self._coming if coming else self._sound
        return Order(
            record=record,
            artifact=artifact,
            base=base,
            siblings=siblings,
            repo_id=repo_id,
            gated=gated,
            folder=self._artifacts / record.variant_id,
            extras=replace(self._extras(record, base, siblings, repo_id), recommended=recommended),
            known=self._store.published.at(repo_id),
            changes=self._store.published.changes(repo_id),
            hub_url=self._client.endpoint,
        )

    def _named(self, record: VariantRecord) -> str:
        """Return where a variant is to be published; refuse where it is released elsewhere."""
        repo_id = self.names.of(record)
        if record.release and record.release.repo_id != repo_id:
            raise StoreError(
                f"variant {record.variant_id} is released already as {record.release.repo_id}, so not as {repo_id}",
                hint="a variant is released in one place; hub.namespace was another then",
            )
        return repo_id

    def _extras(self, record: VariantRecord, base: BaseRecord, siblings: Sequence[VariantRecord], repo_id: str) -> Extras:
        beside = stats.shared_protocol(record.measurements, base.measurements)
        others = sorted({one.protocol for one in record.measurements} - {beside})
        known: dict[str, Protocol] = self._protocols
        published = self._store.published
        return Extras(
            protocol=known.get(beside or ""),
            further=tuple(known[name] for name in others if name in known),
            sibling_repos=tuple((other.variant_id, self.names.of(other)) for other in siblings if gate.let_through(other)),
            audit=notices.newest(record, published.audits(record.variant_id), published.changes(repo_id)),
        )

    def _place(self, order: Order, *, must_exist: bool = False) -> Release:
        """Return the release once the repository holds all of it: at the head, where it lies there already, otherwise in a new commit."""
        for left in reversed(range(_TRIES)):
            head = look(self._client, order.repo_id, order.record.base.repo_id)
            if head.sha is None and must_exist:
                raise HubNotFound(
                    f"{order.repo_id} is not on the Hub any more, though it was released",
                    hint="modelpress retire REPO --delete --yes forgets it; with --undo after that it is published anew",
                )
            order = self._caught_up(order, head)
            known = order.known
            if known and must_exist and not order.is_known:
                return known  # this one's card lies nowhere any more
            proposal = propose(order, head, self._client, self._store, at=_now())
            if known and proposal.empty and known.variant_id == order.record.variant_id:
                if order.gated:
                    self._client.create(order.repo_id, gated="auto")
                return known if known.sha == head.sha else self._found(proposal, known)
            try:
                return self._send(proposal)
            except HubConflict:
                # Someone committed meanwhile: look at what is there now before anything is replaced.
                if not left:
                    raise
        raise AssertionError("unreachable")

    def _found(self, proposal: Proposal, known: Release) -> Release:
        """Record that all that is wanted lies at another commit than was known: somebody added a file, or our own record was older."""
        order = proposal.order
        if not order.changes or order.changes[-1].content != proposal.change.content:
            self._store.published.begin(proposal.change)
        return self._settle(order, proposal.head.sha or "", known.released_at, _sha256(proposal.card))

    def _caught_up(self, order: Order, head: Head) -> Order:
        """Settle what had landed although nobody could note it: a change begun before, or a release of which the record was lost."""
        store = self._store
        landed = self._landed(order, head)
        known = order.known
        strange = known is None or known.variant_id != order.record.variant_id
        if landed is None and order.holds_ours(head) and strange and lies_whole(order, head, self._client):
            what = f"artifact {order.artifact.digest} found at commit {(head.sha or '')[:8]}; the record of its release was lost"
            landed = ReleaseChange(repo_id=order.repo_id, at=_now(), kind="released", what=what, content=f"{identity(order.artifact)}:")
            store.published.begin(landed)
        if landed is None or head.artifact is None or store.variant(head.artifact.variant_id) is None:
            return order
        card = self._client.read_text(order.repo_id, head.sha or "", CARD, listed=head.files)
        card_sha256 = _sha256(card) if card is not None else None
        there = replace(order, record=replace(order.record, variant_id=head.artifact.variant_id), artifact=head.artifact)
        self._settle(there, head.sha or "", landed.at, card_sha256)
        return replace(order, known=store.published.at(order.repo_id), changes=store.published.changes(order.repo_id))

    def _landed(self, order: Order, head: Head) -> ReleaseChange | None:
        """Return the change that was begun and whose commit lies at the head, unnoted because its sender died; None where there is none."""
        begun = self._store.published.begun(order.repo_id)
        if begun is None or head.artifact is None or (order.known and order.known.sha == head.sha):
            return None
        return begun if begun.content.startswith(f"{identity(head.artifact)}:") else None

    def _send(self, proposal: Proposal) -> Release:
        """Commit a proposal and record it. The order matters: what is about to be done is noted before, what was done after."""
        order, store, client = proposal.order, self._store, self._client
        self._require_room(proposal.artifact_bytes, repository=proposal.head.sha is None)
        self._judge(proposal)
        store.published.begin(proposal.change)
        parent = proposal.head.sha
        if parent is None:
            store.record_hub_write("repo", order.repo_id, 0)
        client.create(order.repo_id, gated="auto" if order.gated else None)
        if parent is None:
            # A repository that has just been made may have a first commit of its own; what somebody else put there meanwhile is left alone.
            made = look(client, order.repo_id, order.record.base.repo_id)
            if made.artifact is not None:
                raise HubConflict(f"{order.repo_id} was filled by another while it was made", hint="Run the command again.")
            parent = made.sha
        store.record_hub_write("commit", order.repo_id, proposal.size)
        sha = client.commit(order.repo_id, proposal.sent, message=proposal.message, parent=parent, deleted=proposal.deleted)
        return self._settle(order, sha, proposal.change.at, _sha256(proposal.card))

    def _require_room(self, size: int, *, repository: bool) -> None:
        if over := self.limit(size=size, repository=repository):
            raise OverBudget(over, hint="modelpress publish goes on later; the limits stand under [budget] in modelpress.toml")

    def _settle(self, order: Order, sha: str, released_at: str, card_sha256: str | None) -> Release:
        return self._store.published.settle(
            Release(
                variant_id=order.record.variant_id,
                repo_id=order.repo_id,
                sha=sha,
                artifact_digest=order.artifact.digest,
                url=self._client.url(order.repo_id),
                released_at=released_at,
                card_sha256=card_sha256,
            )
        )

    def _judge(self, proposal: Proposal) -> None:
        """Raise `GateRefusal` for a card that the bytes contradict, or whose front matter the Hub does not take."""
        order = proposal.order
        config, tensors = self._contents(proposal)
        lies = claims.contradictions(
            proposal.card,
            repo_id=order.repo_id,
            config=config,
            tensors=tensors,
            manifest=order.artifact,
            base=order.base.candidate,
            files={file.path: (file.size, file.sha256) for file in order.artifact.files},
        )
        if lies:
            raise GateRefusal(
                f"the card of {order.repo_id} says what its files contradict: {' '.join(lie.detail for lie in lies)}",
                hint="this is a fault of ModelPress: report it with the names of base and recipe",
            )
        if faults := self._client.validate_card(proposal.card):
            raise GateRefusal(
                f"the Hub does not take the card of {order.repo_id}: {'; '.join(faults)}", hint="see what the base's own card says"
            )

    def _contents(self, proposal: Proposal) -> tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]:
        """Return config.json and the tensors' dtypes and shapes: of the folder where its files are there, else of what is up."""
        order, head = proposal.order, proposal.head
        if all((order.folder / file.path).is_file() for file in order.artifact.files):
            path = order.folder / "config.json"
            return _json(path.read_text(encoding="utf-8")) if path.is_file() else {}, headers.outlines(order.folder)
        text = self._client.read_text(order.repo_id, head.sha or "", "config.json", listed=head.files)
        if not any(path.endswith(".safetensors") for path in head.by_path):
            return _json(text), {}
        return _json(text), self._client.tensors(ModelRef(repo_id=order.repo_id, sha=head.sha or ""))


def _json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise BadCheckpoint(f"config.json is not valid JSON: {error}", hint="press the variant again") from error
    return found if isinstance(found, dict) else {}


def _sha256(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()


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
