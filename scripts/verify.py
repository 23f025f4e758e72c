"""`modelpress verify`: the gate again, on the bytes that the hub serves."""

from __future__ import annotations

from typing import Annotated

import typer

from modelpress.options import AsJson, emit


def verify(
    ctx: typer.Context,
    again: Annotated[bool, typer.Option("--all", help="Also those that were verified before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download published bytes to an empty cache, compare checksums, load, generate, and judge."""
    from hub.errors import GateRefusal
    from modelpress import pipeline
    from modelpress.session import Session

    with Session(ctx.obj.settings(), exclusive=True) as session:
        verdicts, refused = pipeline.verify(session, again=again)
    if as_json:
        emit({"verdicts": verdicts, "refused": refused})
    else:
        typer.echo(f"{sum(verdict.passed for verdict in verdicts)} releases verified, {len(refused)} not")
    if refused:
        raise GateRefusal(
            f"{len(refused)} releases did not verify; first: {refused[0].reason}", hint="the release stays marked as not verified"
        )
