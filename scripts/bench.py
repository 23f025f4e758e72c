"""`modelpress bench`: a fresh run in a scratch folder, and where its time went."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from modelpress.options import AsJson, emit
from modelpress.plan import Models, Quick, Recipes

if TYPE_CHECKING:
    from hub.history import JobRecord

STAGES = {"download": "download", "load": "load", "quality": "measure", "speed": "measure", "finish": "save"}
PARTS = {
    "discover": "listing, screening, planning",
    "import": "starting processes and importing torch and transformers, all that is outside the jobs",
    "download": "base models from the hub, checksums included",
    "load": "loading checkpoints to measure them",
    "press": "the methods themselves, with the libraries that only they import",
    "save": "checksums and manifests",
    "measure": "quality and speed",
    "gate": "inspecting artifacts in clean processes",
    "publish": "cards and uploads",
    "verify": "downloading what was published, inspecting it again",
    "site": "building the site",
    "rest": "opening the hub and the database, recording",
}


def bench(
    ctx: typer.Context,
    model: Models = None,
    recipe: Recipes = None,
    quick: Quick = False,
    as_json: AsJson = False,
) -> None:
    """Run everything from nothing in a scratch folder, then once more, and print where the time goes as shares of the first run."""
    from modelpress import pipeline
    from modelpress.run import everything
    from modelpress.session import Session

    selection = pipeline.Selection(models=tuple(model or ()), recipes=tuple(recipe or ()), quick=quick)
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as scratch:
        settings = replace(ctx.obj, work_dir=Path(scratch)).settings()
        with Session(settings, exclusive=True) as session:
            outcome = everything(session, selection)
            parts = where_time_goes(outcome["seconds_by_stage"], session.store.jobs())
        with Session(settings, exclusive=True) as session:
            again = everything(session, selection)["seconds"]
    total = outcome["seconds"]
    parts["rest"] = total - sum(parts.values())
    if as_json:
        emit({"seconds": total, "seconds_by_part": parts, "jobs": outcome["jobs_done"], "second_run_seconds": again})
        return
    typer.echo(f"\n{'part':<10} {'seconds':>9} {'share':>7}  what it is")
    for name, seconds in parts.items():
        typer.echo(f"{name:<10} {seconds:>9.1f} {seconds / total:>7.1%}  {PARTS[name]}")
    typer.echo(f"{'whole run':<10} {total:>9.1f} {1:>7.1%}  {outcome['jobs_done']} jobs, {len(outcome['released'])} published")
    typer.echo(f"{'second run':<10} {again:>9.1f} {again / total:>7.1%}  of the first: everything was done")


def where_time_goes(phases: dict[str, float], jobs: Iterable[JobRecord]) -> dict[str, float]:
    """Return seconds by part of a run that worked one job at a time, from its phases and the stages inside its jobs."""
    records = [record for record in jobs if record.job.kind != "inspect"]
    stages: dict[str, float] = defaultdict(float)
    for record in records:
        for stage, seconds in record.stages.items():
            stages[STAGES.get(stage, "press")] += seconds
    return {
        "discover": phases["discover"] + phases["plan"],
        "import": max(0.0, phases["press and measure"] - sum(record.seconds or 0.0 for record in records)),
        **{part: stages[part] for part in ("download", "load", "press", "save", "measure")},
        **{part: phases[part] for part in ("gate", "publish", "verify", "site")},
    }
