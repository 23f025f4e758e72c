"""`modelpress hub serve`: the embedded hub by itself."""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option(help="Address to bind; loopback unless you really mean another.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes hub.port of the settings.")] = 0,
) -> None:
    """Serve the work folder's embedded hub until Ctrl-C, so that any Hub client can use it through HF_ENDPOINT."""
    from hub.local.server import Address
    from hub.local.server import serve as serve_hub
    from modelpress.session import Session

    settings = ctx.obj.settings()
    with Session(settings) as session:
        root = session.folder / "hub"

    def ready(endpoint: str) -> None:
        typer.echo(f"embedded hub of {root}: HF_ENDPOINT={endpoint} (Ctrl-C ends it)", err=True)

    serve_hub(root, address=Address(host=host, port=port or settings.hub.port), ready=ready)
