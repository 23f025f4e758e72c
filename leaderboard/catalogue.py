"""The catalogue on the Hub: one collection per base model with its released variants, kept as the database says. Docs: docs/catalogue.md.

The base stands first, then what is meant for serving from the largest to the smallest, then research variants; a retired release is
taken out. What other people put into a collection stays where it is. A collection that is right already is only read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hub import names
from hub.codec import content_id
from hub.collections import DESCRIPTION, NOTE, TITLE, Collection, Collections, moves
from hub.domain import ModelRef
from hub.errors import HubNotFound
from hub.history import BaseRecord, Release, VariantRecord
from leaderboard import stats, text
from leaderboard.words import as_large

if TYPE_CHECKING:
    from hub.client import HubClient
    from hub.store import Store

_ENDING = ", pressed"
_ABOUT = "A model and its smaller variants, the largest first; each card tells what it gains and costs."[:DESCRIPTION]
_BASE_NOTE = "The base model, as it is."


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """What the collection of a base model is to hold: repositories with their notes, in order.

    `ours` are all repositories with a release of it: of these, those without a place are taken out.
    """

    base: str
    namespace: str
    places: Mapping[str, str]
    ours: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Synced:
    """A collection as it is now: its page, how much was written, and the recorded releases that the Hub does not have."""

    base: str
    url: str
    writes: int
    missing: tuple[str, ...]


def title(repo_id: str) -> str:
    """Return the title of a base model's collection: of plain ASCII, at most 60 characters, another one for each base."""
    safe = re.sub(r"[^A-Za-z0-9._/-]+", "_", text.plain(repo_id))
    room = TITLE - len(_ENDING)
    if safe != repo_id or not 0 < len(safe) <= room:
        mark = content_id(repo_id)[:8]
        safe = f"{safe[: room - len(mark) - 1]}-{mark}"
    return f"{safe}{_ENDING}"


def shelves(records: Sequence[VariantRecord], bases: Sequence[BaseRecord], broken: AbstractSet[str] = frozenset()) -> list[Shelf]:
    """Return what the collection of each base model with releases is to hold, oldest base first.

    `records` are the variants that repositories hold now, `broken` the ids of those that did not pass the last look at them.
    """
    known = {base.candidate.ref: base for base in bases}
    families: dict[str, list[tuple[VariantRecord, Release]]] = {}
    for record in records:
        if record.release:
            families.setdefault(record.base.repo_id, []).append((record, record.release))
    return [_shelf(base, family, known, broken) for base, family in families.items()]


def _shelf(
    base: str, family: Sequence[tuple[VariantRecord, Release]], known: Mapping[ModelRef, BaseRecord], broken: AbstractSet[str]
) -> Shelf:
    newest = max((release for _, release in family), key=lambda release: (release.released_at, release.repo_id))
    shown = [(record, release) for record, release in family if release.retired_at is None and record.variant_id not in broken]
    shown.sort(key=lambda pair: (pair[0].recipe.track != "serving", -_bytes(pair[0]), pair[1].repo_id))
    return Shelf(
        base=base,
        namespace=newest.repo_id.split("/")[0],
        places={release.repo_id: note(record, known.get(record.base)) for record, release in shown},
        ours=frozenset(release.repo_id for _, release in family),
    )


def _bytes(record: VariantRecord) -> int:
    return record.artifact.bytes if record.artifact else 0


def note(record: VariantRecord, base: BaseRecord | None) -> str:
    """Return what a variant's place says: what it is, its size and its KL divergence against the base, what takes its place."""
    parts = []
    beside = stats.compare(record, base) if base else None
    if beside and beside.size and beside.size.value > 0:
        gain = 1 / beside.size.value
        factor = f"{text.number(gain, 2)}× smaller" if gain > 1 else f"{text.number(beside.size.value, 2)}× as large"
        parts.append("as large as the base" if as_large(beside.size) else factor)
    if beside and beside.kl_divergence:
        parts.append(f"KL {text.uncertain(beside.kl_divergence)}")
    sentences = [f"{record.recipe.title}: {', '.join(parts)}" if parts else record.recipe.title]
    if record.recipe.track == "research":
        sentences.append("Research: it shows what the method does to quality")
    if record.release and record.release.new_version:
        sentences.append(f"Take {record.release.new_version} instead")
    return text.plain(". ".join(sentences) + ".")[:NOTE]


def sync(shelf: Shelf, client: HubClient, store: Store) -> Synced | None:
    """Bring a base model's collection to what it is to hold; None where it is to hold nothing and there is none.

    `client` must be one that may write. Safe to be cut off anywhere and done again.
    """
    writer = _Writer(Collections(client, shelf.namespace), store)
    found = writer.found(title(shelf.base), [shelf.base, *shelf.places][:2])
    if found is None:
        if not shelf.places:
            return None
        found = writer.made(title(shelf.base))
    held = {item.repo_id for item in found.items}
    has_base = shelf.base in held or (names.repo_id_fault(shelf.base) is None and client.exists(shelf.base))
    wanted = {**({shelf.base: _BASE_NOTE} if has_base else {}), **shelf.places}
    found = writer.without(found, (held & shelf.ours) - wanted.keys())
    for repo_id, words in wanted.items():
        found = writer.holding(found, repo_id, words)
    writer.order(found, list(wanted))
    return Synced(base=shelf.base, url=found.url, writes=writer.writes, missing=tuple(writer.missing))


class _Writer:
    """Changes a collection where it is not as it should be, and notes each change for the Hub's limits."""

    def __init__(self, collections: Collections, store: Store) -> None:
        self._collections, self._store = collections, store
        self.writes = 0
        self.missing: list[str] = []

    def _wrote(self, slug: str) -> None:
        self.writes += 1
        self._store.record_hub_write("collection", slug, 0)

    def found(self, name: str, holding: Iterable[str]) -> Collection | None:
        """Look by what it holds: a list of all that an owner has may be long, and a base may be gone from the Hub."""
        return next((found for repo_id in holding if (found := self._collections.find(name, holding=repo_id))), None)

    def made(self, name: str) -> Collection:
        found = self._collections.make(name, _ABOUT)
        self._wrote(found.slug)
        return found

    def without(self, found: Collection, gone: AbstractSet[str]) -> Collection:
        for item in found.items:
            if item.repo_id in gone:
                self._collections.remove(found.slug, item)
                self._wrote(found.slug)
        return replace(found, items=tuple(item for item in found.items if item.repo_id not in gone))

    def holding(self, found: Collection, repo_id: str, words: str) -> Collection:
        item = next((item for item in found.items if item.repo_id == repo_id), None)
        if item is None:
            try:
                found = self._collections.add(found.slug, repo_id, words)
            except HubNotFound:
                self.missing.append(repo_id)
                return found
            self._wrote(found.slug)
        elif item.note != words:
            self._collections.change(found.slug, item, note=words)
            self._wrote(found.slug)
        return found

    def order(self, found: Collection, wanted: Sequence[str]) -> None:
        items = {item.key: item for item in found.items}
        keys = {item.repo_id: item.key for item in found.items if item.repo_id}
        for key, place in moves(list(items), [keys[repo_id] for repo_id in wanted if repo_id in keys]):
            self._collections.change(found.slug, items[key], position=place)
            self._wrote(found.slug)
