"""`modelpress resume`: takes a pause back."""

from __future__ import annotations

import typer

from modelpress.options import AsJson, emit


def resume(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Take a pause back: jobs may start again; a modelpress that waits goes on by itself."""
    from modelpress.session import Session

    with Session(ctx.obj.settings()) as session:
        changed = session.store.queue.resume()
        planned = session.store.reader.overview().states.get("planned", 0)
    if as_json:
        emit({"changed": changed, "planned": planned})
    elif changed:
        typer.echo(f"the pause is taken back; {planned} jobs are planned: modelpress run goes on where none is at work")
    else:
        typer.echo("nothing changed: nothing was paused")
