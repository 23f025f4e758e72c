"""Plants the sample models and a few small models that policy must refuse, so that discovery has something to explain."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub.local import commits, gitids, paths, repos, summary
from hub.local.app import Hub
from hub.local.gitids import File

SAMPLES = Path(__file__).parent / "samples"
WEIGHTS = ("model.safetensors", "config.json", "tokenizer.json", "README.md")


def plant(hub: Hub, *, samples: bool) -> None:
    """Add the sample repositories that are not there yet; those that are stay as they are."""
    if not samples:
        return
    for entry in listing():
        owner, name = entry["id"].split("/")
        with hub.database.read() as connection:
            known = repos.find(connection, "model", owner, name)
        if known is None:
            contents = _contents(entry)
            if contents is not None:
                put(hub, entry, contents)


def listing() -> list[dict[str, Any]]:
    """Return the entries of seed.json, and after them the complete sample folders that it does not name."""
    entries: list[dict[str, Any]] = json.loads((Path(__file__).parent / "seed.json").read_text(encoding="utf-8"))["models"]
    named = {entry["id"] for entry in entries}
    found = sorted(f"{folder.parent.name}/{folder.name}" for folder in SAMPLES.glob("*/*") if folder.is_dir())
    first = min(entry["created_at"] for entry in entries)
    return entries + [{"id": repo_id, "created_at": first} for repo_id in found if repo_id not in named]


def _contents(entry: Mapping[str, Any]) -> dict[str, Path | bytes] | None:
    """Return the files of an entry: those in its text, or its sample folder if that is complete; None otherwise."""
    if "files" in entry:
        return {
            path: (text if isinstance(text, str) else json.dumps(text, indent=2) + "\n").encode() for path, text in entry["files"].items()
        }
    folder = SAMPLES / entry["id"]
    if not all((folder / name).is_file() for name in WEIGHTS):
        return None
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink()}


def put(hub: Hub, entry: Mapping[str, Any], contents: Mapping[str, Path | bytes]) -> None:
    """Add a repository as an entry of seed.json describes it, with these files by path; nothing is checked, not even the paths."""
    files = {path: _keep(hub, path, content) for path, content in contents.items()}
    attributes = paths.GITATTRIBUTES.encode()
    hub.blobs.put(attributes)
    files.setdefault(".gitattributes", gitids.regular_file(".gitattributes", attributes))
    owner, name = entry["id"].split("/")
    with hub.database.write() as connection:
        repo = repos.insert(connection, "model", owner, name, created_at=entry["created_at"])
        made = commits.write(
            connection,
            repo,
            files,
            ref_name=commits.MAIN,
            parents=[],
            author=owner,
            title="Add the model",
            created_at=entry.get("last_modified", entry["created_at"]),
        )
        summary.keep(connection, hub.blobs, made.tree)
        _set_numbers(connection, repo.key, entry)


def _keep(hub: Hub, path: str, content: Path | bytes) -> File:
    if isinstance(content, bytes):
        data = content
    else:
        with content.open("rb") as file:
            sample = file.read(512)
        if paths.upload_mode(path, content.stat().st_size, sample, None) == "lfs":
            sha256, size = hub.blobs.put_file(content)
            return gitids.lfs_file(path, sha256, size)
        data = content.read_bytes()
    sha256 = hub.blobs.put(data)
    if paths.upload_mode(path, len(data), data[:512], None) == "lfs":
        return gitids.lfs_file(path, sha256, len(data))
    return gitids.regular_file(path, data)


def _set_numbers(connection: sqlite3.Connection, key: int, entry: Mapping[str, Any]) -> None:
    connection.execute(
        "UPDATE repos SET downloads = ?, likes = ?, trending = ?, gated = ? WHERE id = ?",
        (entry.get("downloads", 0), entry.get("likes", 0), entry.get("trending", 0), entry.get("gated", ""), key),
    )
