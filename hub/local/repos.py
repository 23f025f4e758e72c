"""Repositories: names, finding one with the right to see it, create, delete, move, settings."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from hub.local.accounts import USER, Account
from hub.local.web import ApiError, Call

KINDS = ("model", "dataset", "space")
_NAME = re.compile(r"[A-Za-z0-9_](?:[\w.-]*[\w])?", re.ASCII)
_RESERVED = (".git", ".ipynb")
_PLACES = ("api", "collections", "datasets", "health", "lfs", "models", "spaces")


def now() -> str:
    """Return the time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@dataclass(frozen=True, kw_only=True)
class Repo:
    """A repository's row; `gated` is empty, auto or manual."""

    key: int
    kind: str
    owner: str
    name: str
    created_at: str
    modified_at: str
    private: bool
    gated: str
    downloads: int
    likes: int
    trending: float

    @property
    def id(self) -> str:
        """`owner/name`."""
        return f"{self.owner}/{self.name}"

    @property
    def object_id(self) -> str:
        """24 hexadecimal digits, as the Hub's database ids look."""
        return hashlib.sha256(f"{self.kind} {self.key} {self.created_at}".encode()).hexdigest()[:24]

    @property
    def web_path(self) -> str:
        """The path of its page: models lie at the root, the others under their kind."""
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"


def from_row(row: sqlite3.Row) -> Repo:
    """Read a row of the table `repos`."""
    return Repo(
        key=row["id"],
        kind=row["kind"],
        owner=row["owner"],
        name=row["name"],
        created_at=row["created_at"],
        modified_at=row["modified_at"],
        private=bool(row["private"]),
        gated=row["gated"],
        downloads=row["downloads"],
        likes=row["likes"],
        trending=row["trending"],
    )


def check_name(name: str) -> None:
    """Refuse a repository or owner name that the Hub would refuse."""
    if not _NAME.fullmatch(name) or len(name) > 96 or "--" in name or ".." in name or name.lower().endswith(_RESERVED):
        raise ApiError(
            400,
            f"Invalid name {name!r:.120}: names are 1 to 96 of A-Z a-z 0-9 - _ . and hold no '--' or '..', "
            "nor begin or end with '-' or '.', nor end with .git or .ipynb",
        )


def check_owner(owner: str) -> None:
    """Refuse a namespace that could not be told from a part of the hub's own addresses."""
    check_name(owner)
    if owner.lower() in _PLACES:
        raise ApiError(400, f"{owner!r} is not a possible namespace")


def find(connection: sqlite3.Connection, kind: str, owner: str, name: str) -> Repo | None:
    """Return the repository of this name, or None."""
    row = connection.execute("SELECT * FROM repos WHERE kind = ? AND owner = ? AND name = ?", (kind, owner, name)).fetchone()
    return from_row(row) if row else None


def kind_of(call: Call) -> str:
    """Return the kind that the path names (`models` gives model); a path without one is about a model."""
    first = call.path.split("/")[1]
    kind = call.params.get("kind", first if first in ("datasets", "spaces") else "models").removesuffix("s")
    if kind not in KINDS:
        raise ApiError(404, f"Nothing is at {call.path}")
    return kind


def visible(call: Call, connection: sqlite3.Connection) -> Repo:
    """Return the repository that the path names; 404 (401 without a token) if there is none or it is private, 307 if it moved."""
    kind, owner, name = kind_of(call), call.params["owner"], call.params["name"]
    repo = find(connection, kind, owner, name)
    if repo is None:
        _follow_move(call, connection, kind, owner, name)
    if repo is None or not may_see(call, repo):
        raise not_found(call)
    return repo


def writable(call: Call, connection: sqlite3.Connection) -> Repo:
    """Return the repository that the path names, if the caller may write to it."""
    repo = visible(call, connection)
    may_write(call, repo.owner)
    return repo


def may_see(call: Call, repo: Repo) -> bool:
    """Tell whether the caller may know of the repository."""
    return not repo.private or (call.account is not None and call.account.owns(repo.owner))


def may_contribute(call: Call) -> Account:
    """Refuse callers that may not even open a pull request or a discussion: 401 without a token, 403 with one that only reads."""
    if call.account is None:
        raise ApiError(401, "Invalid username or password.")
    if call.account.role != "write":
        raise ApiError(403, "This token may only read; use one with the role write")
    return call.account


def may_write(call: Call, namespace: str) -> None:
    """Refuse callers that may not write to a namespace: 401 without a token, 403 with one."""
    account = may_contribute(call)
    if not account.owns(namespace):
        raise ApiError(403, f"{account.name} has no right to write to the namespace {namespace!r:.120}")


def may_download(call: Call, connection: sqlite3.Connection, repo: Repo) -> None:
    """Refuse the files of a gated repository to those without access."""
    if not repo.gated or (call.account is not None and call.account.owns(repo.owner)):
        return
    if call.account is None:
        raise ApiError(401, f"Access to model {repo.id} is restricted. You must have access to it and be authenticated.", code="GatedRepo")
    row = connection.execute("SELECT status FROM access WHERE repo = ? AND user = ?", (repo.key, call.account.name)).fetchone()
    if row is None or row["status"] != "accepted":
        raise ApiError(403, f"Access to model {repo.id} is restricted and you are not in the authorized list.", code="GatedRepo")


def not_found(call: Call) -> ApiError:
    """Return the Hub's answer about a repository that is not there or not for this caller."""
    if call.account is None:
        return ApiError(401, "Invalid username or password.", code="RepoNotFound")
    return ApiError(404, "Repository not found", code="RepoNotFound")


def insert(connection: sqlite3.Connection, kind: str, owner: str, name: str, *, private: bool = False, created_at: str = "") -> Repo:
    """Add a repository; an old address of this name stops forwarding."""
    at = created_at or now()
    connection.execute("DELETE FROM redirects WHERE kind = ? AND owner = ? AND name = ?", (kind, owner, name))
    connection.execute(
        "INSERT INTO repos (kind, owner, name, created_at, modified_at, private) VALUES (?, ?, ?, ?, ?, ?)",
        (kind, owner, name, at, at, private),
    )
    repo = find(connection, kind, owner, name)
    assert repo is not None
    return repo


def move(connection: sqlite3.Connection, repo: Repo, owner: str, name: str) -> None:
    """Give a repository another name; its old one forwards."""
    connection.execute("DELETE FROM redirects WHERE kind = ? AND owner = ? AND name = ?", (repo.kind, owner, name))
    connection.execute("UPDATE repos SET owner = ?, name = ? WHERE id = ?", (owner, name, repo.key))
    connection.execute("INSERT OR REPLACE INTO redirects VALUES (?, ?, ?, ?)", (repo.kind, repo.owner, repo.name, repo.key))


def settings(connection: sqlite3.Connection, repo: Repo, values: dict[str, Any]) -> None:
    """Change visibility and gate."""
    if "gated" in values:
        if values["gated"] not in (False, "auto", "manual"):
            raise ApiError(400, f"'gated' must be false, auto or manual, not {values['gated']!r:.60}")
        connection.execute("UPDATE repos SET gated = ? WHERE id = ?", (values["gated"] or "", repo.key))
    private = wants_private(values)
    if private is not None:
        connection.execute("UPDATE repos SET private = ? WHERE id = ?", (private, repo.key))


def wants_private(values: dict[str, Any]) -> bool | None:
    """Read `visibility` (public, private) or the older `private`; None where neither is given."""
    if "visibility" in values:
        if values["visibility"] not in ("public", "private"):
            raise ApiError(400, f"'visibility' must be public or private, not {values['visibility']!r:.60}")
        return bool(values["visibility"] == "private")
    private = values.get("private")
    return private if isinstance(private, bool) else None


def owner_for(call: Call, organisation: object) -> str:
    """Return the namespace that a request means: the organisation it names or the caller's own."""
    if isinstance(organisation, str) and organisation:
        return organisation
    return call.account.name if call.account else USER


def _follow_move(call: Call, connection: sqlite3.Connection, kind: str, owner: str, name: str) -> None:
    row = connection.execute(
        "SELECT r.* FROM redirects d JOIN repos r ON r.id = d.repo WHERE d.kind = ? AND d.owner = ? AND d.name = ?", (kind, owner, name)
    ).fetchone()
    if row is None or not may_see(call, from_row(row)):
        return
    target = call.path.replace(f"/{owner}/{name}", f"/{row['owner']}/{row['name']}", 1)
    if target != call.path:
        query = f"?{call.query_string}" if call.query_string else ""
        raise ApiError(307, f"Moved to {row['owner']}/{row['name']}", headers={"Location": target + query})
