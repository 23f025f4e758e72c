"""`modelpress methods`: the compression methods, and the results of all recipes as a Markdown table."""

from __future__ import annotations

import tomllib
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hub.errors import BadDocument, UsageError
from modelpress.options import AsJson, emit

if TYPE_CHECKING:
    from leaderboard.queries import Board
    from runners.method import MethodInfo

VERDICTS = "verdicts.toml"
Results = Annotated[bool, typer.Option("--results", help="Print the results of all recipes as Markdown tables, from the database.")]
Write = Annotated[
    Path | None,
    typer.Option("--write", help=f"Put those tables between the two marks in this Markdown file; verdicts: {VERDICTS} beside it."),
]


def methods(ctx: typer.Context, results: Results = False, write: Write = None, as_json: AsJson = False) -> None:
    """List the methods by family: their number formats or patterns, and whether they can be used here; or the results of all recipes."""
    from runners import methods as shipped

    found = shipped.available()
    if write is not None:
        _write(write, _board(ctx), [info.name for info in found])
    elif results:
        from leaderboard.tables import results as tables

        typer.echo(tables(_board(ctx), {}, []))
    elif as_json:
        emit(found)
    else:
        show(found)


def show(found: list[MethodInfo]) -> None:
    """Print the methods by family."""
    for family, group in groupby(sorted(found, key=lambda info: (info.family, info.name)), key=lambda info: info.family):
        typer.echo(family)
        for info in group:
            mark = "yes" if info.available else "NO "
            resumes = "  (a killed press goes on from its last finished layer)" if info.resumes else ""
            typer.echo(f"  {mark} {info.name:<16} {', '.join(info.schemes)}{resumes}")
            typer.echo(f"      {info.summary if info.available else info.reason}")


def _board(ctx: typer.Context) -> Board:
    from leaderboard.queries import read_board
    from modelpress.session import Session

    with Session(ctx.obj.settings()) as session:
        return read_board(session.store)


def _write(file: Path, board: Board, names: list[str]) -> None:
    from leaderboard.tables import BEGIN, END, replace_between, results

    if not file.is_file():
        raise UsageError(f"There is no file {file}.", hint="Name a Markdown file that holds the two marks.")
    verdicts = _verdicts(file.with_name(VERDICTS), names)
    text = replace_between(file.read_text(encoding="utf-8"), results(board, verdicts, names))
    if text is None:
        raise UsageError(f"{file} does not hold the two marks, once each and in order.", hint=f"Put in the lines {BEGIN} and {END}.")
    file.write_text(text, encoding="utf-8")
    missing = [name for name in names if name not in verdicts]
    typer.echo(f"{file}: results of {len(board.pages)} base models" + (f"; no verdict yet on {', '.join(missing)}" if missing else ""))


def _verdicts(file: Path, names: list[str]) -> dict[str, str]:
    """Return the sentence on each method; raise `BadDocument` for what is no sentence on a known method."""
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadDocument(f"{file} is not valid TOML: {error}", hint='Write lines such as: rtn = "One sentence."') from error
    for name, sentence in found.items():
        if name not in names or not isinstance(sentence, str):
            raise BadDocument(f"{file}: {name} is no method with a sentence.", hint='Write lines such as: rtn = "One sentence."')
    return found
