"""`modelpress cancel`: planned jobs are not begun, running ones are ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelpress.options import AsJson, emit

if TYPE_CHECKING:
    from hub.history import JobState


def cancel(
    ctx: typer.Context,
    job: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Jobs by id, its beginning, or label.")] = None,
    planned: Annotated[bool, typer.Option("--planned", help="All that are planned; what runs goes on.")] = False,
    model: Annotated[str | None, typer.Option(help="All that are planned or run on this base model: owner/name, or the name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Cancel jobs: planned ones are not begun, running ones are ended by who runs them; none is planned again until `retry` names it."""
    from hub.errors import UnknownName, UsageError
    from hub.overview import Wish
    from modelpress.jobs import chosen
    from modelpress.session import Session

    if not (job or planned or model):
        raise UsageError("no job is named", hint="name jobs, or give --planned or --model NAME; modelpress jobs lists them")
    with Session(ctx.obj.settings()) as session:
        reader = session.store.reader
        if model and not reader.count(Wish(model=model)):
            raise UnknownName(f"no job is on a model {model!r}", hint="modelpress jobs lists all with their models")
        ids = chosen(session, job or [])
        if planned or model:
            states: tuple[JobState, ...] = ("planned",) if planned else ("planned", "running")
            ids += reader.ids(Wish(model=model), states=states)
        before = {line.id: line for line in reader.overview().running}
        count = session.store.queue.cancel(ids)
        running = min(count, sum(one in before and not before[one].cancel for one in dict.fromkeys(ids)))
    if as_json:
        emit({"cancelled": count - running, "to_be_ended": running})
        return
    if count - running:
        typer.echo(f"{count - running} jobs are cancelled; modelpress retry plans them again")
    if running:
        typer.echo(f"{running} jobs run and are ended by who runs them, within seconds")
    if not count:
        typer.echo("nothing changed: none of these jobs is planned or running, or all are cancelled already")
