"""`modelpress publish`: put what passed the gate on the hub."""

from __future__ import annotations

import typer

from modelpress.options import AsJson, emit


def publish(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Publish every artifact that passed the gate and is not on the hub yet, with its card."""
    from hub.errors import Incomplete
    from modelpress import pipeline
    from modelpress.session import Session

    with Session(ctx.obj.settings(), exclusive=True) as session:
        releases, refused = pipeline.publish(session)
    if as_json:
        emit({"released": releases, "refused": refused})
    else:
        for release in releases:
            typer.echo(f"{release.repo_id}@{release.sha[:8]}  {release.url}")
        typer.echo(f"{len(releases)} published, {len(refused)} not")
    if refused:
        raise Incomplete(
            f"{len(refused)} artifacts were not published; first: {refused[0].reason}", hint="modelpress publish tries them again"
        )
