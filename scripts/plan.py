"""`modelpress plan`: the jobs that would run now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from leaderboard.text import duration, size
from modelpress.options import AsJson, emit

if TYPE_CHECKING:
    from hub.scheduling import Plan

Models = Annotated[list[str] | None, typer.Option("--model", help="Only this base model (repeatable).")]
Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", "--recipes", help="Only this recipe, a name or a TOML file (repeatable); `all`: every shipped one."),
]
Quick = Annotated[bool, typer.Option("--quick", help="The most popular model, two recipes, the quick protocol.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Plan failed jobs again, whatever they failed of.")]


def plan(
    ctx: typer.Context,
    model: Models = None,
    recipe: Recipes = None,
    quick: Quick = False,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Plan jobs for the discovered models: base model x recipe, less what is done."""
    from modelpress import pipeline
    from modelpress.session import Session

    selection = pipeline.Selection(models=tuple(model or ()), recipes=tuple(recipe or ()), quick=quick, retry_failed=retry_failed)
    with Session(ctx.obj.settings(), exclusive=True) as session:
        planned = pipeline.plan(session, selection)
        needed = pipeline.needed(session, planned)
    if as_json:
        emit({"jobs": planned.jobs, "refusals": planned.refusals, "done": planned.done, "needs": needed})
    else:
        show(planned, needed)


def show(planned: Plan, needed: dict[str, dict[str, float]]) -> None:
    """Print a plan: what each press takes, from shapes alone (memory, disk, about how long)."""
    if not (planned.jobs or planned.done or planned.refusals):
        typer.echo("no base model is recorded yet: modelpress discover lists and screens them, then plan again")
        return
    for job in planned.jobs:
        takes = needed.get(job.id)
        words = (
            f"  {size(takes['memory_bytes'])} of memory, {size(takes['disk_bytes'])} on disk, {duration(takes['seconds'])}" if takes else ""
        )
        typer.echo(f"{job.id}  {job.title}{words}")
    for refusal in planned.refusals:
        typer.echo(f"not planned: {refusal.recipe} on {refusal.repo_id}: {refusal.reason}")
    typer.echo(f"{len(planned.jobs)} jobs to run, {planned.done} done, {len(planned.refusals)} not possible")
