"""`modelpress jobs`: jobs in a list, and `modelpress jobs show` everything about one."""

from __future__ import annotations

import difflib
import itertools
import re
import unicodedata
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from hub.domain import FailureClass, JobKind
from hub.history import JobState
from leaderboard.text import duration, plain, size
from modelpress.options import AsJson, console, echo, emit
from modelpress.status import NOTHING, clock_time, job_table, owner_words, running_words

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from hub.overview import JobDetail, JobLine
    from hub.scheduling import Prediction
    from modelpress.session import Session

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_].*?(?:\x07|\x1b\\|$)|[ -/]*[0-~])")
_LOG_LINES = 40
_MOST_NAMED = 5
_MOST_COMPARED = 2000

jobs_app = typer.Typer(invoke_without_command=True, help="Jobs in a list; `jobs show ID` says everything about one.")


@jobs_app.callback()
def jobs(
    ctx: typer.Context,
    state: Annotated[JobState | None, typer.Option(help="Only jobs in this state.")] = None,
    category: Annotated[FailureClass | None, typer.Option("--class", help="Only jobs that failed of this.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs on this base model: owner/name, or the name alone.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Only jobs with this recipe.")] = None,
    kind: Annotated[JobKind | None, typer.Option(help="Only jobs of this kind.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="List so many at the most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List jobs: those that run first, then failed ones, planned ones in the plan's order, cancelled ones, done ones, newest first."""
    if ctx.invoked_subcommand is not None:
        return
    from hub.overview import Wish
    from modelpress.session import Session

    wish = Wish(state=state, category=category, model=model, recipe=recipe, kind=kind)
    with Session(ctx.obj.settings()) as session:
        found = session.store.reader.lines(wish, limit=limit)
        total = session.store.reader.count(wish)
    if as_json:
        emit({"jobs": found, "total": total})
        return
    if found:
        console().print(job_table(found))
        typer.echo(f"{len(found)} of {total} jobs; --limit shows more" if len(found) < total else f"{total} jobs")
    else:
        typer.echo("no job fits" if wish != Wish() else NOTHING)


@jobs_app.command("show")
def show(
    ctx: typer.Context,
    job: Annotated[str, typer.Argument(metavar="ID", help="A job's id, the beginning of one, or its label: `press NAME RECIPE`.")],
    as_json: AsJson = False,
) -> None:
    """Show everything about one job: what came of each try, what it needs, what waits for it, the end of its log."""
    from hub.errors import UnknownName
    from modelpress.session import Session

    with Session(ctx.obj.settings()) as session:
        (job_id,) = chosen(session, [job])
        detail = session.store.reader.detail(job_id)
        if detail is None:
            raise UnknownName(f"the job {job_id} is planned no more", hint="modelpress jobs lists those that are")
        log = log_text(detail, session.folder / "logs" / f"{detail.line.id}.log")
        artifact = session.artifacts / detail.artifact.variant_id if detail.artifact else None
    if as_json:
        place = str(artifact) if artifact and artifact.is_dir() else None
        emit({**asdict(detail), "label": detail.line.label, "log_tail": log, "artifact_folder": place})
        return
    for line in described(detail, artifact):
        echo(line)
    if log:
        typer.echo("\nthe end of its log")
        for line in log.splitlines():
            echo(f"  {line}")


def chosen(session: Session, names: Sequence[str]) -> list[str]:
    """Return the ids of the jobs that these names stand for, each for one: an id or its beginning, a label, a title.

    Raises `UnknownName` with the nearest for a name that stands for nothing, `UsageError` with all for one that stands for several.
    """
    from hub.errors import UnknownName, UsageError

    ids = []
    for name in names:
        found = session.store.queue.find(name)
        if not found:
            raise UnknownName(f"there is no job {plain(name)!r}", hint=nearest(session, name))
        if len(found) > 1 and found[0].id != name:
            several = ", ".join(f"{record.id} ({plain(record.job.title)})" for record in found[:_MOST_NAMED])
            more = f" and {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
            raise UsageError(f"{plain(name)!r} stands for {len(found)} jobs: {several}{more}", hint="name one by its id")
        ids.append(found[0].id)
    return list(dict.fromkeys(ids))


def nearest(session: Session, name: str) -> str:
    """Return which jobs a wrong name may have meant."""
    lines = session.store.reader.lines(limit=_MOST_COMPARED)
    names = {known: line for line in lines for known in (line.id, line.label, line.title)}
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    meant = dict.fromkeys(f"{names[known].id} ({plain(names[known].title)})" for known in close)
    return f"did you mean {' or '.join(meant)}?" if meant else "modelpress jobs lists them"


def log_text(detail: JobDetail, log: Path) -> str:
    """Return the end of a job's log: what was stored of a failed one, else what its file holds; harmless to a terminal."""
    from runners.failures import tail

    stored = detail.log_tail if detail.line.state == "failed" else ""
    lines = harmless(stored or ("" if log.is_symlink() else tail(log))).splitlines()
    runs = [(line, sum(1 for _ in same)) for line, same in itertools.groupby(lines)]  # bars say the same again and again
    return "\n".join(line if count == 1 else f"{line} ({count} times)" for line, count in runs[-_LOG_LINES:])


def harmless(text: str) -> str:
    """Return text without what a terminal would obey: escape sequences, control and bidirectional characters; lines stay lines."""
    lines = _ESCAPES.sub("", text.replace("\r\n", "\n")).split("\n")
    shown = (line.rstrip("\r").rsplit("\r", 1)[-1].expandtabs(4) for line in lines)  # a bar drawn over itself: the last drawing
    return "\n".join("".join(char for char in line if unicodedata.category(char) not in ("Cc", "Cf", "Cn", "Co", "Cs")) for line in shown)


def described(detail: JobDetail, artifact: Path | None) -> Iterator[str]:
    """Yield the lines that describe a job, its log apart."""
    import time

    line = detail.line
    yield f"{line.id}  {plain(line.title)}"
    yield f"state      {line.state}{', its end is asked for' if line.cancel else ''}, tried {line.attempts} times"
    if line.state == "running":
        yield f"runs       {running_words(line, time.time())}{'; that process lives no more' if line.abandoned else ''}"
    if line.due:
        yield f"again      at {clock_time(line.due)}, not before"
    yield f"base       {detail.job.base.repo_id} at {detail.job.base.sha}"
    if detail.job.recipe:
        recipe = detail.job.recipe
        yield f"recipe     {recipe.name}: {plain(recipe.method)} {plain(recipe.scheme)}, {plain(recipe.format)}"
    if line.error:
        yield f"failed     {line.category or 'bug'}: {plain(line.error)}: {plain(line.reason or '')}"
        if line.hint:
            yield f"what to do {plain(line.hint)}"
    yield from prediction_lines(detail)
    yield from stage_lines(detail)
    for attempt in detail.tries:
        ended = f"{attempt.outcome}{f' ({attempt.category})' if attempt.category else ''}"
        place = f", {owner_words(attempt.owner)}" if attempt.owner else ""
        why = f": {plain(attempt.reason)}" if attempt.reason else ""
        yield f"try {attempt.number:<7}{clock_time(attempt.began)}, {duration(attempt.seconds)}, {ended}{place}{why}"
    yield from neighbour_lines("needs", detail.needs, len(detail.needs))
    yield from neighbour_lines("waits", detail.wanted_by, detail.wanted_by_count)
    if detail.artifact and artifact:
        there = str(artifact) if artifact.is_dir() else f"not in the work folder any more ({artifact.name})"
        yield f"artifact   {size(detail.artifact.bytes)}, {there}"
        if detail.artifact.release:
            yield f"released   {detail.artifact.release}"
    yield from (f"note       {plain(note)}" for note in detail.notes)


def prediction_lines(detail: JobDetail) -> Iterator[str]:
    """Yield what was predicted beside what it came to."""
    line, expected = detail.line, detail.line.expected
    took = duration(line.seconds) if line.seconds is not None else "not known yet"
    peak = size(detail.peak_memory_bytes) if detail.peak_memory_bytes else "not known yet"
    if expected is None:
        yield f"time       {took}; nothing was predicted"
        return
    yield f"time       {took}; predicted {predicted(expected.seconds, duration(expected.seconds.value))}"
    yield f"memory     {peak}; predicted {predicted(expected.memory_bytes, size(expected.memory_bytes.value))}"
    yield f"disk       predicted {size(expected.disk_bytes)}"
    if expected.cost:
        yield f"cost       predicted {expected.cost:.4g}"
    if expected.reason:
        yield f"why        {plain(expected.reason)}"


def predicted(prediction: Prediction, words: str) -> str:
    """Return a prediction with what it rests on and its error."""
    source = f"from {prediction.samples} earlier jobs" if prediction.samples else "from the model's shape alone"
    return f"{words}, right within a factor of {prediction.factor:.2g} two times of three, {source}"


def stage_lines(detail: JobDetail) -> Iterator[str]:
    """Yield where the time went."""
    if detail.stages:
        yield "stages     " + ", ".join(f"{plain(name)} {duration(seconds)}" for name, seconds in detail.stages.items())
    if detail.hardware:
        yield f"hardware   {plain(detail.hardware)}"


def neighbour_lines(word: str, lines: tuple[JobLine, ...], count: int, most: int = 10) -> Iterator[str]:
    """Yield jobs that this one needs, or that wait for it, the first few of many."""
    for line in lines[:most]:
        yield f"{word:<11}{line.id[:8]} {plain(line.title)}: {line.state}"
    if count > most:
        yield f"{'':<11}and {count - most} more"
