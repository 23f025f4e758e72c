"""`modelpress work`: run the plan on the farm, then the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelpress.options import AsJson, emit
from modelpress.plan import Models, Quick, Recipes, RetryFailed

if TYPE_CHECKING:
    from hub.dispatch import Counts
    from modelpress.pipeline import Refused, Selection
    from modelpress.session import Session


def work(
    ctx: typer.Context,
    model: Models = None,
    recipe: Recipes = None,
    quick: Quick = False,
    retry_failed: RetryFailed = False,
    no_plan: Annotated[
        bool, typer.Option("--no-plan", help="Only help with what is planned, beside another `work` or `run`: no planning, no gate.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Press and measure what is planned, then put every new artifact through the gate."""
    from hub.errors import Incomplete, UsageError
    from modelpress import pipeline
    from modelpress.session import Session

    selection = pipeline.Selection(models=tuple(model or ()), recipes=tuple(recipe or ()), quick=quick, retry_failed=retry_failed)
    if no_plan and selection != pipeline.Selection():
        raise UsageError("--no-plan takes what is planned as it is", hint="leave out --model, --recipe, --quick and --retry-failed")
    with Session(ctx.obj.settings(), exclusive=not no_plan, helper=no_plan) as session:
        counts, by_gate, not_judged = helped(session) if no_plan else worked(session, selection)
    if as_json:
        emit({**told(counts), "refused_by_gate": by_gate, "not_judged": not_judged})
    else:
        typer.echo(f"{counts.done} jobs done, {counts.failed} failed" + ("" if no_plan else f"; the gate refused {len(by_gate)}"))
        for line in left(counts):
            typer.echo(line)
    if counts.failed:
        raise Incomplete(f"{counts.failed} jobs failed", hint="modelpress status shows each with its reason")
    if not_judged:
        raise Incomplete(
            f"{len(not_judged)} artifacts could not be judged; first: {not_judged[0].reason}", hint="modelpress work inspects them again"
        )


def worked(session: Session, selection: Selection) -> tuple[Counts, list[str], list[Refused]]:
    """Plan, work and judge; return the counts, the variants that the gate refused, and what could not be judged."""
    from modelpress import pipeline

    pipeline.plan(session, selection)
    counts = pipeline.work(session)
    refused, not_judged = pipeline.gate(session)
    return counts, [record.variant_id for record in refused], not_judged


def helped(session: Session) -> tuple[Counts, list[str], list[Refused]]:
    """Work alone: whoever planned judges."""
    from modelpress import pipeline

    session.store.recover()
    return pipeline.work(session), [], []


def told(counts: Counts) -> dict[str, Any]:
    """Return what came of a dispatch as a document."""
    numbers = {name: getattr(counts, name) for name in ("done", "failed", "retried", "cancelled", "interrupted", "lost")}
    return {**numbers, "not_started": dict(counts.not_started), "reasons": dict(counts.reasons)}


def left(counts: Counts) -> list[str]:
    """Return a line for each reason for which planned jobs were not started."""
    words = {
        "budget": "the budget does not allow them now",
        "paused": "all is paused, and modelpress resume lets them go on",
        "put_off": "they are tried again later",
        "blocked": "what they need is not done",
        "ready": "they came too late",
    }
    reasons = {why: f" ({counts.reasons[why]})" for why in counts.reasons}
    return [f"{count} planned jobs were not started: {words[why]}{reasons.get(why, '')}" for why, count in counts.not_started.items()]
