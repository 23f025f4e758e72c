"""`modelpress status`: what runs and since when, what waits, what failed of what, what is blocked; once or again and again."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leaderboard.text import duration, plain
from modelpress.options import AsJson, console, emit

if TYPE_CHECKING:
    from rich.console import Group

    from hub.overview import JobLine, Overview
    from modelpress.session import Session

MOST_JOBS = 60
"""With more jobs than this, those that are done or wait are counted and not listed: what needs a look would scroll away."""
STATES = ("planned", "running", "done", "failed", "cancelled")
COLOURS = {"done": "green", "failed": "red", "running": "yellow", "planned": "dim", "cancelled": "magenta"}
NOTHING = "nothing is planned yet: modelpress run does everything, modelpress discover only looks"


def status(
    ctx: typer.Context,
    every_job: Annotated[bool, typer.Option("--all", help=f"List all jobs, also where there are more than {MOST_JOBS}.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.2, max=3600, metavar="SECONDS", help="How often --watch looks.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Show the jobs: what runs and for how long, what is tried again and when, what failed of what and what to do, what waits for it."""
    from hub.errors import UsageError
    from modelpress.session import Session

    if watch and as_json:
        raise UsageError("--watch and --json do not go together", hint="call modelpress status --json as often as you like")
    with Session(ctx.obj.settings()) as session:
        if watch:
            keep_watching(session, every)
            return
        seen = look(session)
        total = sum(seen.states.values())
        listed = listed_jobs(session, total, every_job=every_job)
        spent = budget_lines(session)
        if as_json:
            refusals, releases = session.store.refusals(), session.store.releases()
            emit({**vars(seen), "jobs": listed, "releases": releases, "refusals": refusals, "budget": spent})
            return
    if not total:
        typer.echo(NOTHING)
        if seen.paused is None:
            return
    out = console()
    if listed:
        out.print(job_table(listed))
    if len(listed) < total:
        typer.echo(f"{total - len(listed)} jobs that are done or waiting are not listed; --all lists them" + more(seen, listed))
    out.print(glance(seen, spent))


def look(session: Session) -> Overview:
    """Read all at a glance; jobs whose dispatcher was killed are put back first, so that they are not shown as running."""
    seen = session.store.reader.overview()
    if any(line.abandoned for line in seen.running) and session.store.recover():
        seen = session.store.reader.overview()
    return seen


def listed_jobs(session: Session, total: int, *, every_job: bool) -> tuple[JobLine, ...]:
    """Return the jobs to list one by one: all of few, of many those that run or failed."""
    if every_job or total <= MOST_JOBS:
        return session.store.reader.lines()
    return session.store.reader.lines(states=("running", "failed"), limit=MOST_JOBS)


def more(seen: Overview, listed: Iterable[JobLine]) -> str:
    """Return where to find failed jobs that are too many to be listed; an empty text where all are."""
    left = seen.states.get("failed", 0) - sum(line.state == "failed" for line in listed)
    return f"; {left} more failed: modelpress jobs --state failed" if left > 0 else ""


def budget_lines(session: Session) -> list[str]:
    """Return what is used of each limit that is set, in groups that are counted over the same time; nothing where none is."""
    from hub.budget import DAY, GIB, HOUR, folder_bytes
    from modelpress.expectations import gpus

    budget = session.settings.budget
    used = session.store.reader.used(period_s=budget.period_hours * HOUR, hub_period_s=DAY)
    farm = (
        (used.jobs, budget.jobs, "jobs"),
        (used.job_hours, budget.job_hours, "hours of jobs"),
        (used.gpu_hours + used.unpriced_hours * gpus(session), budget.gpu_hours, "GPU hours"),
        (used.money + used.unpriced_hours * budget.price_per_hour, budget.money, budget.currency),
    )
    hub = ((used.repos, budget.repos_per_day, "repositories"), (used.commits, budget.commits_per_day, "commits"))
    held = folder_bytes(session.folder) if budget.disk_gib else 0
    room = (
        (held / GIB, budget.disk_gib, "GiB in the work folder"),
        (used.stored_bytes / GIB, budget.storage_gib, "GiB of releases on the Hub"),
    )
    groups = ((farm, f" in {budget.period_hours:g} hours"), (hub, " on the Hub in 24 hours"), (room, ""))
    found = [([f"{done:.3g} of {most:g} {unit}" for done, most, unit in limits if most], over) for limits, over in groups]
    return [", ".join(words) + over for words, over in found if words]


def job_table(lines: Iterable[JobLine]) -> Any:
    """Return jobs as a table, one row each, with what went wrong and what to do."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("id", "job", "state", "tries", "took", "what went wrong, and what to do"):
        table.add_column(column, overflow="fold", no_wrap=column in ("id", "state"))
    for line in lines:
        took = duration(line.seconds) if line.seconds is not None else ""
        state = f"[{COLOURS.get(line.state, 'default')}]{line.state}[/]"
        table.add_row(line.id[:8], escape(plain(line.title)), state, str(line.attempts), took, escape(trouble(line)))
    return table


def trouble(line: JobLine) -> str:
    """Return why a job failed and what to do, on one line; empty where it did not."""
    if line.error is None:
        return ""
    said = f"{line.error}: {line.reason or ''}" + (f" -> {line.hint}" if line.hint else "")
    return plain(said)


def glance(seen: Overview, spent: Iterable[str]) -> Group:
    """Return the overview for people; it fits in 80 columns."""
    from rich.console import Group
    from rich.markup import escape

    parts: list[str] = []
    if seen.paused is not None:
        since = f" since {clock_time(epoch(seen.paused_at))}" if seen.paused_at else ""
        parts.append(f"[bold yellow]paused{since}[/]: {escape(plain(seen.paused) or 'no reason given')} (modelpress resume goes on)")
    now = seen.at
    parts += [f"[yellow]running[/]  {escape(running_words(line, now))}" for line in seen.running]
    parts += [f"again in {duration(max((line.due or now) - now, 0))}: {escape(waiting_words(line))}" for line in seen.waiting]
    if seen.waiting_count > len(seen.waiting):
        parts.append(f"again later: {seen.waiting_count - len(seen.waiting)} more jobs")
    parts += [
        f"[magenta]blocked[/]  {held.jobs} jobs wait for {escape(plain(held.job.title))} ({held.job.id[:8]}), which "
        f"{'failed' if held.job.state == 'failed' else 'was cancelled'}: modelpress retry {held.job.id[:8]}"
        for held in seen.blocked
    ]
    if seen.failures:
        parts.append("[red]failed[/]   " + ", ".join(f"{name} {count}" for name, count in seen.failures.items()))
    parts += [f"budget   {escape(line)}" for line in spent]
    parts.append(", ".join(f"{seen.states.get(state, 0)} {state}" for state in STATES if state != "cancelled" or seen.states.get(state)))
    parts.append(f"{seen.releases} releases, {seen.verified} verified on the published bytes; {seen.refused} models or recipes refused")
    return Group(*parts)


def running_words(line: JobLine, now: float) -> str:
    """Return what runs, where, for how long and how long was predicted."""
    took = f" for {duration(max(now - line.since, 0))}" if line.since else ""
    predicted = f" of about {duration(line.expected.seconds.value)}" if line.expected else ""
    place = f", {owner_words(line.owner)}" if line.owner else ""
    return f"{plain(line.title)}{took}{predicted}{place}{', its end is asked for' if line.cancel else ''}"


def waiting_words(line: JobLine) -> str:
    """Return what is to be tried again, and why."""
    again = f"{plain(line.title)} (tried {line.attempts} times{f', sparing more memory: step {line.economy}' if line.economy else ''})"
    return f"{again}: {plain(line.reason)}" if line.reason else again


def owner_words(owner: str) -> str:
    """Return a dispatcher's name (host:pid:began) for people."""
    host, _, process = owner.rpartition(":")[0].rpartition(":")
    return plain(f"on {host}, process {process}" if host else owner)


def epoch(at: str | None) -> float:
    """Return an ISO-8601 time as epoch seconds; 0 where it is none."""
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(at or "").timestamp()
    return 0.0


def clock_time(at: float) -> str:
    """Return a time as people here read it off a clock, with the date where it is not of today."""
    then, today = datetime.fromtimestamp(at, UTC).astimezone(), datetime.now(UTC).astimezone()
    return then.strftime("%H:%M" if then.date() == today.date() else "%Y-%m-%d %H:%M")


def keep_watching(session: Session, every: float) -> None:
    """Show it again and again: in place on a terminal, elsewhere as lines with a blank one between; ends with Ctrl-C."""
    from rich.live import Live

    out = console()
    with suppress(KeyboardInterrupt):
        if not out.is_terminal:
            while True:
                out.print(view(session))
                out.file.flush()
                time.sleep(every)
        with Live(view(session), console=out, auto_refresh=False, transient=False, vertical_overflow="ellipsis") as live:
            while True:
                time.sleep(every)
                live.update(view(session), refresh=True)


def view(session: Session) -> Group:
    """Return the overview with the time at which it was taken."""
    from rich.console import Group

    seen = look(session)
    head = f"[bold]modelpress[/] at {datetime.now(UTC).astimezone().strftime('%H:%M:%S')}"
    if not seen.states and seen.paused is None:
        return Group(head, NOTHING)
    return Group(head, glance(seen, budget_lines(session)))
