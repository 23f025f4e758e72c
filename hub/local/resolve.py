"""Downloads: `/{id}/resolve/{rev}/{path}` with ranges, ETags and the Hub's headers."""

from __future__ import annotations

from urllib.parse import quote

from starlette.responses import FileResponse, Response

from hub.local import commits, repos
from hub.local.web import ApiError, Call

# Only what a browser cannot run: files come from anybody.
_TEXT = (".txt", ".md", ".json", ".jsonl", ".py", ".jinja", ".yaml", ".yml", ".toml", ".csv")


def download(call: Call) -> Response:
    """GET or HEAD of a file; 404 with X-Error-Code EntryNotFound, RevisionNotFound or RepoNotFound, 401 or 403 with GatedRepo."""
    path = call.params["path"]
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        repos.may_download(call, connection, repo)
        commit = commits.resolve(connection, repo, call.params["rev"])
        file = commits.file(connection, commit.tree, path)
    headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes", "Access-Control-Expose-Headers": "X-Repo-Commit, ETag, X-Linked-Etag"}
    if file is None:
        raise ApiError(404, f"Entry not found: {path:.200}", code="EntryNotFound", headers=headers)
    headers["ETag"] = f'"{file.etag}"'
    if file.lfs:
        headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(file.size)}
    headers |= {
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1], safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "no-cache",
    }
    if file.etag in [tag.strip().removeprefix("W/").strip('"') for tag in call.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    if not call.hub.blobs.has(file.sha256, file.size):
        raise ApiError(500, f"The bytes of {path:.200} are not on this hub's disk", headers=headers)
    media_type = "text/plain; charset=utf-8" if path.lower().endswith(_TEXT) else "application/octet-stream"
    return FileResponse(call.hub.blobs.path(file.sha256), headers=headers, media_type=media_type)
