"""`modelpress work`: run the plan on the farm, then the gate."""

from __future__ import annotations

import typer

from modelpress.options import AsJson, emit
from modelpress.plan import Models, Quick, Recipes, RetryFailed


def work(
    ctx: typer.Context,
    model: Models = None,
    recipe: Recipes = None,
    quick: Quick = False,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Press and measure what is planned, then put every new artifact through the gate."""
    from hub.errors import Incomplete
    from modelpress import pipeline
    from modelpress.session import Session

    selection = pipeline.Selection(models=tuple(model or ()), recipes=tuple(recipe or ()), quick=quick, retry_failed=retry_failed)
    with Session(ctx.obj.settings(), exclusive=True) as session:
        counts = pipeline.work(session, pipeline.plan(session, selection))
        refused, not_judged = pipeline.gate(session)
    if as_json:
        by_gate = [record.variant_id for record in refused]
        emit({"done": counts.done, "failed": counts.failed, "refused_by_gate": by_gate, "not_judged": not_judged})
    else:
        typer.echo(f"{counts.done} jobs done, {counts.failed} failed; the gate refused {len(refused)}")
    if counts.failed:
        raise Incomplete(f"{counts.failed} jobs failed", hint="modelpress status shows each with its reason")
    if not_judged:
        raise Incomplete(
            f"{len(not_judged)} artifacts could not be judged; first: {not_judged[0].reason}", hint="modelpress work inspects them again"
        )
