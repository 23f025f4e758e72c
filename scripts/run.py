"""`modelpress run`: the whole press, from discovery to the site."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from leaderboard.text import duration, size
from modelpress.options import AsJson, console, emit
from modelpress.plan import Models, Quick, Recipes, RetryFailed, total
from modelpress.work import left

if TYPE_CHECKING:
    from hub.domain import Measurement, Refusal
    from hub.history import VariantRecord
    from modelpress.pipeline import Refused, Selection
    from modelpress.session import Session


def run(
    ctx: typer.Context,
    model: Models = None,
    recipe: Recipes = None,
    quick: Quick = False,
    retry_failed: RetryFailed = False,
    as_json: AsJson = False,
) -> None:
    """Discover, plan, press, measure, gate, publish, verify and build the site; what is done already is not done again."""
    from hub.errors import Incomplete
    from modelpress import pipeline
    from modelpress.session import Session

    selection = pipeline.Selection(models=tuple(model or ()), recipes=tuple(recipe or ()), quick=quick, retry_failed=retry_failed)
    with Session(ctx.obj.settings(), exclusive=True) as session:
        outcome = everything(session, selection)
        variants = session.store.variants()
        if as_json:
            emit({**outcome, "variants": variants, "site": str(session.site / "index.html"), "endpoint": session.page_url})
        else:
            show(session, variants, outcome["refused"])
            closing(session, outcome)
    problems = outcome["jobs_failed"] + sum(len(outcome[name]) for name in ("not_judged", "not_published", "not_verified"))
    if problems:
        raise Incomplete(f"{problems} pieces of work failed", hint="modelpress status shows each with its reason; running again goes on")


def everything(session: Session, selection: Selection) -> dict[str, Any]:
    """Go through all stages and return what happened: counts, refusals, failures, seconds by stage."""
    from modelpress import collecting, pipeline, publishing

    began = time.monotonic()
    found = pipeline.discover(session)
    accepted, refused = found.accepted, found.refused
    session.report.say(f"discover: {len(accepted)} models accepted, {len(refused)} refused")
    for revision in found.revisions:
        session.report.say(f"  new revision of {revision.ref.repo_id}: {revision.reason}")
    for refusal in refused:
        session.report.say(f"  skipped {refusal.repo_id}: {refusal.reason}")
    planned = pipeline.plan(session, selection)
    session.report.say(f"plan: {len(planned.jobs)} jobs to run, {planned.done} done, {len(planned.refusals)} not possible")
    if planned.jobs:
        session.report.say(f"  predicted: {total(planned.jobs, planned, session.settings.budget)}")
    for refusal in planned.refusals:
        session.report.say(f"  skipped {refusal.recipe} on {refusal.repo_id}: {refusal.reason}")
    counts = pipeline.work(session)
    for line in left(counts):
        session.report.say(line)
    gate_refused, not_judged = pipeline.gate(session)
    published = publishing.publish(session)
    verdicts, not_verified = pipeline.verify(session)
    collected = collecting.collect(session)
    for line in collected.problems:
        session.report.say(line)
    _, pages = pipeline.site(session)
    return {
        "accepted": len(accepted),
        "refused": [*refused, *planned.refusals],
        "jobs_done": counts.done,
        "jobs_failed": counts.failed,
        "jobs_retried": counts.retried,
        "jobs_cancelled": counts.cancelled,
        "jobs_interrupted": counts.interrupted,
        "jobs_lost": counts.lost,
        "jobs_not_started": dict(counts.not_started),
        "not_started_reasons": dict(counts.reasons),
        "refused_by_gate": [record.variant_id for record in gate_refused],
        "not_judged": not_judged,
        "released": published.released,
        "cards_renewed": [*published.cards, *collected.cards],
        "collections": collected.collections,
        "not_collected": collected.problems,
        "not_published": published.refused,
        "left_for_later": published.left,
        "verified": sum(verdict.passed for verdict in verdicts),
        "not_verified": not_verified,
        "pages": pages,
        "seconds": time.monotonic() - began,
        "seconds_by_stage": dict(session.report.seconds),
    }


def show(session: Session, variants: list[VariantRecord], refused: list[Refusal | Refused]) -> None:
    """Print what there is now: one line a variant, against its base."""
    from rich.markup import escape
    from rich.table import Table

    from leaderboard.stats import headlines

    bases = {base.candidate.ref: {m.metric: m for m in headlines(base.measurements)} for base in session.store.bases()}
    table = Table(title="What there is now", title_justify="left", box=None, pad_edge=False)
    for column in ("base", "recipe", "size", "x smaller", "perplexity", "KL", "decode x base", "gate", "published as"):
        table.add_column(column, justify="left" if column in ("base", "recipe", "gate", "published as") else "right", overflow="fold")
    for record in variants:
        own, base = {m.metric: m for m in headlines(record.measurements)}, bases.get(record.base, {})
        table.add_row(
            escape(record.base.name),
            escape(record.recipe.name),
            size(own["disk_size"].value) if "disk_size" in own else "",
            ratio(base, own, "disk_size"),
            f"{own['perplexity'].value:.2f} ({own['perplexity_ratio'].value - 1:+.1%})" if "perplexity_ratio" in own else "",
            f"{own['kl_divergence'].value:.4f}" if "kl_divergence" in own else "",
            f"{own['decode_speedup'].value:.2f}" if "decode_speedup" in own else "",
            gate_word(record),
            published_word(record),
        )
    console().print(table)
    typer.echo(f"{len(refused)} models or recipes were skipped; their reasons stand above and on the site's Jobs page")


def ratio(above: dict[str, Measurement], below: dict[str, Measurement], metric: str) -> str:
    """Return one measurement as a multiple of another, or nothing where one is missing."""
    if metric not in above or metric not in below or not below[metric].value:
        return ""
    return f"{above[metric].value / below[metric].value:.2f}"


def gate_word(record: VariantRecord) -> str:
    """Return what the gate said of the artifact, in a word or with the checks that failed."""
    from leaderboard.gate import artifact_verdict

    if record.failure:
        return f"[red]{record.failure.error}[/]"
    verdict = artifact_verdict(record)
    if verdict is None:
        return "[dim]not judged[/]"
    if verdict.passed:
        return "[green]passed[/]"
    return f"[red]refused: {', '.join(sorted(check.name for check in verdict.checks if not check.passed))}[/]"


def published_word(record: VariantRecord) -> str:
    """Return the release of a variant and whether its published bytes were verified."""
    if record.release is None:
        return ""
    return f"{record.release.repo_id} {'[green]verified[/]' if record.release.verified_at else '[yellow]not verified[/]'}"


def closing(session: Session, outcome: dict[str, Any]) -> None:
    """Print what was done, where things lie and what to try next."""
    released, verified = len(outcome["released"]), outcome["verified"]
    jobs = f"{outcome['jobs_done']} jobs done, {outcome['jobs_failed']} failed"
    typer.echo(f"\n{jobs}, {released} published, {verified} verified in {duration(outcome['seconds'])}")
    if later := outcome["left_for_later"]:
        typer.echo(
            f"{len(later)} releases or cards are left for a later run: {later[0].reason.removeprefix('it is left for a later run: ')}"
        )
    typer.echo(f"site       {session.site / 'index.html'}")
    typer.echo(f"database   {session.settings.press.database or session.database} (view v_results)")
    local = session.settings.hub.endpoint == "local"
    typer.echo(f"hub        {session.page_url}{' while `modelpress hub serve` runs' if local else ''}")
    example = next((record.release.repo_id for record in session.store.variants() if record.release), None)
    if local and example:
        typer.echo("\nNext: serve the hub, and load a variant as any of its users would:")
        typer.echo(f"  {shown(Path(sys.argv[0]))} hub serve &")
        code = f"from transformers import pipeline; print(pipeline('text-generation', '{example}')('def main('))"
        typer.echo(f'  HF_ENDPOINT={session.page_url} {shown(Path(sys.executable))} -c "{code}"')
    elif not example:
        typer.echo("\nNext: modelpress status")


def shown(program: Path) -> str:
    """Return a program as it can be typed here: its name where that finds it, else its path, relative to this folder if it is below."""
    if shutil.which(program.name) == str(program):
        return program.name
    return str(program.relative_to(Path.cwd())) if program.is_relative_to(Path.cwd()) else str(program)
