"""`modelpress reproduce`: a measurement taken again, and whether the numbers agree."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelpress.compress import Log
from modelpress.options import AsJson, console, emit

if TYPE_CHECKING:
    from modelpress.repetition import Twice
    from runners.reproduction import Change, Repeat


def reproduce(
    ctx: typer.Context,
    measurement: Annotated[
        str,
        typer.Argument(
            metavar="MEASUREMENT",
            help="A measuring job's id, a variant's label or id or a base's owner/name (of each the newest, with the metric asked for), "
            "or a JSON file of `modelpress measure --json`.",
        ),
    ],
    metric: Annotated[list[str] | None, typer.Option(help="Judge this metric alone (repeatable); all are measured.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with local texts and task data, of a JSON file's measurement.")] = None,
    log: Log = None,
    as_json: AsJson = False,
) -> None:
    """Take a MEASUREMENT again with its protocol and say of each number whether it agrees within its interval or stated tolerance."""
    from modelpress import repetition
    from modelpress.measure import local_data
    from modelpress.session import Session
    from runners.reproduction import changes, repeats

    with Session(ctx.obj.settings()) as session:
        path = Path(measurement)
        if path.is_file():
            twice = repetition.from_file(session, path, metric, log, data=local_data(session, data))
        else:
            twice = repetition.from_store(session, measurement, metric)
    found = repeats(repetition.wanted(twice.then, metric), twice.now)
    differs = changes(twice.environment_then, twice.environment_now)
    if as_json:
        rows = [{**vars(one), "difference": one.difference} for one in found]
        emit({"measurement": twice.what, "changes": differs, "repeats": rows, "notes_then": twice.notes_then, "notes_now": twice.notes_now})
    else:
        _show(twice, differs, found)
    _judge(found, differs)


def _show(twice: Twice, differs: Sequence[Change], found: Sequence[Repeat]) -> None:
    """Print what of the environment changed, then a table, one line a number."""
    from rich.table import Table

    from leaderboard.text import number

    out = console()
    out.print(twice.what, markup=False, highlight=False)
    for change in differs:
        out.print(
            f"environment: {change.name} was {change.then or 'not noted'}, is {change.now or 'not there'}", markup=False, highlight=False
        )
    if not differs:
        out.print("environment: the same hardware, system, settings and libraries")
    table = Table(box=None, pad_edge=False)
    for column in ("metric", "conditions", "then", "now", "difference", "verdict"):
        table.add_column(column, justify="right" if column in ("then", "now", "difference") else "left", overflow="fold")
    for one in found:
        table.add_row(
            one.then.metric,
            " ".join(f"{name}={value}" for name, value in sorted(one.then.conditions.items())),
            f"{number(one.then.value, 5)} [{number(one.then.ci_low, 4)}, {number(one.then.ci_high, 4)}]",
            number(one.now.value, 5) if one.now else "",
            "" if one.difference is None else f"{one.difference:+.2%}",
            f"{'agrees' if one.agrees else 'does not agree'}: {one.reason}",
        )
    out.print(table)
    for when, notes in (("then", twice.notes_then), ("now", twice.notes_now)):
        for note in notes:
            out.print(f"note, {when}: {note}", markup=False, highlight=False)
    out.print(f"{sum(one.agrees for one in found)} of {len(found)} numbers agree")


def _judge(found: Sequence[Repeat], differs: Sequence[Change]) -> None:
    """Raise `NotReproduced` unless all agree."""
    from hub.errors import NotReproduced

    if wrong := [one for one in found if not one.agrees]:
        names = ", ".join(dict.fromkeys(one.then.metric for one in wrong))
        changed = f"the environment differs in {', '.join(change.name for change in differs)}" if differs else "the environment is the same"
        raise NotReproduced(
            f"{len(wrong)} of {len(found)} numbers do not agree: {names}",
            hint=f"{changed}; times and memory also change on a busy machine: try again when it is idle",
        )
