"""The hub's state and its routes."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from hub.local import accounts, discussions, general, info, lfs, listing, manage, pages, resolve, shelves, uploads
from hub.local.blobs import BlobStore
from hub.local.config import HubConfig
from hub.local.database import Database
from hub.local.faults import Faults
from hub.local.web import Handler, endpoint, guarded


@dataclass(kw_only=True)
class Hub:
    """All that the handlers work on."""

    root: Path
    config: HubConfig
    database: Database
    blobs: BlobStore
    credentials: accounts.Credentials
    instance: str = field(default_factory=lambda: secrets.token_hex(8))


def open_hub(root: Path, config: HubConfig) -> Hub:
    """Open a hub's folder, making it if needed."""
    root.mkdir(parents=True, exist_ok=True)
    return Hub(root=root, config=config, database=Database(root / "hub.db"), blobs=BlobStore(root), credentials=accounts.load(root))


REPO_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "", info.repo_info),
    ("GET", "/revision/{rev}", info.repo_info),
    ("GET", "/tree/{rev}", info.tree),
    ("GET", "/tree/{rev}/{path:path}", info.tree),
    ("POST", "/paths-info/{rev}", info.paths_info),
    ("GET", "/commits/{rev}", info.history),
    ("GET", "/refs", info.refs),
    ("POST", "/preupload/{rev}", uploads.preupload),
    ("POST", "/commit/{rev}", uploads.commit),
    ("PUT", "/settings", manage.change_settings),
    ("POST", "/branch/{branch}", manage.create_branch),
    ("DELETE", "/branch/{branch}", manage.delete_branch),
    ("POST", "/tag/{rev}", manage.create_tag),
    ("DELETE", "/tag/{rev}", manage.delete_tag),
    ("POST", "/super-squash/{branch}", manage.squash),
    ("GET", "/auth-check", manage.auth_check),
    ("GET", "/auth-check/write", manage.auth_check),
    ("GET", "/user-access-request/{status}", manage.access_requests),
    ("POST", "/user-access-request/{status}", manage.handle_access),
    ("GET", "/discussions", discussions.listing),
    ("POST", "/discussions", discussions.create),
    ("GET", "/discussions/{num}", discussions.details),
    ("POST", "/discussions/{num}/merge", discussions.merge),
    ("POST", "/discussions/{num}/{action}", discussions.change),
)

FIXED_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/", pages.front),
    ("GET", "/health", general.health),
    ("GET", "/api/agent-harnesses", general.agent_harnesses),
    ("GET", "/api/whoami-v2", general.whoami),
    ("POST", "/api/validate-yaml", general.validate_yaml),
    ("POST", "/api/repos/create", manage.create_repo),
    ("DELETE", "/api/repos/delete", manage.delete_repo),
    ("POST", "/api/repos/move", manage.move_repo),
    ("GET", "/api/collections", shelves.listing),
    ("POST", "/api/collections", shelves.create),
    ("GET", "/api/collections/{owner}/{slug}", shelves.show),
    ("PATCH", "/api/collections/{owner}/{slug}", shelves.update),
    ("DELETE", "/api/collections/{owner}/{slug}", shelves.delete),
    ("POST", "/api/collections/{owner}/{slug}/items", shelves.add_item),
    ("PATCH", "/api/collections/{owner}/{slug}/items/{item}", shelves.update_item),
    ("DELETE", "/api/collections/{owner}/{slug}/items/{item}", shelves.delete_item),
    ("GET", "/api/{kind}", listing.models),
    *((method, f"/api/{{kind}}/{{owner}}/{{name}}{path}", handler) for method, path, handler in REPO_ROUTES),
)

FILE_ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/{owner}/{name}/resolve/{rev}/{path:path}", resolve.download),
    ("GET", "/{owner}/{name}", pages.repository),
    ("GET", "/{owner}/{name}/tree/{rev}", pages.repository),
    ("GET", "/{owner}/{name}/commit/{rev}", pages.repository),
    ("GET", "/{owner}/{name}/blob/{rev}/{path:path}", pages.file),
    ("POST", "/{owner}/{name}.git/info/lfs/objects/batch", lfs.batch),
    ("POST", "/{owner}/{name}.git/info/lfs/objects/verify", lfs.verify),
    ("POST", "/{owner}/{name}/ask-access", manage.ask_access),
)


def build(hub: Hub) -> ASGIApp:
    """Return the ASGI application of a hub."""
    routes = [Route(path, endpoint(handler), methods=[method]) for method, path, handler in FIXED_ROUTES]
    routes += [
        Route("/lfs/objects/{oid}", guarded(lfs.put_object), methods=["PUT"]),
        Route("/lfs/objects/{oid}", guarded(lfs.get_object), methods=["GET"]),
        Route("/lfs/parts/{upload}/{number:int}", guarded(lfs.put_part), methods=["PUT"]),
        Route("/lfs/complete/{upload}/{oid}", guarded(lfs.complete), methods=["POST"]),
    ]
    # A model's files lie at the root, so these come last.
    for prefix in ("/datasets", "/spaces", ""):
        routes += [Route(prefix + path, endpoint(handler), methods=[method]) for method, path, handler in FILE_ROUTES]
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=list(hub.config.allowed_hosts))] if hub.config.allowed_hosts else []
    app = Starlette(routes=routes, middleware=middleware)
    app.state.hub = hub
    raw = _RawPaths(app)
    return Faults(raw, hub.credentials) if hub.config.faults else raw


class _RawPaths:
    """Routes on the path as it was sent, so that `refs%2Fpr%2F1` stays one part; parameters are decoded afterwards."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("ascii", "replace")}
        await self._app(scope, receive, send)
