"""`modelpress prune`: what of the work folder is not needed any more, and its removal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leaderboard.text import plain, size
from modelpress.options import AsJson, console, emit

if TYPE_CHECKING:
    from hub.history import VariantRecord
    from hub.housekeeping import Found, Waste
    from modelpress.session import Session

DAY = 24 * 3600.0


def prune(
    ctx: typer.Context,
    artifacts: Annotated[bool, typer.Option("--artifacts", help="Artifacts that the Hub has, verified, or that the gate refused.")] = False,
    cache: Annotated[bool, typer.Option("--cache", help="Downloads, and what is kept to be faster, that no planned job needs.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Both.")] = False,
    older: Annotated[
        float | None, typer.Option(min=0, metavar="DAYS", help="Only what nobody changed for so long; logs: 30 if not given.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Free it, without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what could be freed, and free it with --yes: leftovers of killed processes and old logs always, artifacts and caches if named.

    Nothing goes that a planned or running job, an artifact that is not published yet, or a release that is not verified needs.
    """
    from modelpress.session import Session

    groups = {"leftovers", "logs"} | ({"artifacts"} if artifacts or every else set()) | ({"cache"} if cache or every else set())
    older_s = None if older is None else older * DAY
    settings = ctx.obj.settings()
    if not yes:
        with Session(settings) as session:
            found = look(session, older_s)
        chosen = [one for one in found.waste if one.group in groups]
        if as_json:
            emit(told(found, chosen, freed=0))
            return
        show(found, groups)
        if not chosen or not (sys.stdin.isatty() and sys.stdout.isatty()):
            typer.echo(f"{size(total(chosen))} can be freed: --yes does it" if chosen else "nothing to free" + otherwise(found))
            return
        if not typer.confirm(f"Free {size(total(chosen))} now?"):
            return
    with Session(settings, alone=True) as session:
        found = look(session, older_s)
        chosen = [one for one in found.waste if one.group in groups]
        freed, refused = remove(session, chosen)
    if as_json:
        emit(told(found, chosen, freed=freed))
    else:
        typer.echo(f"{size(freed)} freed in {len(chosen) - len(refused)} pieces" if chosen else "nothing changed: there is nothing to free")
    if refused:
        raise refused[0]


def look(session: Session, older_s: float | None) -> Found:
    """Return what could go of the work folder, by what the database says."""
    from hub import housekeeping
    from hub.housekeeping import Found, Known

    if not session.folder.is_dir():
        return Found(waste=(), left_alone=())
    session.store.recover()
    wanted = session.store.reader.wanted()
    records = [record for record in session.store.variants() if record.artifact]
    useless = {record.variant_id: reason for record in records if (reason := why_useless(record))}
    bases = wanted.bases | {record.base for record in records if record.variant_id not in useless}
    made = frozenset(record.variant_id for record in records)
    known = Known(useless=useless, made=made, bases=bases, active=wanted.jobs, pressing=wanted.variants)
    return housekeeping.find(session.folder, known, older_s=older_s)


def why_useless(record: VariantRecord) -> str:
    """Return why a variant's artifact is not needed here any more; empty where it is."""
    from leaderboard.gate import artifact_verdict
    from modelpress.pipeline import released

    verdict = artifact_verdict(record)
    if record.release is not None:
        return "the Hub has it, verified" if released(record) and record.release.verified_at else ""
    return "the gate refused it" if verdict is not None and not verdict.passed else ""


def remove(session: Session, chosen: Sequence[Waste]) -> tuple[int, list[OSError]]:
    """Free these things; return how many bytes, and what the system refused."""
    from hub import housekeeping

    freed, refused = 0, []
    with session.report.phase("prune", len(chosen)) as phase:
        for one in chosen:
            label = f"{one.kind} {one.path.name}"
            phase.begin(label)
            try:
                freed += one.bytes if housekeeping.free(session.folder, one) else 0
            except OSError as error:
                refused.append(error)
                phase.fail(label, error.strerror or str(error))
                continue
            phase.end(label)
    return freed, refused


def total(waste: Iterable[Waste]) -> int:
    """Return how many bytes these things take."""
    return sum(one.bytes for one in waste)


def otherwise(found: Found) -> str:
    """Return which options would free something; an empty text where none would."""
    options = [f"--{group}" for group in ("artifacts", "cache") if any(one.group == group for one in found.waste)]
    return f" without {' or '.join(options)}" if options else ""


def kinds(waste: Iterable[Waste]) -> dict[tuple[str, str, str], list[Waste]]:
    """Return things by group, kind and reason, in the order in which they were found."""
    found: dict[tuple[str, str, str], list[Waste]] = {}
    for one in waste:
        found.setdefault((one.group, one.kind, one.reason), []).append(one)
    return found


def told(found: Found, chosen: Sequence[Waste], *, freed: int) -> dict[str, Any]:
    """Return what was found and what was freed, for --json."""
    rows = [
        {"group": group, "kind": kind, "reason": reason, "count": len(waste), "bytes": total(waste), "chosen": waste[0] in chosen}
        for (group, kind, reason), waste in kinds(found.waste).items()
    ]
    things = [{"kind": one.kind, "path": str(one.path), "bytes": one.bytes, "reason": one.reason} for one in chosen]
    return {"bytes": total(chosen), "freed": freed, "kinds": rows, "chosen": things, "left_alone": found.left_alone}


def show(found: Found, groups: set[str]) -> None:
    """Print what could go, one line a kind, and which option frees it."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("what", "count", "size", "why it is not needed", "goes with"):
        table.add_column(column, justify="right" if column in ("count", "size") else "left", overflow="fold")
    for (group, kind, reason), waste in kinds(found.waste).items():
        option = "--yes" if group in groups else f"--{group} --yes"
        table.add_row(escape(kind), str(len(waste)), size(total(waste)), escape(reason), option)
    if found.waste:
        console().print(table)
    for sentence in found.left_alone:
        typer.echo(f"left alone: {plain(sentence)}")
