"""What is told about a repository: model_info, tree, paths-info, commits, refs."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from starlette.responses import JSONResponse, Response

from hub.local import commits, repos, summary
from hub.local.commits import Commit
from hub.local.gitids import File
from hub.local.repos import Repo
from hub.local.web import ApiError, Call

TREE_PAGE = 1000
_EXPANDABLE = """author baseModels cardData childrenModelCount config createdAt disabled downloads downloadsAllTime evalResults gated gguf
    inference inferenceProviderMapping lastModified library_name likes mask_token model-index pipeline_tag private resourceGroup safetensors
    sha siblings spaces tags transformersInfo trendingScore usedStorage widgetData xetEnabled citation description paperswithcode_id
    datasets host models runtime sdk subdomain region"""
EXPANDABLE = frozenset(_EXPANDABLE.split())
_DEFAULT = """author cardData config createdAt disabled downloads gated lastModified library_name likes model-index pipeline_tag private
    safetensors sha siblings spaces tags transformersInfo trendingScore usedStorage"""
DEFAULT = tuple(_DEFAULT.split())


def properties(connection: sqlite3.Connection, call: Call, repo: Repo, commit: Commit) -> dict[str, Any]:
    """Return everything that can be said of a repository at a commit, except its files."""
    known = summary.of(connection, call.hub.blobs, commit.tree)
    card = known["cardData"]
    architectures = (known["config"] or {}).get("architectures")
    return {
        "author": repo.owner,
        "sha": commit.id,
        "createdAt": repo.created_at,
        "lastModified": commit.created_at,
        "private": repo.private,
        "disabled": False,
        "gated": repo.gated or False,
        "downloads": repo.downloads,
        "downloadsAllTime": repo.downloads,
        "likes": repo.likes,
        "trendingScore": repo.trending,
        "tags": known["tags"],
        "pipeline_tag": known["pipeline_tag"],
        "library_name": known["library_name"],
        "config": known["config"],
        "cardData": card,
        "safetensors": known["safetensors"],
        "baseModels": known["baseModels"],
        "model-index": (card or {}).get("model-index"),
        "transformersInfo": {"auto_model": "AutoModelForCausalLM", "pipeline_tag": known["pipeline_tag"], "processor": "AutoTokenizer"}
        if architectures and known["pipeline_tag"] == "text-generation"
        else None,
        "usedStorage": known["usedStorage"],
        "spaces": [],
        "inferenceProviderMapping": {},
        "xetEnabled": False,
    }


def identity(repo: Repo) -> dict[str, Any]:
    """Return the fields that every answer about a repository begins with."""
    return {"_id": repo.object_id, "id": repo.id}


def pick(known: Mapping[str, Any], wanted: Iterable[str]) -> dict[str, Any]:
    """Return the wanted properties; those without a value are left out, as on the Hub."""
    always = ("cardData", "model-index", "private", "gated", "disabled", "spaces")
    return {key: known[key] for key in wanted if known.get(key) is not None or (key in known and key in always)}


def expansions(call: Call) -> list[str]:
    """Return the properties asked for by `expand`; 400 if one does not exist."""
    wanted = [name for value in (*call.query.get("expand", []), *call.query.get("expand[]", [])) for name in value.split(",") if name]
    for name in wanted:
        if name not in EXPANDABLE:
            raise ApiError(400, f'"expand" must be one of [{", ".join(sorted(EXPANDABLE))}], not {name!r:.100}')
    return wanted


def siblings(files: Iterable[File], *, blobs: bool) -> list[dict[str, Any]]:
    """Return the files as model_info lists them."""
    if not blobs:
        return [{"rfilename": file.path} for file in files]
    return [
        {"rfilename": file.path, "size": file.size, "blobId": file.oid}
        | ({"lfs": {"sha256": file.sha256, "size": file.size, "pointerSize": file.pointer_size}} if file.lfs else {})
        for file in files
    ]


def repo_info(call: Call) -> dict[str, Any]:
    """GET /api/models/{id}[/revision/{rev}]."""
    wanted = expansions(call)
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        commit = commits.resolve(connection, repo, call.params.get("rev", "main"))
        known = properties(connection, call, repo, commit)
        listing = commits.files(connection, commit.tree).values()
    known["siblings"] = siblings(listing, blobs=call.flag("blobs"))
    answer = identity(repo)
    if wanted:
        return answer | {key: known.get(key) for key in wanted if key in known}
    answer |= {"modelId": repo.id} if repo.kind == "model" else {}
    answer |= pick(known, DEFAULT)
    if call.flag("securityStatus"):
        answer["securityRepoStatus"] = {"scansDone": False, "filesWithIssues": []}
    return answer


def _file_entry(file: File, change: Commit | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": file.oid, "size": file.size, "path": file.path}
    if file.lfs:
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": file.pointer_size}
    return entry | (_change(change) if change else {})


def _change(commit: Commit) -> dict[str, Any]:
    return {"lastCommit": {"id": commit.id, "title": commit.title, "date": commit.created_at}}


def _folder_entry(path: str, oid: str, change: Commit | None) -> dict[str, Any]:
    return {"type": "directory", "oid": oid, "size": 0, "path": path} | (_change(change) if change else {})


def tree(call: Call) -> Response:
    """GET /api/models/{id}/tree/{rev}[/{path}], 1000 entries a page."""
    folder = call.params.get("path", "").strip("/")
    prefix = f"{folder}/" if folder else ""
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        commit = commits.resolve(connection, repo, call.params["rev"])
        files = commits.files(connection, commit.tree)
        changes = commits.last_change(connection, repo, commit) if call.flag("expand") else {}
    inside = [file for path, file in files.items() if path.startswith(prefix)]
    if folder and not inside:
        raise ApiError(
            404, f"{folder} does not exist on {call.params['rev']!r:.100}", code="EntryNotFound", headers={"X-Repo-Commit": commit.id}
        )
    entries = _tree_entries(files, inside, prefix, changes, recursive=call.flag("recursive"))
    start = _cursor(call)
    page = entries[start : start + TREE_PAGE]
    headers = {}
    if start + TREE_PAGE < len(entries):
        query = f"recursive={str(call.flag('recursive')).lower()}&expand={str(call.flag('expand')).lower()}&cursor={start + TREE_PAGE}"
        headers["Link"] = f'<{call.base}{call.path}?{query}>; rel="next"'
    return JSONResponse(page, headers=headers)


def _cursor(call: Call) -> int:
    cursor = call.one("cursor", "0")
    if not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 12):
        raise ApiError(400, f"Invalid cursor {cursor!r:.60}")
    return int(cursor)


def _tree_entries(
    files: Mapping[str, File], inside: Iterable[File], prefix: str, changes: Mapping[str, Commit], *, recursive: bool
) -> list[dict[str, Any]]:
    ids = commits.folder_ids(tuple(files.values()))
    folders: dict[str, Commit | None] = {}
    entries = []
    for file in inside:
        parts = file.path[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folders.setdefault(prefix + "/".join(parts[:depth]), changes.get(file.path))
        if recursive or len(parts) == 1:
            entries.append(_file_entry(file, changes.get(file.path)))
    entries += [_folder_entry(path, ids[path], change) for path, change in folders.items()]
    return sorted(entries, key=lambda entry: entry["path"])


def paths_info(call: Call) -> list[dict[str, Any]]:
    """POST /api/models/{id}/paths-info/{rev} with a form (or JSON): files and folders that are there; the others are left out."""
    if call.headers.get("content-type", "").startswith("application/json"):
        body = call.json()
        paths, expand = [str(path) for path in body.get("paths", [])], body.get("expand") is True
    else:
        form = call.form()
        paths, expand = form.get("paths", []), form.get("expand", [""])[-1].lower() in ("true", "1")
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        commit = commits.resolve(connection, repo, call.params["rev"])
        files = commits.files(connection, commit.tree)
        changes = commits.last_change(connection, repo, commit) if expand else {}
    ids = commits.folder_ids(tuple(files.values()))
    answer = []
    for path in (path.strip("/") for path in paths):
        if path in files:
            answer.append(_file_entry(files[path], changes.get(path)))
        elif path and path in ids:
            change = next((changes[file] for file in changes if file.startswith(f"{path}/")), None)
            answer.append(_folder_entry(path, ids[path], change))
    return answer


def history(call: Call) -> Response:
    """GET /api/models/{id}/commits/{rev}."""
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        head = commits.resolve(connection, repo, call.params["rev"])
        found = commits.history(connection, repo, head)
    page = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author, "avatar": ""}],
            "date": commit.created_at,
            "formatted": {"title": escape(commit.title), "message": f"<p>{escape(commit.message)}</p>" if commit.message else ""},
        }
        for commit in found
    ]
    return JSONResponse(page, headers={"X-Total-Count": str(len(page))})


def refs(call: Call) -> dict[str, Any]:
    """GET /api/models/{id}/refs."""
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        found = commits.refs(connection, repo)

    def under(prefix: str) -> list[dict[str, str]]:
        names = [name for name in found if name.startswith(prefix)]
        return [{"name": name.removeprefix(prefix), "ref": name, "targetCommit": found[name]} for name in names]

    answer: dict[str, Any] = {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": []}
    if call.flag("include_prs"):
        answer["pullRequests"] = [entry | {"name": entry["ref"]} for entry in under("refs/pr/")]
    return answer
