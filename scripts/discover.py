"""`modelpress discover`: the hub's popular models, ranked and screened."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from leaderboard.text import size
from modelpress.options import AsJson, console, emit

if TYPE_CHECKING:
    from hub.catalog import Discovery


def discover(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the popular models of the hub, rank them, and say of every refused one why."""
    from modelpress import pipeline
    from modelpress.session import Session

    with Session(ctx.obj.settings(), exclusive=True) as session:
        found = pipeline.discover(session)
    if as_json:
        scores = {
            repo_id: {"value": score.value, "level": score.level, "rise": score.rise, "trend": score.trend}
            for repo_id, score in found.scores.items()
        }
        emit({"accepted": found.accepted, "refused": found.refused, "revisions": found.revisions, "scores": scores})
    else:
        show(found)


def show(found: Discovery) -> None:
    """Print both sides of a discovery as tables, and the new revisions of known models."""
    from rich.markup import escape
    from rich.table import Table

    out = console()
    table = Table(title="Accepted", title_justify="left", box=None, pad_edge=False)
    for column in ("rank", "model", "commit", "score", "trend", "downloads", "likes", "parameters", "size", "licence"):
        table.add_column(column, justify="left" if column in ("model", "commit", "trend", "licence") else "right", overflow="fold")
    for rank, candidate in enumerate(found.accepted, 1):
        score = found.scores[candidate.ref.repo_id]
        table.add_row(
            str(rank),
            escape(candidate.ref.repo_id),
            candidate.ref.sha[:8],
            f"{score.value:.2f}",
            "" if score.trend == "level" else f"{score.trend} {score.rise:+.2f}",
            f"{candidate.downloads:,}",
            f"{candidate.likes:,}",
            f"{candidate.parameters:,}" if candidate.parameters else "unknown",
            size(sum(file.size for file in candidate.files)),
            escape(candidate.license_name or candidate.license or "none"),
        )
    out.print(table)
    for revision in found.revisions:
        out.print(f"new revision of {revision.ref.repo_id}: {revision.reason}", markup=False, highlight=False)
    if found.refused:
        other = Table(title="\nRefused", title_justify="left", box=None, pad_edge=False)
        other.add_column("model", overflow="fold")
        other.add_column("why", overflow="fold")
        for refusal in found.refused:
            other.add_row(escape(refusal.repo_id), escape(refusal.reason))
        out.print(other)
