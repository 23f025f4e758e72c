"""`modelpress plan`: the jobs that would run now, in order, with what each is expected to bring and to take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from leaderboard.text import duration, number, plain, size
from modelpress.options import AsJson, console, echo, emit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from hub.domain import Job
    from hub.scheduling import Expectation, Plan, Prediction
    from hub.settings import BudgetSettings

SHOWN = 30
WIDE = 130
"""Columns of a terminal that has room for reasons beside the numbers."""

Models = Annotated[list[str] | None, typer.Option("--model", help="Only this base model (repeatable).")]
Recipes = Annotated[
    list[str] | None,
    typer.Option("--recipe", "--recipes", help="Only this recipe, a name or a TOML file (repeatable); `all`: every shipped one."),
]
Quick = Annotated[bool, typer.Option("--quick", help="The most popular model, two recipes, the quick protocol.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Plan failed jobs again, whatever they failed of.")]
All = Annotated[bool, typer.Option("--all", help=f"Show every job, not the first {SHOWN} alone.")]


def plan(
    ctx: typer.Context,
    model: Models = None,
    recipe: Recipes = None,
    quick: Quick = False,
    retry_failed: RetryFailed = False,
    whole: All = False,
    as_json: AsJson = False,
) -> None:
    """Plan jobs for the discovered models, by value: base model x recipe, less what is done; say what each takes and what is held back."""
    from modelpress import expectations, pipeline
    from modelpress.session import Session

    selection = pipeline.Selection(models=tuple(model or ()), recipes=tuple(recipe or ()), quick=quick, retry_failed=retry_failed)
    settings = ctx.obj.settings()
    with Session(settings, exclusive=True) as session:
        planned = pipeline.plan(session, selection)
        slots = settings.farm.workers if settings.farm.kind == "ray" else 1  # here measurements run alone
        held = expectations.budget(session).foresee(planned, slots=slots)
    if as_json:
        emit(
            {
                "jobs": [{"id": job.id, "title": job.title, "job": job} for job in planned.jobs],
                "expected": planned.expected,
                "needs": {job: sorted(before) for job, before in planned.needs.items()},
                "held_back": held,
                "refusals": planned.refusals,
                "done": planned.done,
                "currency": settings.budget.currency,
            }
        )
    else:
        show(planned, held, settings.budget, whole=whole)


def show(planned: Plan, held: Mapping[str, str], budget: BudgetSettings, *, whole: bool = False) -> None:
    """Print a plan as a table, what it comes to, and what the budget holds back."""
    if not (planned.jobs or planned.done or planned.refusals):
        typer.echo("no base model is recorded yet: modelpress discover lists and screens them, then plan again")
        return
    jobs = planned.jobs if whole else planned.jobs[:SHOWN]
    if jobs:
        screen = console()
        screen.print(table(jobs, planned, held, budget, wide=screen.width >= WIDE))
        if left := len(planned.jobs) - len(jobs):
            typer.echo(f"… and {left} more: --all shows them")
        typer.echo()
    for refusal in planned.refusals:
        echo(plain(f"not planned: {refusal.recipe} on {refusal.repo_id}: {refusal.reason}"))
    typer.echo(f"{len(planned.jobs)} jobs to run, {planned.done} done, {len(planned.refusals)} not possible")
    if planned.jobs:
        starting = [job for job in planned.jobs if job.id not in held]
        typer.echo(f"all of them:  {total(planned.jobs, planned, budget)}")
        if held:
            typer.echo(f"in budget:    {total(starting, planned, budget)}")
    for line in held_back(planned, held):
        echo(line)
    for line in legend(planned) if planned.jobs else []:
        echo(line)


def legend(planned: Plan) -> list[str]:
    """Return what the table's words mean."""
    lines = ["value: downloads in 30 days x share of bytes saved x chance to be published, by the hours of work that are left"]
    lines.append(
        "×÷: two of three lie within this factor" + (f"; measured under {', '.join(names)}" if (names := protocols(planned)) else "")
    )
    if any(planned.expected[job.id].seconds.samples == 0 for job in planned.jobs if job.id in planned.expected):
        lines.append("~: from the models' shapes alone, as nothing like it has run here yet")
    return lines


def table(jobs: Sequence[Job], planned: Plan, held: Mapping[str, str], budget: BudgetSettings, *, wide: bool) -> Table:
    """Return jobs with what is expected of them, a heading for each base model; why they are done stands only where there is room."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    names = ["value", "time", "memory", "disk", *([budget.currency] if budget.price_per_hour else [])]
    one = len(protocols(planned)) == 1
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    made.add_column("#", justify="right", no_wrap=True)
    made.add_column("job", overflow="fold", ratio=2)
    for name in names:
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("why" if wide else "", overflow="fold", ratio=2 if wide else None)
    base = None
    for position, job in enumerate(jobs, start=1):
        expected = planned.expected.get(job.id)
        if job.base != base:
            base = job.base
            made.add_row("", f"[bold]{escape(base.repo_id)}[/]", *[""] * len(names), "")
        why = escape(expected.reason) if expected and wide else ""
        if job.id in held:
            why = f"[yellow]held back[/]: {escape(held[job.id])}" if wide else "[yellow]held[/]"
        made.add_row(str(position), f"  {escape(short(job, protocol=not one))}", *cells(expected, priced=bool(budget.price_per_hour)), why)
    return made


def protocols(planned: Plan) -> list[str]:
    """Return the names of the protocols of a plan."""
    return list(dict.fromkeys(job.protocol.name for job in planned.jobs if job.protocol))


def short(job: Job, *, protocol: bool) -> str:
    """Return what a job does below its base model's name."""
    what = f"{job.kind} {job.recipe.name if job.recipe else 'the base'}"
    return f"{what}, {job.protocol.name}" if job.protocol and protocol else what


def cells(expected: Expectation | None, *, priced: bool) -> list[str]:
    """Return value, time, memory, disk and (where there is a price) cost."""
    if expected is None:
        return ["?"] * (4 + priced)
    disk = size(expected.disk_bytes) if expected.disk_bytes else ""
    money = [number(expected.cost, 2)] if priced else []
    return [compact(expected.value), time(expected.seconds), size(expected.memory_bytes.value), disk, *money]


def compact(value: float) -> str:
    """Return a number with three digits and the thousands as a letter: `2.43M`."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{number(value / factor)}{letter}"
    return number(value)


def time(seconds: Prediction) -> str:
    """Return a time with its error as a factor: two of three lie within it."""
    return f"{'~' if seconds.samples == 0 else ''}{duration(seconds.value)} ×÷{number(max(1.0, seconds.factor), 2)}"


def total(jobs: Sequence[Job], planned: Plan, budget: BudgetSettings) -> str:
    """Return what jobs come to, with the most memory that one of them takes.

    Jobs that are predicted from shapes alone may all be off the same way, so their errors add up; the others err each for itself.
    """
    known = [planned.expected[job.id] for job in jobs if job.id in planned.expected]
    if not known:
        return f"{len(jobs)} jobs"
    seconds = sum(one.seconds.value for one in known)
    errors = [(one.seconds.value * (one.seconds.factor - 1), one.seconds.samples) for one in known]
    off = sum(error for error, samples in errors if not samples) + sum(error**2 for error, samples in errors if samples) ** 0.5
    parts = [
        f"{len(jobs)} jobs, {duration(seconds)} ×÷{number(1 + off / seconds, 2)} one after another",
        f"at most {size(max(one.memory_bytes.value for one in known))} of memory",
        f"{size(sum(one.disk_bytes for one in known))} on disk",
    ]
    if budget.price_per_hour:
        parts.append(f"{number(sum(one.cost for one in known), 3)} {budget.currency}")
    return ", ".join(parts)


def held_back(planned: Plan, held: Mapping[str, str]) -> list[str]:
    """Return a line on each reason for which jobs are held back, with how many and the first."""
    if not held:
        return []
    by_reason: dict[str, list[str]] = {}
    for job in planned.jobs:
        if job.id in held:
            by_reason.setdefault(held[job.id], []).append(job.title)
    lines = [f"held back by the budget: {len(held)} jobs"]
    for reason, titles in list(by_reason.items())[:5]:
        lines.append(f"  {plain(titles[0])}{f' and {len(titles) - 1} more' if len(titles) > 1 else ''}: {plain(reason)}")
    if len(by_reason) > 5:
        lines.append(f"  … and {len(by_reason) - 5} more reasons: the table shows them with --all")
    return lines
