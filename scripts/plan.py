"""`modelpress plan`: the jobs that would run now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelpress.options import AsJson, emit

if TYPE_CHECKING:
    from hub.domain import Plan

Models = Annotated[list[str] | None, typer.Option("--model", help="Only this base model (repeatable).")]
Recipes = Annotated[list[str] | None, typer.Option("--recipe", help="Only this recipe, a name or a TOML file (repeatable).")]
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
    if as_json:
        emit(planned)
    else:
        show(planned)


def show(planned: Plan) -> None:
    """Print a plan."""
    for job in planned.jobs:
        typer.echo(f"{job.id}  {job.label}")
    for refusal in planned.refusals:
        typer.echo(f"not planned: {refusal.recipe} on {refusal.repo_id}: {refusal.reason}")
    typer.echo(f"{len(planned.jobs)} jobs to run, {planned.done} done, {len(planned.refusals)} not possible")
