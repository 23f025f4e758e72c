"""Collections: ordered lists of repositories and papers with notes."""

from __future__ import annotations

import re
import secrets
import sqlite3
from typing import Any

from starlette.responses import Response

from hub.local import info, repos
from hub.local.repos import now
from hub.local.web import ApiError, Call

TYPES = ("model", "dataset", "space", "paper", "collection")
# The Hub's own limits, in characters: what is longer is refused.
TITLE, DESCRIPTION, NOTE = 60, 150, 500


def _slug(row: sqlite3.Row) -> str:
    words = "-".join(re.findall(r"[a-z0-9]+", row["title"].lower()))[:60]
    return f"{row['owner']}/{words}-{row['id']}" if words else f"{row['owner']}/{row['id']}"


def _row(connection: sqlite3.Connection, call: Call, *, write: bool = False) -> sqlite3.Row:
    """Return the collection that the path names: only the id at the slug's end counts, as on the Hub."""
    slug = call.params["slug"]
    row: sqlite3.Row | None = connection.execute("SELECT * FROM collections WHERE id = ?", (slug[-24:],)).fetchone()
    own = call.account is not None and call.account.owns(call.params["owner"])
    if row is None or row["owner"].lower() != call.params["owner"].lower() or (row["private"] and not own):
        raise ApiError(404, f"There is no collection {call.params['owner']}/{slug}"[:300])
    if write:
        repos.may_write(call, row["owner"])
    return row


def _shown(connection: sqlite3.Connection, call: Call, row: sqlite3.Row, *, most: int | None = None) -> dict[str, Any]:
    rows = connection.execute("SELECT * FROM items WHERE collection = ? ORDER BY position, id", (row["id"],)).fetchall()
    items = [shown for item in rows if (shown := _item(connection, call, item)) is not None][:most]
    return {
        "slug": _slug(row),
        "title": row["title"],
        "description": row["description"],
        "owner": row["owner"],
        "private": bool(row["private"]),
        "theme": row["theme"],
        "position": row["position"],
        "upvotes": 0,
        "lastUpdated": row["updated_at"],
        "items": [item | {"position": place} for place, item in enumerate(items)],
    }


def _item(connection: sqlite3.Connection, call: Call, item: sqlite3.Row) -> dict[str, Any] | None:
    """Return an item as it is shown; None of a repository that the caller may not see."""
    shown: dict[str, Any] = {"_id": item["id"], "id": item["item"], "type": item["type"]}
    if item["note"]:
        shown["note"] = {"text": item["note"], "html": ""}
    if item["type"] not in repos.KINDS:
        return shown
    owner, _, name = item["item"].partition("/")
    repo = repos.find(connection, item["type"], owner, name)
    if repo is None or not repos.may_see(call, repo):
        return None
    return shown | info.identity(repo) | {"_id": item["id"], "downloads": repo.downloads, "likes": repo.likes, "private": repo.private}


def forget(connection: sqlite3.Connection, kind: str, name: str) -> None:
    """Take a repository that is deleted out of all collections."""
    connection.execute("DELETE FROM items WHERE type = ? AND item = ?", (kind, name))


def rename(connection: sqlite3.Connection, kind: str, before: str, after: str) -> None:
    """Let collections hold a repository under its new name."""
    connection.execute("UPDATE items SET item = ? WHERE type = ? AND item = ?", (after, kind, before))


def listing(call: Call) -> list[dict[str, Any]]:
    """GET /api/collections?owner=&item=&sort=&limit=; each with its first four items."""
    owners = [owner.lower() for owner in call.query.get("owner", [])]
    limit = call.one("limit", "100")
    with call.hub.database.read() as connection:
        rows = connection.execute("SELECT * FROM collections ORDER BY updated_at DESC").fetchall()
        found = []
        for row in rows:
            if (owners and row["owner"].lower() not in owners) or (
                row["private"] and not (call.account and call.account.owns(row["owner"]))
            ):
                continue
            held = {
                f"{item['type']}s/{item['item']}" for item in connection.execute("SELECT * FROM items WHERE collection = ?", (row["id"],))
            }
            if all(item in held for item in call.query.get("item", [])):
                shown = _shown(connection, call, row, most=4)
                found.append({key: value for key, value in shown.items() if key != "position"})  # the client numbers them itself
    return found[: int(limit) if limit.isdecimal() and len(limit) < 9 else 100]


def create(call: Call) -> dict[str, Any]:
    """POST /api/collections; 409 with its `slug` where the owner has one of this title."""
    title, owner = call.text("title").strip(), repos.owner_for(call, call.json().get("namespace"))
    _check("title", title, TITLE, least=1)
    repos.may_write(call, owner)
    description, private = call.json().get("description"), call.json().get("private") is True
    _check("description", description or "", DESCRIPTION)
    with call.hub.database.write() as connection:
        row = connection.execute("SELECT * FROM collections WHERE owner = ? AND title = ?", (owner, title)).fetchone()
        if row is not None:
            raise ApiError(409, "This collection already exists", slug=_slug(row))
        identity = secrets.token_hex(12)
        connection.execute(
            "INSERT INTO collections (id, owner, title, description, private, updated_at) VALUES (?, ?, ?, ?, ?, ?)",
            (identity, owner, title, description if isinstance(description, str) else None, private, now()),
        )
        return _shown(connection, call, connection.execute("SELECT * FROM collections WHERE id = ?", (identity,)).fetchone())


def show(call: Call) -> dict[str, Any]:
    """GET /api/collections/{slug}."""
    with call.hub.database.read() as connection:
        return _shown(connection, call, _row(connection, call))


def update(call: Call) -> dict[str, Any]:
    """PATCH /api/collections/{slug} {title, description, position, private, theme}."""
    kinds: dict[str, type] = {"title": str, "description": str, "position": int, "private": bool, "theme": str}
    with call.hub.database.write() as connection:
        row = _row(connection, call, write=True)
        for key, value in call.json().items():
            if key not in kinds or not isinstance(value, kinds[key]):
                raise ApiError(400, f"{key!r:.60} cannot be set to {value!r:.100}")
            if key in ("title", "description"):
                _check(key, value, TITLE if key == "title" else DESCRIPTION, least=key == "title")
            connection.execute(f"UPDATE collections SET {key} = ? WHERE id = ?", (value, row["id"]))  # noqa: S608 - a key of `kinds`
        _touch(connection, row)
        return {"success": True, "data": _shown(connection, call, _row(connection, call))}


def delete(call: Call) -> Response:
    """DELETE /api/collections/{slug}."""
    with call.hub.database.write() as connection:
        connection.execute("DELETE FROM collections WHERE id = ?", (_row(connection, call, write=True)["id"],))
    return Response(status_code=200)


def add_item(call: Call) -> dict[str, Any]:
    """POST /api/collections/{slug}/items {item: {id, type}, note}; 409 where it is in already, 404 for an unknown repository."""
    item = call.json().get("item")
    name, kind = (item.get("id"), item.get("type")) if isinstance(item, dict) else (None, None)
    if not isinstance(name, str) or kind not in TYPES:
        raise ApiError(400, f"'item' must have an id and a type of {', '.join(TYPES)}, not {item!r:.120}")
    note = call.text("note", "")
    _check("note", note, NOTE)
    with call.hub.database.write() as connection:
        row = _row(connection, call, write=True)
        owner, _, rest = name.partition("/")
        if kind in repos.KINDS and ((repo := repos.find(connection, kind, owner, rest)) is None or not repos.may_see(call, repo)):
            raise ApiError(404, f"The {kind} {name!r:.120} does not exist")
        if connection.execute("SELECT 1 FROM items WHERE collection = ? AND type = ? AND item = ?", (row["id"], kind, name)).fetchone():
            raise ApiError(409, "This item is already in the collection")
        (last,) = connection.execute("SELECT max(position) FROM items WHERE collection = ?", (row["id"],)).fetchone()
        place = 0 if last is None else last + 1
        values = (secrets.token_hex(12), row["id"], name, kind, note or None, place)
        connection.execute("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", values)
        _touch(connection, row)
        return _shown(connection, call, _row(connection, call))


def update_item(call: Call) -> dict[str, Any]:
    """PATCH /api/collections/{slug}/items/{item} {note, position}."""
    with call.hub.database.write() as connection:
        row = _row(connection, call, write=True)
        item = _held(connection, call, row)
        note, position = call.json().get("note"), call.json().get("position")
        if isinstance(note, str):
            _check("note", note, NOTE)
            connection.execute("UPDATE items SET note = ? WHERE id = ?", (note, item))
        if isinstance(position, int):
            others = connection.execute(
                "SELECT id FROM items WHERE collection = ? AND id != ? ORDER BY position", (row["id"], item)
            ).fetchall()
            order = [other["id"] for other in others]
            order.insert(max(0, position), item)
            connection.executemany("UPDATE items SET position = ? WHERE id = ?", list(enumerate(order)))
        _touch(connection, row)
    return {"success": True}


def delete_item(call: Call) -> Response:
    """DELETE /api/collections/{slug}/items/{item}."""
    with call.hub.database.write() as connection:
        row = _row(connection, call, write=True)
        connection.execute("DELETE FROM items WHERE id = ?", (_held(connection, call, row),))
        _touch(connection, row)
    return Response(status_code=200)


def _held(connection: sqlite3.Connection, call: Call, row: sqlite3.Row) -> str:
    if connection.execute("SELECT 1 FROM items WHERE collection = ? AND id = ?", (row["id"], call.params["item"])).fetchone() is None:
        raise ApiError(404, f"The collection has no item {call.params['item']!r:.60}")
    return call.params["item"]


def _check(key: str, text: object, most: int, *, least: int = 0) -> None:
    if not isinstance(text, str) or not least <= len(text) <= most:
        raise ApiError(400, f"{key!r} must have {least} to {most} characters, not {text!r:.100}")


def _touch(connection: sqlite3.Connection, row: sqlite3.Row) -> None:
    connection.execute("UPDATE collections SET updated_at = ? WHERE id = ?", (now(), row["id"]))
