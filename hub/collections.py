"""Collections on the Hub: found or made by their title, read whole, and changed one item at a time.

Every change may be asked for twice (an answer that was lost, a run that was killed), and still happens once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hub.client import HubClient

TITLE, DESCRIPTION, NOTE = 60, 150, 500
"""The most characters that the Hub takes."""
_MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class Item:
    """A model's place in a collection: `key` is the place's own id; of anything but a model `repo_id` is empty."""

    key: str
    repo_id: str
    note: str


@dataclass(frozen=True, kw_only=True)
class Collection:
    """An ordered list of repositories; `slug` is its id, in which only the last 24 characters stay for ever."""

    slug: str
    title: str
    url: str
    items: tuple[Item, ...]


class Collections:
    """The collections of one owner (`namespace`: a user or an organisation), through a client whose token may write."""

    def __init__(self, client: HubClient, namespace: str) -> None:
        self._client, self._namespace = client, namespace

    def find(self, title: str, *, holding: str) -> Collection | None:
        """Return the owner's collection of this title that holds a model; None where there is none."""

        def slugs(api: Any) -> list[str]:
            listed = api.list_collections(owner=self._namespace, item=f"models/{holding}")
            return [str(one.slug) for one in listed if one.title == title]

        found = self._client.call(f"the collections of {self._namespace}", slugs)
        return self._get(found[0]) if found else None

    def make(self, title: str, description: str) -> Collection:
        """Return the owner's collection of this title, made now unless there is one."""

        def made(api: Any) -> Collection:
            return _collection(api.create_collection(title, namespace=self._namespace, description=description, exists_ok=True))

        return self._client.call(f"the making of the collection {title}", made)

    def add(self, slug: str, repo_id: str, note: str) -> Collection:
        """Put a model at the end of a collection unless it is in, and return all of it; `HubNotFound` where there is no such model."""

        def added(api: Any) -> Collection:
            return _collection(api.add_collection_item(slug, repo_id, _MODEL, note=note, exists_ok=True))

        return self._client.call(f"{repo_id} in the collection {slug}", added)

    def change(self, slug: str, item: Item, *, note: str | None = None, position: int | None = None) -> None:
        """Give an item another note, or move it to a position (0 is the first); None: as it was."""
        self._client.call(
            f"{item.repo_id} in the collection {slug}",
            lambda api: api.update_collection_item(slug, item.key, note=note, position=position),
        )

    def remove(self, slug: str, item: Item) -> None:
        """Take an item out; one that is out already stays out."""
        self._client.call(
            f"{item.repo_id} in the collection {slug}", lambda api: api.delete_collection_item(slug, item.key, missing_ok=True)
        )

    def _get(self, slug: str) -> Collection:
        return self._client.call(f"the collection {slug}", lambda api: _collection(api.get_collection(slug)))


def moves(items: Sequence[str], wanted: Sequence[str]) -> list[tuple[str, int]]:
    """Return what to move where, one after the other, so that `wanted` stand in their order; what else is in `items` keeps its place.

    Each move takes one item out and puts it in at a position, as the Hub does.
    """
    order = iter([one for one in wanted if one in items])
    aim = [next(order) if one in wanted else one for one in items]
    now, steps = list(items), []
    for place, one in enumerate(aim):
        if now[place] != one:
            now.remove(one)
            now.insert(place, one)
            steps.append((one, place))
    return steps


def _collection(found: Any) -> Collection:
    return Collection(
        slug=str(found.slug),
        title=str(found.title),
        url=str(found.url),
        items=tuple(
            Item(key=str(item.item_object_id), repo_id=str(item.item_id) if item.item_type == _MODEL else "", note=item.note or "")
            for item in found.items
        ),
    )
