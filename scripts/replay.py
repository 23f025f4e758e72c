"""`modelpress replay`: what would have been pressed, day by day, had these listings been the hub's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelpress.options import AsJson, console, emit

if TYPE_CHECKING:
    from rich.console import Console

    from hub.replay import Day


def replay(
    ctx: typer.Context,
    listing: Annotated[list[Path], typer.Argument(metavar="LISTING...", help="Dated JSON listings, or folders of them.")],
    per_day: Annotated[int, typer.Option(min=1, help="The most models that one day may press.")] = 5,
    budget: Annotated[float, typer.Option(min=0, help="The most parameters that one day may press, in billions; 0: no limit.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Replay dated listings through ranking and policy: what each day would have pressed and why, and what was refused and why."""
    from hub import replay as replays

    settings = ctx.obj.settings()
    limits = replays.Limits(models=per_day, parameters=budget * 1e9)
    days = replays.replay(replays.read(listing), settings, limits)
    if as_json:
        emit({"not_judged": replays.NOT_HELD, "days": [_document(day) for day in days]})
        return
    out = console()
    pressed = shown = 0
    for day in days:
        show(out, day)
        pressed, shown = pressed + len(day.picks), shown + 1
    out.print(f"\n{shown} listings, {pressed} models pressed.", markup=False, highlight=False)
    out.print(
        f"Not judged, since no listing holds it: {', '.join(replays.NOT_HELD)}. A task that a listing does not name is not judged either.",
        markup=False,
        highlight=False,
    )


def show(out: Console, day: Day) -> None:
    """Print one day: a line of counts, then its picks, best first."""
    from rich.markup import escape
    from rich.table import Table

    refused = ", ".join(f"{count} {code}" for code, count in day.refused.items()) or "none"
    stale = "  (no count moved: an old listing shown again)" if not day.moved else ""
    out.print(f"\n{day.day}  {day.listed:,} listed{stale}", markup=False, highlight=False)
    out.print(
        f"  {day.accepted:,} may be pressed ({day.rising} rising, {day.falling} falling; {day.task_unknown} of unknown task), "
        f"{day.waiting:,} of them wait; refused: {refused}",
        markup=False,
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for pick in day.picks:
        score = f"{pick.score.value:.2f}"
        size = f"{pick.parameters / 1e9:.2f}B" if pick.parameters else "?"
        table.add_row(f"  {pick.rank}", escape(pick.repo_id), size, score, f"{pick.reason}{'' if pick.task_known else '; task unknown'}")
    out.print(table)


def _document(day: Day) -> dict[str, Any]:
    picks = [
        {**asdict(pick), "score": {**asdict(pick.score), "value": pick.score.value, "level": pick.score.level, "trend": pick.score.trend}}
        for pick in day.picks
    ]
    return {**asdict(day), "picks": picks, "refused": day.refused}
