"""Discussions and pull requests: open, comment, change status, merge."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass, replace
from typing import Any

from hub.local import commits, paths, repos, summary
from hub.local.commits import Commit
from hub.local.gitids import File
from hub.local.repos import Repo, now
from hub.local.web import ApiError, Call

PAGE = 50


def open_number(connection: sqlite3.Connection, repo: Repo) -> int:
    """Return the number that the next discussion of a repository gets."""
    (last,) = connection.execute("SELECT max(num) FROM discussions WHERE repo = ?", (repo.key,)).fetchone()
    return (last or 0) + 1


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How a discussion begins; a pull request has a `target`, the ref it is for, and a `base`, the commit it starts from."""

    title: str
    description: str
    status: str = "open"
    target: str | None = None
    base: str | None = None


def begin(connection: sqlite3.Connection, call: Call, repo: Repo, num: int, opening: Opening) -> None:
    """Add a discussion under its number; the ref of a pull request (`refs/pr/N`) is the caller's to set."""
    values = (repo.key, num, opening.title, opening.status, _name(call), now(), opening.target, opening.base)
    connection.execute("INSERT INTO discussions VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)", values)
    _event(connection, call, repo, num, "comment", _comment(opening.description))


def note_commit(connection: sqlite3.Connection, call: Call, repo: Repo, ref_name: str, commit: Commit) -> None:
    """Record a commit on a pull request's ref among its events; other refs have none."""
    if ref_name.startswith("refs/pr/"):
        _event(connection, call, repo, int(ref_name.rsplit("/", 1)[1]), "commit", {"subject": commit.title, "oid": commit.id})


def _name(call: Call) -> str:
    assert call.account is not None
    return call.account.name


def _comment(text: str) -> dict[str, Any]:
    return {"edited": False, "hidden": False, "latest": {"raw": text, "html": "", "updatedAt": now()}}


def _event(connection: sqlite3.Connection, call: Call, repo: Repo, num: int, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    at = now()
    cursor = connection.execute(
        "INSERT INTO events (repo, num, type, author, created_at, data) VALUES (?, ?, ?, ?, ?, ?)",
        (repo.key, num, kind, _name(call), at, json.dumps(data)),
    )
    return {"id": f"{cursor.lastrowid:024x}", "author": _author(_name(call)), "createdAt": at, "type": kind, "data": data}


def _author(name: str) -> dict[str, Any]:
    return {"name": name, "fullname": name, "type": "user", "isHf": False}


def _brief(repo: Repo, row: sqlite3.Row) -> dict[str, Any]:
    return {
        "num": row["num"],
        "title": row["title"],
        "status": row["status"],
        "author": _author(row["author"]),
        "createdAt": row["created_at"],
        "isPullRequest": row["target"] is not None,
        "repo": {"name": repo.id, "type": repo.kind},
    }


def _row(connection: sqlite3.Connection, repo: Repo, text: str) -> sqlite3.Row:
    num = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    row: sqlite3.Row | None = connection.execute("SELECT * FROM discussions WHERE repo = ? AND num = ?", (repo.key, num)).fetchone()
    if row is None:
        raise ApiError(404, f"There is no discussion {text!r:.20}")
    return row


def listing(call: Call) -> dict[str, Any]:
    """GET /api/models/{id}/discussions?p=&type=&status=&author=."""
    kind, status, author = call.one("type", "all"), call.one("status", "all"), call.one("author")
    page = int(call.one("p", "0")) if call.one("p", "0").isdecimal() else 0
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        rows = connection.execute("SELECT * FROM discussions WHERE repo = ? ORDER BY num DESC", (repo.key,)).fetchall()
    fitting = [
        row
        for row in rows
        if (kind == "all" or (row["target"] is not None) == (kind == "pull_request"))
        and (status == "all" or (row["status"] in ("open", "draft")) == (status == "open"))
        and (not author or row["author"] == author)
    ]
    shown = fitting[page * PAGE : (page + 1) * PAGE]
    return {"discussions": [_brief(repo, row) for row in shown], "count": len(fitting), "start": page * PAGE}


def create(call: Call) -> dict[str, Any]:
    """POST /api/models/{id}/discussions; a pull request begins as a draft at the head of main."""
    title = call.text("title").strip()
    if len(title) < 3:
        raise ApiError(400, f"'title' must have 3 characters or more, not {title!r}")
    description, is_pull = call.text("description", ""), call.json().get("pullRequest") is True
    repos.may_contribute(call)
    with call.hub.database.write() as connection:
        repo = repos.visible(call, connection)
        num = open_number(connection, repo)
        opening = Opening(title=title, description=description)
        if is_pull:
            head = commits.resolve(connection, repo, "main")
            commits.set_ref(connection, repo, f"refs/pr/{num}", head.id)
            opening = replace(opening, status="draft", target=commits.MAIN, base=head.id)
        begin(connection, call, repo, num, opening)
        return _brief(repo, _row(connection, repo, str(num))) | {"pullRequest": is_pull}


def details(call: Call) -> dict[str, Any]:
    """GET /api/models/{id}/discussions/{num}."""
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        row = _row(connection, repo, call.params["num"])
        events = connection.execute("SELECT * FROM events WHERE repo = ? AND num = ? ORDER BY id", (repo.key, row["num"])).fetchall()
        answer = _brief(repo, row) | {
            "events": [
                {
                    "id": f"{event['id']:024x}",
                    "author": _author(event["author"]),
                    "createdAt": event["created_at"],
                    "type": event["type"],
                    "data": json.loads(event["data"]),
                }
                for event in events
            ]
        }
        if row["target"] is None:
            return answer
        _, conflicts = _merged_files(connection, repo, row)
        changed = _changed(connection, repo, row)
    answer["changes"] = {"base": row["target"]} | ({"mergeCommitId": row["merge_commit"]} if row["merge_commit"] else {})
    answer["filesWithConflicts"] = conflicts if row["status"] in ("open", "draft") else []
    answer["diff"] = "".join(f"{mark} {path}\n" for path, mark in changed.items())
    return answer


def _changed(connection: sqlite3.Connection, repo: Repo, row: sqlite3.Row) -> dict[str, str]:
    """Return the files that a pull request adds (A), changes (M) and removes (D): a summary, not a line-by-line diff."""
    before = _tree(connection, repo, row["base"])
    after = _tree(connection, repo, commits.ref(connection, repo, f"refs/pr/{row['num']}"))
    marks = {path: "A" if path not in before else "M" for path, file in after.items() if before.get(path) != file}
    return dict(sorted((marks | {path: "D" for path in before if path not in after}).items()))


def _tree(connection: sqlite3.Connection, repo: Repo, commit_id: str | None) -> dict[str, File]:
    commit = commits.get(connection, repo, commit_id) if commit_id else None
    return commits.files(connection, commit.tree) if commit else {}


def _merged_files(connection: sqlite3.Connection, repo: Repo, row: sqlite3.Row) -> tuple[dict[str, File], list[str]]:
    """Merge file by file: where only one side changed a file since the base, that side wins; where both did, it is a conflict.

    A name that would become a file and a folder at once is a conflict too.
    """
    base = _tree(connection, repo, row["base"])
    ours = _tree(connection, repo, commits.ref(connection, repo, row["target"]))
    theirs = _tree(connection, repo, commits.ref(connection, repo, f"refs/pr/{row['num']}"))
    merged, conflicts = dict(ours), []
    for path in sorted({*base, *theirs}):
        if theirs.get(path) == base.get(path) or theirs.get(path) == ours.get(path):
            continue
        if ours.get(path) != base.get(path):
            conflicts.append(path)
        elif path in theirs:
            merged[path] = theirs[path]
        else:
            merged.pop(path, None)
    both = paths.has_conflict(merged)
    return merged, conflicts + ([both] if both else [])


def change(call: Call) -> dict[str, Any]:
    """POST /api/models/{id}/discussions/{num}/{comment|title|status}."""
    actions = {"comment": _add_comment, "title": _set_title, "status": _set_status}
    action = actions.get(call.params["action"])
    if action is None:
        raise ApiError(404, f"Nothing is at {call.path}")
    with call.hub.database.write() as connection:
        repo = repos.visible(call, connection)
        row = _row(connection, repo, call.params["num"])
        account = repos.may_contribute(call)
        if action is not _add_comment and row["author"] != account.name:
            repos.may_write(call, repo.owner)
        return action(connection, call, repo, row)


def _add_comment(connection: sqlite3.Connection, call: Call, repo: Repo, row: sqlite3.Row) -> dict[str, Any]:
    text = call.text("comment").strip()
    if not text:
        raise ApiError(400, "'comment' must not be empty")
    return {"newMessage": _event(connection, call, repo, row["num"], "comment", _comment(text))}


def _set_title(connection: sqlite3.Connection, call: Call, repo: Repo, row: sqlite3.Row) -> dict[str, Any]:
    title = call.text("title").strip()
    if len(title) < 3:
        raise ApiError(400, f"'title' must have 3 characters or more, not {title!r}")
    connection.execute("UPDATE discussions SET title = ? WHERE repo = ? AND num = ?", (title, repo.key, row["num"]))
    return {"newTitle": _event(connection, call, repo, row["num"], "title-change", {"from": row["title"], "to": title})}


def _set_status(connection: sqlite3.Connection, call: Call, repo: Repo, row: sqlite3.Row) -> dict[str, Any]:
    status = call.text("status")
    if status not in ("open", "closed"):
        raise ApiError(400, f"'status' must be open or closed, not {status!r:.60}")
    if row["status"] == "merged":
        raise ApiError(400, "A merged pull request cannot change its status")
    return {"newStatus": _move_to(connection, call, repo, row, status)}


def _move_to(connection: sqlite3.Connection, call: Call, repo: Repo, row: sqlite3.Row, status: str) -> dict[str, Any]:
    connection.execute("UPDATE discussions SET status = ? WHERE repo = ? AND num = ?", (status, repo.key, row["num"]))
    event = _event(connection, call, repo, row["num"], "status-change", {"status": status})
    comment = call.json().get("comment")
    if isinstance(comment, str) and comment.strip():
        _event(connection, call, repo, row["num"], "comment", _comment(comment.strip()))
    return event


def merge(call: Call) -> dict[str, Any]:
    """POST /api/models/{id}/discussions/{num}/merge: one merge commit on the target; 409 where both sides changed a file."""
    with call.hub.database.write() as connection:
        repo = repos.writable(call, connection)
        row = _row(connection, repo, call.params["num"])
        if row["target"] is None:
            raise ApiError(400, "A discussion cannot be merged, only a pull request")
        if row["status"] != "open":
            raise ApiError(400, f"Only an open pull request can be merged; this one is {row['status']}")
        files, conflicts = _merged_files(connection, repo, row)
        if conflicts:
            raise ApiError(409, f"The pull request conflicts with the target in: {', '.join(conflicts)}", conflicts=conflicts)
        parents = [commits.ref(connection, repo, row["target"]), commits.ref(connection, repo, f"refs/pr/{row['num']}")]
        made = commits.write(
            connection,
            repo,
            files,
            ref_name=row["target"],
            parents=[parent for parent in parents if parent],
            author=_name(call),
            title=f"{row['title']} (#{row['num']})",
        )
        summary.keep(connection, call.hub.blobs, made.tree)
        connection.execute("UPDATE discussions SET merge_commit = ? WHERE repo = ? AND num = ?", (made.id, repo.key, row["num"]))
        _move_to(connection, call, repo, row, "merged")
    return {"success": True, "mergeCommitId": made.id}
