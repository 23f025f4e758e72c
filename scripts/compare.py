"""`modelpress compare`: two measured models as pairs, window by window and document by document, without running either."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelpress.options import AsJson, console, emit

if TYPE_CHECKING:
    from hub.history import MeasuredJob
    from leaderboard.pairs import Pair, Pairs, Scored
    from modelpress.session import Session

Model = "a variant's label or id, a base's owner/name[@commit], a measuring job's id, or a JSON file of `modelpress measure --json`."


def compare(
    ctx: typer.Context,
    a: Annotated[str, typer.Argument(metavar="A", help=f"The first model: {Model}")],
    b: Annotated[str, typer.Argument(metavar="B", help="The second model, named in the same ways.")],
    protocol: Annotated[str | None, typer.Option(help="Only what was measured under this protocol.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare A with B on all that both scored: perplexity, divergence from their base, accuracy; say if they can be told apart."""
    from leaderboard import pairs
    from modelpress.session import Session

    with Session(ctx.obj.settings()) as session:
        found = pairs.compare(*(scored(session, name, protocol) for name in (a, b)))
    if as_json:
        rows = [{**asdict(pair), "told_apart": pair.told_apart, "better": _better(pair)} for pair in found.pairs]
        emit({"a": a, "b": b, "pairs": rows, "notes": found.notes})
    else:
        show(a, b, found)


def scored(session: Session, name: str, protocol: str | None = None) -> list[Scored]:
    """Return what a named model scored, newest first; raise `UsageError` where nothing was measured, or nothing under the protocol."""
    from hub.errors import UsageError

    found = [_of_file(Path(name))] if Path(name).is_file() else _of_store(session, name)
    wanted = [one for one in found if protocol in (None, one.protocol)]
    if not wanted:
        protocols = ", ".join(dict.fromkeys(one.protocol for one in found))
        raise UsageError(f"{name} was not measured under {protocol}.", hint=f"It was measured under {protocols}.")
    return wanted


def _of_file(path: Path) -> Scored:
    from hub.codec import from_json
    from hub.history import MeasurementFile
    from leaderboard.pairs import Scored

    read = from_json(MeasurementFile, path.read_bytes(), where=str(path))
    own = read.folder_sha or read.folder
    reference = own if read.base is None else read.base_sha or read.base
    return Scored(name=str(path), identity=own, reference=reference, protocol=read.protocol.name, scores=read.scores)


def _of_store(session: Session, name: str) -> list[Scored]:
    from leaderboard.pairs import Scored

    return [
        Scored(
            name=name,
            identity=done.job.variant_id or done.job.base.sha,
            reference=done.job.base.sha,
            protocol=done.job.protocol.name if done.job.protocol else "",
            scores=tuple(session.store.scores(done.id)),
        )
        for done in measured_jobs(session, name)
    ]


def measured_jobs(session: Session, name: str) -> list[MeasuredJob]:
    """Return the done measuring jobs that a name stands for, newest first; raise `UsageError` with the nearest names for none."""
    from difflib import get_close_matches

    from hub.errors import UsageError
    from leaderboard.exports import variant_names

    if found := session.store.measured(name):
        return found
    known = [*variant_names(session.store.variants()).values(), *(base.candidate.ref.repo_id for base in session.store.bases())]
    if name in known:
        raise UsageError(f"{name} has not been measured yet.", hint="Run modelpress work; modelpress status tells what failed.")
    near = get_close_matches(name, known, n=3)
    raise UsageError(
        f"{name} is neither a file nor anything that was measured in {session.folder}.",
        hint=f"Did you mean {' or '.join(near)}?" if near else f"Name {Model}",
    )


def show(a: str, b: str, found: Pairs) -> None:
    """Print a table, one line a metric: A beside B with the interval, and whether they can be told apart."""
    from rich.table import Table

    out = console()
    out.print(f"A  {a}\nB  {b}", markup=False, highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("metric", "over", "", "value", "95 % interval", "p", "verdict"):
        table.add_column(column, justify="right" if column in ("value", "p") else "left", overflow="fold")
    for pair in found.pairs:
        what = "A / B" if pair.kind == "ratio" else "A - B"
        unit = "documents" if pair.source != "windows" else ""
        table.add_row(
            pair.metric,
            f"{pair.samples} {unit or 'windows'}{f' of {pair.source}' if unit else ''}",
            what,
            _number(pair, pair.value),
            f"{_number(pair, pair.low)} to {_number(pair, pair.high)}",
            f"{pair.p_value:.2g}",
            f"can be told apart: {_better(pair)} is better" if pair.told_apart else "cannot be told apart",
        )
    out.print(table)
    for note in found.notes:
        out.print(f"not compared: {note}", markup=False, highlight=False)


def _number(pair: Pair, value: float) -> str:
    return f"{value:.5f}" if pair.kind == "ratio" else f"{value:+.5f}"


def _better(pair: Pair) -> str | None:
    return None if pair.first_is_better is None else "A" if pair.first_is_better else "B"
