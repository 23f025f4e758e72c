"""`modelpress bench`: a fresh run in a scratch folder, and where its time went."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated

import typer

from leaderboard.text import duration
from modelpress.options import AsJson, emit
from modelpress.plan import Models, Quick, Recipes


def bench(
    ctx: typer.Context,
    model: Models = None,
    recipe: Recipes = None,
    quick: Quick = False,
    second: Annotated[bool, typer.Option(help="Also time a second run, which finds everything done.")] = True,
    as_json: AsJson = False,
) -> None:
    """Run everything from nothing in a scratch folder and print where the time goes, as shares of the same run."""
    from dataclasses import replace

    from modelpress import pipeline
    from modelpress.run import everything
    from modelpress.session import Session

    selection = pipeline.Selection(models=tuple(model or ()), recipes=tuple(recipe or ()), quick=quick)
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as scratch:
        settings = replace(ctx.obj, work_dir=Path(scratch)).settings()
        with Session(settings, exclusive=True) as session:
            outcome = everything(session, selection)
            stages: dict[str, float] = defaultdict(float)
            for record in session.store.jobs():
                for stage, seconds in record.stages.items():
                    stages[stage] += seconds
        again = None
        if second:
            with Session(settings, exclusive=True) as session:
                again = everything(session, selection)["seconds"]
    total = outcome["seconds"]
    report = {
        "seconds": total,
        "seconds_by_phase": outcome["seconds_by_stage"],
        "seconds_by_job_stage": dict(stages),
        "jobs": outcome["jobs_done"],
        "published": len(outcome["released"]),
        "second_run_seconds": again,
    }
    if as_json:
        emit(report)
        return
    for title, rows in (("phase", outcome["seconds_by_stage"]), ("stage of the jobs", stages)):
        typer.echo(f"\n{title:<28} {'seconds':>9} {'share':>7}")
        for name, seconds in sorted(rows.items(), key=lambda row: -row[1]):
            typer.echo(f"{name:<28} {seconds:>9.1f} {seconds / total:>7.1%}")
    typer.echo(f"\nwhole run {duration(total)}: {outcome['jobs_done']} jobs, {len(outcome['released'])} published")
    if again is not None:
        typer.echo(f"second run {duration(again)}: {again / total:.1%} of the first")
