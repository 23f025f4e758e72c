"""Changes to repositories themselves: create, delete, move, settings, branches, tags, squash, access to gated ones."""

from __future__ import annotations

import sqlite3
from typing import Any

from starlette.responses import Response

from hub.local import commits, gitids, paths, repos, shelves, summary
from hub.local.repos import Repo
from hub.local.web import ApiError, Call


def _kind(values: dict[str, Any]) -> str:
    kind = values.get("type") or "model"
    if kind not in repos.KINDS:
        raise ApiError(400, f"'type' must be one of {', '.join(repos.KINDS)}, not {kind!r:.60}")
    return str(kind)


def create_repo(call: Call) -> dict[str, Any]:
    """POST /api/repos/create: a repository with a first commit that says what goes to LFS; 409 with its `url` if it is there."""
    values, name = call.json(), call.text("name")
    owner, kind = repos.owner_for(call, values.get("organization")), _kind(values)
    repos.check_owner(owner)
    repos.check_name(name)
    repos.may_write(call, owner)
    with call.hub.database.write() as connection:
        existing = repos.find(connection, kind, owner, name)
        if existing is not None:
            raise ApiError(409, f"You already created this {kind} repo", url=f"{call.base}/{existing.web_path}")
        repo = repos.insert(connection, kind, owner, name, private=repos.wants_private(values) or False)
        first_commit(connection, call, repo)
    return {"url": f"{call.base}/{repo.web_path}", "name": repo.id, "id": repo.object_id}


def first_commit(connection: sqlite3.Connection, call: Call, repo: Repo) -> None:
    """Give a new repository its .gitattributes, as the Hub does."""
    data = paths.GITATTRIBUTES.encode()
    call.hub.blobs.put(data)
    files = {".gitattributes": gitids.regular_file(".gitattributes", data)}
    author = call.account.name if call.account else repo.owner
    made = commits.write(connection, repo, files, ref_name=commits.MAIN, parents=[], author=author, title="initial commit")
    summary.keep(connection, call.hub.blobs, made.tree)


def delete_repo(call: Call) -> Response:
    """DELETE /api/repos/delete."""
    values, name = call.json(), call.text("name")
    owner, kind = repos.owner_for(call, values.get("organization")), _kind(values)
    with call.hub.database.write() as connection:
        repo = repos.find(connection, kind, owner, name)
        if repo is None or not repos.may_see(call, repo):
            raise repos.not_found(call)
        repos.may_write(call, owner)
        connection.execute("DELETE FROM repos WHERE id = ?", (repo.key,))
        shelves.forget(connection, kind, repo.id)
    return Response(status_code=200)


def move_repo(call: Call) -> dict[str, Any]:
    """POST /api/repos/move; the old name forwards to the new one."""
    source, target = call.text("fromRepo").split("/"), call.text("toRepo").split("/")
    if len(source) != 2 or len(target) != 2:
        raise ApiError(400, "'fromRepo' and 'toRepo' must be owner/name")
    repos.check_owner(target[0])
    repos.check_name(target[1])
    with call.hub.database.write() as connection:
        repo = repos.find(connection, _kind(call.json()), *source)
        if repo is None or not repos.may_see(call, repo):
            raise repos.not_found(call)
        repos.may_write(call, repo.owner)
        repos.may_write(call, target[0])
        taken = repos.find(connection, repo.kind, *target)
        if taken is not None and taken.key != repo.key:
            raise ApiError(409, f"{taken.id} already exists", url=f"{call.base}/{taken.web_path}")
        repos.move(connection, repo, *target)
        shelves.rename(connection, repo.kind, repo.id, "/".join(target))
    return {"url": f"{call.base}/{'/'.join(target)}"}


def change_settings(call: Call) -> dict[str, Any]:
    """PUT /api/models/{id}/settings {gated, visibility}."""
    values = call.json()
    with call.hub.database.write() as connection:
        repo = repos.writable(call, connection)
        repos.settings(connection, repo, values)
        changed = repos.visible(call, connection)
    return {"private": changed.private, "gated": changed.gated or False}


def create_branch(call: Call) -> Response:
    """POST /api/models/{id}/branch/{branch} {startingPoint}."""
    name, start = commits.check_ref_name(call.params["branch"]), call.text("startingPoint", "main")
    return _create_ref(call, f"refs/heads/{name}", start, f"Reference already exists: {name}")


def create_tag(call: Call) -> Response:
    """POST /api/models/{id}/tag/{rev} {tag, message}."""
    name = commits.check_ref_name(call.text("tag"))
    return _create_ref(call, f"refs/tags/{name}", call.params["rev"], f"Tag reference exists already: {name}")


def _create_ref(call: Call, name: str, start: str, taken: str) -> Response:
    with call.hub.database.write() as connection:
        repo = repos.writable(call, connection)
        if commits.ref(connection, repo, name) is not None:
            raise ApiError(409, taken)
        commits.set_ref(connection, repo, name, commits.resolve(connection, repo, start).id)
    return Response(status_code=200)


def delete_branch(call: Call) -> Response:
    """DELETE /api/models/{id}/branch/{branch}; main stays."""
    if call.params["branch"] == "main":
        raise ApiError(403, "The branch main cannot be deleted")
    return _delete_ref(call, f"refs/heads/{call.params['branch']}")


def delete_tag(call: Call) -> Response:
    """DELETE /api/models/{id}/tag/{tag}."""
    return _delete_ref(call, f"refs/tags/{call.params['rev']}")


def _delete_ref(call: Call, name: str) -> Response:
    with call.hub.database.write() as connection:
        repo = repos.writable(call, connection)
        if not commits.delete_ref(connection, repo, name):
            raise ApiError(404, f"There is no reference {name!r:.120}", code="RevisionNotFound")
    return Response(status_code=200)


def squash(call: Call) -> Response:
    """POST /api/models/{id}/super-squash/{branch} {message}: one commit with the branch's files and no parent."""
    with call.hub.database.write() as connection:
        repo = repos.writable(call, connection)
        name = commits.full_ref(call.params["branch"])
        at = commits.ref(connection, repo, name)
        head = commits.get(connection, repo, at) if at else None
        if head is None:
            raise ApiError(404, f"There is no branch {call.params['branch']!r:.100}", code="RevisionNotFound")
        assert call.account is not None
        files = commits.files(connection, head.tree)
        title = call.text("message", "Super-squash")
        commits.write(connection, repo, files, ref_name=name, parents=[], author=call.account.name, title=title)
    return Response(status_code=200)


def auth_check(call: Call) -> dict[str, Any]:
    """GET /api/models/{id}/auth-check[/write]."""
    with call.hub.database.read() as connection:
        if call.path.endswith("/write"):
            repos.writable(call, connection)
        else:
            repos.may_download(call, connection, repos.visible(call, connection))
    return {"success": True}


def ask_access(call: Call) -> dict[str, Any]:
    """POST /{id}/ask-access: what the Hub's web form does; an `auto` gate opens at once, a `manual` one waits for the owner."""
    with call.hub.database.write() as connection:
        repo = repos.visible(call, connection)
        if call.account is None:
            raise ApiError(401, "Invalid username or password.")
        status = "accepted" if repo.gated == "auto" else "pending"
        connection.execute("INSERT OR IGNORE INTO access VALUES (?, ?, ?, ?)", (repo.key, call.account.name, status, repos.now()))
    return {"status": status}


def access_requests(call: Call) -> list[dict[str, Any]]:
    """GET /api/models/{id}/user-access-request/{pending|accepted|rejected}."""
    with call.hub.database.read() as connection:
        repo = repos.writable(call, connection)
        rows = connection.execute("SELECT * FROM access WHERE repo = ? AND status = ?", (repo.key, call.params["status"])).fetchall()
    return [
        {
            "user": {"user": row["user"], "fullname": row["user"], "email": None},
            "status": row["status"],
            "timestamp": row["at"],
            "fields": {},
        }
        for row in rows
    ]


def handle_access(call: Call) -> Response:
    """POST /api/models/{id}/user-access-request/{grant|handle} {user, status?}."""
    grant = call.params["status"] == "grant"
    user, status = call.text("user"), "accepted" if grant else call.text("status")
    if call.params["status"] not in ("grant", "handle") or status not in ("accepted", "pending", "rejected"):
        raise ApiError(400, f"Nothing can be done about the access request of {user!r:.60} with status {status!r:.60}")
    with call.hub.database.write() as connection:
        repo = repos.writable(call, connection)
        if not repo.gated:
            raise ApiError(400, f"{repo.id} is not gated")
        known = connection.execute("SELECT 1 FROM access WHERE repo = ? AND user = ?", (repo.key, user)).fetchone()
        if not grant and known is None:
            raise ApiError(404, f"{user!r:.60} has not asked for access")
        connection.execute("INSERT OR REPLACE INTO access VALUES (?, ?, ?, ?)", (repo.key, user, status, repos.now()))
    return Response(status_code=200)
