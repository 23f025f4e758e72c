"""`modelpress retry`: jobs that failed or were cancelled are planned again."""

from __future__ import annotations

from typing import Annotated

import typer

from hub.domain import FailureClass
from modelpress.options import AsJson, emit


def retry(
    ctx: typer.Context,
    job: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Jobs by id, its beginning, or label.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that failed.")] = False,
    category: Annotated[FailureClass | None, typer.Option("--class", help="All that failed of this.")] = None,
    as_json: AsJson = False,
) -> None:
    """Plan failed and cancelled jobs again, as if they had never been tried; also while another modelpress works in this folder."""
    from hub.errors import UsageError
    from hub.overview import Wish
    from modelpress.jobs import chosen
    from modelpress.session import Session

    if not (job or failed or category):
        raise UsageError("no job is named", hint="name jobs, or give --failed or --class out_of_memory; modelpress jobs lists them")
    with Session(ctx.obj.settings()) as session:
        ids = chosen(session, job or [])
        if failed or category:
            ids += session.store.reader.ids(Wish(state="failed", category=category))
        count = session.store.queue.retry(ids)
        paused = session.store.queue.paused()
    if as_json:
        emit({"planned_again": count, "paused": paused})
        return
    typer.echo(f"{count} jobs are planned again" if count else "nothing changed: none of these jobs failed or was cancelled")
    if count and paused is not None:
        typer.echo("all is paused: modelpress resume lets them start")
    elif count:
        typer.echo("a modelpress that is at work takes them up; else modelpress run does")
