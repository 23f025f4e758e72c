"""`modelpress discover`: the hub's popular models, ranked and screened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from leaderboard.text import size
from modelpress.options import AsJson, console, emit

if TYPE_CHECKING:
    from hub.domain import Candidate, Refusal


def discover(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the popular models of the hub, rank them, and say of every refused one why."""
    from modelpress import pipeline
    from modelpress.session import Session

    with Session(ctx.obj.settings(), exclusive=True) as session:
        accepted, refused = pipeline.discover(session)
    if as_json:
        emit({"accepted": accepted, "refused": refused})
    else:
        show(accepted, refused)


def show(accepted: tuple[Candidate, ...], refused: tuple[Refusal, ...]) -> None:
    """Print both sides of a discovery as tables."""
    from rich.markup import escape
    from rich.table import Table

    out = console()
    table = Table(title="Accepted", title_justify="left", box=None, pad_edge=False)
    for column in ("rank", "model", "commit", "downloads", "likes", "parameters", "size", "licence"):
        table.add_column(column, justify="left" if column in ("model", "commit", "licence") else "right", overflow="fold")
    for rank, candidate in enumerate(accepted, 1):
        table.add_row(
            str(rank),
            escape(candidate.ref.repo_id),
            candidate.ref.sha[:8],
            f"{candidate.downloads:,}",
            f"{candidate.likes:,}",
            f"{candidate.parameters:,}" if candidate.parameters else "unknown",
            size(sum(file.size for file in candidate.files)),
            escape(candidate.license_name or candidate.license or "none"),
        )
    out.print(table)
    if refused:
        other = Table(title="\nRefused", title_justify="left", box=None, pad_edge=False)
        other.add_column("model", overflow="fold")
        other.add_column("why", overflow="fold")
        for refusal in refused:
            other.add_row(escape(refusal.repo_id), escape(refusal.reason))
        out.print(other)
