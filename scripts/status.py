"""`modelpress status`: what is planned, running, done and failed."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from leaderboard.text import duration
from modelpress.options import AsJson, console, emit

MOST_JOBS = 60
"""With more jobs than this, those that are done or wait are counted and not listed: what needs a look would scroll away."""


def status(
    ctx: typer.Context,
    every: Annotated[bool, typer.Option("--all", help=f"List all jobs, also where there are more than {MOST_JOBS}.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the jobs: planned, running, done, failed with class and reason; how many releases there are, and how many verified."""
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
    listed = [record for record in jobs if every or len(jobs) <= MOST_JOBS or record.state in ("running", "failed")]
    for record in sorted(listed, key=lambda one: ("running", "failed", "planned", "done").index(one.state)):
        failure = record.failure
        trouble = f"{failure.error}: {failure.reason}" + (f" -> {failure.hint}" if failure.hint else "") if failure else ""
        took = duration(record.seconds) if record.seconds is not None else ""
        table.add_row(escape(record.job.title), f"[{colours[record.state]}]{record.state}[/]", str(record.attempts), took, escape(trouble))
    if listed:
        out.print(table)
    if len(listed) < len(jobs):
        typer.echo(f"{len(jobs) - len(listed)} jobs that are done or waiting are not listed; --all lists them")
    counts = Counter(record.state for record in jobs)
    releases = [record.release for record in variants if record.release]
    verified = sum(release.verified_at is not None for release in releases)
    typer.echo(", ".join(f"{counts[state]} {state}" for state in ("planned", "running", "done", "failed")))
    typer.echo(f"{len(releases)} releases, {verified} verified on the published bytes; {len(refusals)} models or recipes refused")
