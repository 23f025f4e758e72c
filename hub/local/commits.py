"""Trees, commits and refs: a commit's tree is kept whole, so that reading one needs no history."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from hub.local import gitids
from hub.local.gitids import File
from hub.local.repos import Repo, now
from hub.local.web import ApiError

MAIN = "refs/heads/main"
_SHA = re.compile(r"[0-9a-f]{40}")
_BRANCH = re.compile(r"(?!.*(\.\.|//|@\{|\.lock(/|$)))[^\s~^:?*\[\\\x00-\x1f\x7f/.-][^\s~^:?*\[\\\x00-\x1f\x7f]*(?<![/.])")


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A commit's row."""

    id: str
    tree: str
    parents: tuple[str, ...]
    author: str
    created_at: str
    title: str
    message: str


def get(connection: sqlite3.Connection, repo: Repo, commit_id: str) -> Commit | None:
    """Return the commit of this id, or None."""
    row = connection.execute("SELECT * FROM commits WHERE repo = ? AND id = ?", (repo.key, commit_id)).fetchone()
    if row is None:
        return None
    return Commit(
        id=row["id"],
        tree=row["tree"],
        parents=tuple(json.loads(row["parents"])),
        author=row["author"],
        created_at=row["created_at"],
        title=row["title"],
        message=row["message"],
    )


def ref(connection: sqlite3.Connection, repo: Repo, name: str) -> str | None:
    """Return the commit id that a full ref name (`refs/heads/main`) points at, or None."""
    row = connection.execute("SELECT commit_id FROM refs WHERE repo = ? AND name = ?", (repo.key, name)).fetchone()
    return row["commit_id"] if row else None


def refs(connection: sqlite3.Connection, repo: Repo) -> dict[str, str]:
    """Return all refs with their commit ids."""
    rows = connection.execute("SELECT name, commit_id FROM refs WHERE repo = ? ORDER BY name", (repo.key,))
    return {row["name"]: row["commit_id"] for row in rows}


def set_ref(connection: sqlite3.Connection, repo: Repo, name: str, commit_id: str) -> None:
    """Point a ref at a commit, making it if needed."""
    connection.execute("INSERT OR REPLACE INTO refs VALUES (?, ?, ?)", (repo.key, name, commit_id))


def delete_ref(connection: sqlite3.Connection, repo: Repo, name: str) -> bool:
    """Remove a ref; False if there was none."""
    return connection.execute("DELETE FROM refs WHERE repo = ? AND name = ?", (repo.key, name)).rowcount == 1


def check_ref_name(name: str) -> str:
    """Return a branch or tag name that git would take; raise 400 for any other."""
    if not _BRANCH.fullmatch(name) or len(name) > 200 or _SHA.fullmatch(name):
        raise ApiError(400, f"Invalid reference name {name!r:.120}")
    return name


def full_ref(revision: str) -> str:
    """Return the full name of the ref to which a commit on `revision` would go: a branch, or `refs/pr/N`."""
    return revision if revision.startswith("refs/") else f"refs/heads/{revision}"


def resolve(connection: sqlite3.Connection, repo: Repo, revision: str) -> Commit:
    """Return the commit that a branch, tag, `refs/…`, commit id or its first 7 or more digits names; 404 if there is none."""
    candidates = [f"refs/heads/{revision}", f"refs/tags/{revision}", revision]
    for name in candidates:
        target = ref(connection, repo, name)
        if target is not None:
            break
    else:
        target = _by_prefix(connection, repo, revision)
    commit = get(connection, repo, target) if target else None
    if commit is None:
        raise ApiError(404, f"Invalid rev id: {revision:.100}", code="RevisionNotFound")
    return commit


def _by_prefix(connection: sqlite3.Connection, repo: Repo, revision: str) -> str | None:
    if not re.fullmatch(r"[0-9a-f]{7,40}", revision):
        return None
    rows = connection.execute(
        "SELECT id FROM commits WHERE repo = ? AND id >= ? AND id < ? LIMIT 2", (repo.key, revision, revision + "g")
    ).fetchall()
    return rows[0]["id"] if len(rows) == 1 else None


def files(connection: sqlite3.Connection, tree: str) -> dict[str, File]:
    """Return all files of a tree by path, sorted."""
    rows = connection.execute("SELECT path, size, oid, sha256, lfs FROM entries WHERE tree = ? ORDER BY path", (tree,))
    return {row["path"]: _file(row) for row in rows}


def file(connection: sqlite3.Connection, tree: str, path: str) -> File | None:
    """Return one file of a tree, or None."""
    row = connection.execute("SELECT path, size, oid, sha256, lfs FROM entries WHERE tree = ? AND path = ?", (tree, path)).fetchone()
    return _file(row) if row else None


def _file(row: sqlite3.Row) -> File:
    return File(path=row["path"], size=row["size"], oid=row["oid"], sha256=row["sha256"], lfs=bool(row["lfs"]))


def write(
    connection: sqlite3.Connection,
    repo: Repo,
    tree_files: Mapping[str, File],
    *,
    ref_name: str,
    parents: Sequence[str],
    author: str,
    title: str,
    message: str = "",
    created_at: str = "",
) -> Commit:
    """Add a commit with these files and point the ref at it."""
    at = created_at or now()
    tree = _write_tree(connection, tree_files.values())
    seconds = int(datetime.fromisoformat(at).timestamp())
    commit = Commit(
        id=gitids.commit_id(tree, parents, author, seconds, f"{title}\n\n{message}".strip() + "\n"),
        tree=tree,
        parents=tuple(parents),
        author=author,
        created_at=at,
        title=title,
        message=message,
    )
    connection.execute(
        "INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (repo.key, commit.id, tree, json.dumps(parents), author, at, title, message),
    )
    set_ref(connection, repo, ref_name, commit.id)
    if ref_name == MAIN:
        connection.execute("UPDATE repos SET modified_at = ? WHERE id = ?", (at, repo.key))
    return commit


def history(connection: sqlite3.Connection, repo: Repo, head: Commit) -> list[Commit]:
    """Return a commit and its ancestors, the newest first."""
    seen: dict[str, Commit] = {head.id: head}
    waiting = [head]
    while waiting:
        for parent in waiting.pop().parents:
            commit = None if parent in seen else get(connection, repo, parent)
            if commit is not None:
                seen[parent] = commit
                waiting.append(commit)
    depth = _depths(seen)
    return sorted(seen.values(), key=lambda commit: depth[commit.id], reverse=True)


def last_change(connection: sqlite3.Connection, repo: Repo, head: Commit) -> dict[str, Commit]:
    """Return, for every file of a commit, the commit that gave it its present content (along first parents)."""
    present = files(connection, head.tree)
    result = dict.fromkeys(present, head)
    current = head
    while current.parents:
        parent = get(connection, repo, current.parents[0])
        if parent is None:
            break
        before = files(connection, parent.tree)
        for path, entry in present.items():
            if result[path] is current and path in before and before[path].oid == entry.oid:
                result[path] = parent
        current = parent
    return result


def _depths(seen: Mapping[str, Commit]) -> dict[str, int]:
    """Longest way to a root, found without recursion: histories may be long."""
    depth: dict[str, int] = {}
    for start in seen:
        stack = [start]
        while stack:
            parents = [parent for parent in seen[stack[-1]].parents if parent in seen]
            unknown = [parent for parent in parents if parent not in depth]
            if unknown:
                stack.extend(unknown)
            else:
                depth[stack.pop()] = 1 + max((depth[parent] for parent in parents), default=-1)
    return depth


def _write_tree(connection: sqlite3.Connection, entries: Iterable[File]) -> str:
    listing = sorted(entries, key=lambda entry: entry.path)
    tree = gitids.folder_ids(listing)[""]
    connection.executemany(
        "INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?, ?)",
        [(tree, entry.path, entry.size, entry.oid, entry.sha256, entry.lfs) for entry in listing],
    )
    return tree


@lru_cache(maxsize=256)
def folder_ids(listing: tuple[File, ...]) -> Mapping[str, str]:
    """Return the git tree ids of all folders of a listing, remembered: trees never change."""
    return gitids.folder_ids(listing)
