"""`modelpress pause`: nothing starts any more, what runs goes on to its end."""

from __future__ import annotations

from typing import Annotated

import typer

from modelpress.options import AsJson, emit


def pause(
    ctx: typer.Context,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for those who look at status.")] = "",
    as_json: AsJson = False,
) -> None:
    """Let no job start any more, in no process that works on this database, until `resume`; what runs goes on to its end."""
    from modelpress.session import Session

    with Session(ctx.obj.settings()) as session:
        before = session.store.queue.paused()
        changed = before is None or (bool(reason) and before != reason)
        if changed:
            session.store.queue.pause(reason)
        running = session.store.reader.overview().states.get("running", 0)
    if as_json:
        emit({"changed": changed, "paused": reason if changed else before, "running": running})
    elif changed:
        typer.echo(f"paused: nothing starts until modelpress resume; {running} running jobs go on to their end")
    else:
        typer.echo("nothing changed: all is paused already" + (f" ({before})" if before else ""))
