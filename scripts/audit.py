"""`modelpress audit`: published releases, looked at again with today's libraries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelpress.options import AsJson, console, emit

if TYPE_CHECKING:
    from modelpress.auditing import Audited


def audit(
    ctx: typer.Context,
    most: Annotated[int, typer.Option(min=1, metavar="N", help="How many, those audited longest ago first.")] = 5,
    every: Annotated[bool, typer.Option("--all", help="All releases.")] = False,
    retired: Annotated[bool, typer.Option("--retired", help="Also retired releases, last.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download published releases, verify, load and use them with today's libraries, measure a sample again, record what broke."""
    from modelpress import auditing
    from modelpress.session import Session

    with Session(ctx.obj.settings(), exclusive=True) as session:
        found = auditing.audit(session, most=None if every else most, retired=retired)
    if as_json:
        emit({"audits": found.audits, "left": found.left})
    else:
        _show(found)
    _judge(found)


def _show(found: Audited) -> None:
    """Print one line a release."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("release", "commit", "found"):
        table.add_column(column, overflow="fold")
    for one in found.audits:
        table.add_row(escape(one.repo_id), one.sha[:8], "as published" if one.passed else escape(f"broke: {one.reason}"))
    if found.audits:
        console().print(table)
    broken = sum(not one.passed for one in found.audits)
    typer.echo(f"{len(found.audits)} releases audited, {broken} of them broke; {len(found.left)} could not be judged")


def _judge(found: Audited) -> None:
    """Raise `GateRefusal` where a release broke, else what kept releases from being judged."""
    from hub.errors import GateRefusal, Incomplete

    if broken := [one for one in found.audits if not one.passed]:
        first = broken[0]
        raise GateRefusal(f"{len(broken)} releases broke; first {first.repo_id}: {first.reason}", hint="docs/audit.md says what to do")
    if found.ended:
        raise found.ended
    if found.left:
        reason = found.left[0].reason
        raise Incomplete(f"{len(found.left)} releases could not be judged; first: {reason}", hint="run modelpress audit again")
