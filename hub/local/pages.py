"""Plain pages for people who follow a link to the hub: what is here, a repository's card and files. Nothing on them runs."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from urllib.parse import quote

from starlette.responses import RedirectResponse, Response

from hub.local import commits, repos
from hub.local.gitids import File
from hub.local.repos import Repo
from hub.local.web import Call

MAX_CARD = 1024 * 1024
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:56rem;margin:2rem auto;padding:0 1rem;color:#1c1c1c;background:#fff}
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.2rem .8rem .2rem 0;border-bottom:1px solid #ddd}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:1rem}
a{color:#0b57a4}@media(prefers-color-scheme:dark){body{background:#161616;color:#e6e6e6}pre{background:#222}td,th{border-color:#444}a{color:#8ab8ee}}"""


def _page(title: str, body: str) -> Response:
    html = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{body}</body></html>"
    )
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'", "X-Content-Type-Options": "nosniff"}
    return Response(html, media_type="text/html; charset=utf-8", headers=headers)


def front(call: Call) -> Response:
    """GET /: the models that anybody may see."""
    with call.hub.database.read() as connection:
        rows = connection.execute("SELECT * FROM repos WHERE kind = 'model' AND NOT private ORDER BY owner, name").fetchall()
    lines = "".join(
        f'<tr><td><a href="/{repo.id}">{repo.id}</a></td><td class="n">{repo.downloads:,}</td><td class="n">{repo.likes:,}</td></tr>'
        for repo in map(repos.from_row, rows)
    )
    head = '<tr><th>Model</th><th class="n">Downloads</th><th class="n">Likes</th></tr>'
    about = (
        f"<p>A hub on this machine alone, with {len(rows)} models. "
        "Those that it started with carry made-up numbers, so that ranking has an order to find.</p>"
    )
    return _page("Embedded hub", f"<h1>Embedded hub</h1>{about}<table>{head}{lines}</table>")


def repository(call: Call) -> Response:
    """GET /{id}[/tree/{rev}|/commit/{rev}]: files and card."""
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
        commit = commits.resolve(connection, repo, call.params.get("rev", "main"))
        files = commits.files(connection, commit.tree)
    card = files.get("README.md")
    text = call.hub.blobs.read(card.sha256, MAX_CARD).decode("utf-8", "replace") if card and not repo.gated else ""
    notes = [word for word, said in (("private", repo.private), (f"gated: {repo.gated}", repo.gated)) if said]
    about = " · ".join([escape(commit.title), escape(commit.created_at), f"<code>{commit.id[:12]}</code>", *map(escape, notes)])
    body = f'<p><a href="/">Embedded hub</a></p><h1>{escape(repo.id)}</h1><p>{about}</p>{_table(repo, commit.id, files.values())}'
    return _page(repo.id, body + (f"<h2>Card</h2><pre>{escape(text)}</pre>" if text else ""))


def _table(repo: Repo, sha: str, files: Iterable[File]) -> str:
    base = f"/{escape(repo.web_path)}/resolve/{sha}"
    lines = "".join(
        f'<tr><td><a href="{base}/{quote(file.path)}">{escape(file.path)}</a></td><td class="n">{file.size:,}</td></tr>' for file in files
    )
    return f'<table><tr><th>File</th><th class="n">Bytes</th></tr>{lines}</table>'


def file(call: Call) -> Response:
    """GET /{id}/blob/{rev}/{path}: the file itself."""
    with call.hub.database.read() as connection:
        repo = repos.visible(call, connection)
    return RedirectResponse(f"/{repo.web_path}/resolve/{quote(call.params['rev'], safe='')}/{quote(call.params['path'])}", 302)
