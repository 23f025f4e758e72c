"""`modelpress measure`: take a protocol's numbers of a local folder, without hub or database."""

from __future__ import annotations

from typing import Annotated

import typer

from leaderboard.text import number
from modelpress.compress import Log, locate
from modelpress.options import AsJson, emit


def measure(
    ctx: typer.Context,
    folder: Annotated[str, typer.Argument(help="A checkpoint's folder, or an id on the hub.")],
    base: Annotated[
        str | None, typer.Option(help="The base model's folder or id: quality is then measured against it, token by token.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="How numbers are taken; press.protocol of the settings when not given.")] = None,
    log: Log = None,
    as_json: AsJson = False,
) -> None:
    """Measure FOLDER: perplexity, divergence from --base, speed, load time, memory and size, each with its 95 % interval."""
    from modelpress.quiet import quiet
    from modelpress.session import Session
    from runners import protocols
    from runners.measure import measure as take

    with Session(ctx.obj.settings()) as session:
        chosen = protocols.load(protocol or session.settings.press.protocol)
        subject = locate(session, folder)[1]
        against = locate(session, base)[1] if base else None
        with quiet(log):
            measurements = take(subject, against, chosen)
    if as_json:
        emit(measurements)
        return
    for one in measurements:
        span = f"[{number(one.ci_low, 4)}, {number(one.ci_high, 4)}]"
        typer.echo(f"{one.metric:<28} {number(one.value, 4):>12} {one.unit:<11} {span:<24} {one.interval}")
    typer.echo(f"protocol {chosen.name}")
