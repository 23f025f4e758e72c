"""`modelpress status`: what is planned, running, done and failed."""

from __future__ import annotations

from collections import Counter

import typer

from leaderboard.text import duration
from modelpress.options import AsJson, console, emit


def status(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Show the jobs: planned, running, done, failed with class and reason; releases with their last verification."""
    from rich.markup import escape
    from rich.table import Table

    from modelpress.session import Session

    with Session(ctx.obj.settings()) as session:
        session.store.recover()
        jobs = session.store.jobs()
        variants = session.store.variants()
        refusals = session.store.refusals()
    if as_json:
        emit({"jobs": jobs, "releases": [record.release for record in variants if record.release], "refusals": refusals})
        return
    out = console()
    if not jobs:
        typer.echo("nothing is planned yet: modelpress run does everything, modelpress discover only looks")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("job", "state", "tries", "took", "what went wrong, and what to do"):
        table.add_column(column, overflow="fold")
    colours = {"done": "green", "failed": "red", "running": "yellow", "planned": "dim"}
    for record in sorted(jobs, key=lambda one: ("running", "failed", "planned", "done").index(one.state)):
        failure = record.failure
        trouble = f"{failure.error}: {failure.reason}" + (f" -> {failure.hint}" if failure.hint else "") if failure else ""
        took = duration(record.seconds) if record.seconds is not None else ""
        table.add_row(escape(record.job.label), f"[{colours[record.state]}]{record.state}[/]", str(record.attempts), took, escape(trouble))
    out.print(table)
    counts = Counter(record.state for record in jobs)
    releases = [record.release for record in variants if record.release]
    verified = sum(release.verified_at is not None for release in releases)
    typer.echo(", ".join(f"{counts[state]} {state}" for state in ("planned", "running", "done", "failed")))
    typer.echo(f"{len(releases)} releases, {verified} verified on the published bytes; {len(refusals)} models or recipes refused")
