"""`modelpress measure`: take a protocol's numbers of a local folder, without database."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leaderboard.text import number
from modelpress.compress import Log, locate
from modelpress.options import AsJson

if TYPE_CHECKING:
    from hub.domain import Measurement
    from hub.history import MeasurementFile
    from hub.protocol import Protocol
    from modelpress.session import Session
    from runners.measure import Places


def measure(
    ctx: typer.Context,
    folder: Annotated[str, typer.Argument(help="A checkpoint's folder, or an id on the hub.")],
    base: Annotated[
        str | None, typer.Option(help="The base model's folder or id: quality is then measured against it, token by token.")
    ] = None,
    protocol: Annotated[str | None, typer.Option(help="How numbers are taken; press.protocol of the settings when not given.")] = None,
    text: Annotated[
        str | None, typer.Option(help="Another text: a shipped one, a .txt file, or hub:owner/dataset@revision/file.parquet#column.")
    ] = None,
    tasks: Annotated[list[str] | None, typer.Option(help="A task of lm-eval besides (repeatable): arc_easy, piqa, wikitext2, …")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Documents of each task of --tasks; 0: all.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder with local texts and task data; press.data_dir when not given.")] = None,
    samples: Annotated[Path | None, typer.Option(help="Folder for what was asked and answered in each task.")] = None,
    log: Log = None,
    as_json: AsJson = False,
) -> None:
    """Measure FOLDER: quality beside --base, speed as a curve, memory by context, sizes, tasks, each number with its 95 % interval."""
    from hub.codec import to_json
    from hub.history import MeasurementFile
    from modelpress.quiet import quiet
    from modelpress.session import Session
    from runners import environment
    from runners.checkpoint import folder_ref
    from runners.measure import Places
    from runners.measure import measure as take

    with Session(ctx.obj.settings()) as session:
        places = Places(cache=session.folder / "cache", data=local_data(session, data), samples=samples)
        chosen = _protocol(session, protocol, text, tasks or (), limit, places)
        subject = locate(session, folder)[1]
        against = locate(session, base)[1] if base else None
        with quiet(log):
            found = take(subject, against, chosen, places=places)
            document = MeasurementFile(
                folder=folder,
                base=base,
                protocol=chosen,
                environment=environment.current(),
                measurements=found.measurements,
                layers=found.layers,
                scores=found.scores,
                notes=found.notes,
                state=found.state,
                folder_sha=folder_ref(subject).sha,
                base_sha=folder_ref(against).sha if against else "",
            )
    if as_json:
        typer.echo(to_json(document, indent=2))
    else:
        _print(document)


def local_data(session: Session, given: Path | None) -> Path | None:
    """Return the folder of local data; raise `UsageError` for one that is not there, as all in it would then be fetched, or missing."""
    from hub.errors import UsageError

    if given and not given.is_dir():
        raise UsageError(f"--data names {given}, which is no folder.", hint="Name the folder that holds the texts and task data.")
    return given or (Path(session.data_dir) if session.data_dir else None)


def _protocol(session: Session, name: str | None, text: str | None, tasks: Sequence[str], limit: int, places: Places) -> Protocol:
    """Return the protocol that was asked for, with its text brought to where it is looked for; raise `UsageError` for half an order."""
    from hub.errors import UsageError
    from hub.protocol import Tasks
    from runners import protocols, texts

    chosen = protocols.load(name or session.settings.press.protocol)
    if limit and not tasks:
        raise UsageError("--limit says how many documents of each task of --tasks, but no task is named.", hint="Name one with --tasks.")
    if tasks and chosen.tasks:
        raise UsageError(
            f"The protocol {chosen.name} has tasks of its own: {', '.join(chosen.tasks.names)}.",
            hint="Leave --tasks out, or name all tasks with --tasks and a protocol that has none.",
        )
    if text and not chosen.text:
        raise UsageError(f"The protocol {chosen.name} measures on no text.", hint="Leave --text out, or name a protocol of quality.")
    kept = session.folder / "cache" / "texts"
    if text:
        given = texts.parse(text)
        if given.dataset:
            given = texts.fetch(given, session.client, kept)
        else:
            texts.keep(texts.read(text).encode(), kept)
        chosen = protocols.on_text(chosen, given)
    else:
        texts.bring(chosen.text, places.texts, lambda: session.client, kept)
    if tasks:
        named = f"{chosen.name}+{','.join(tasks)}{f'[:{limit}]' if limit else ''}"
        chosen = replace(chosen, name=named, tasks=Tasks(names=tuple(tasks), limit=limit, shots=0, seed=1234))
    return chosen


def _print(document: MeasurementFile) -> None:
    width = max((len(_label(one)) for one in document.measurements), default=0)
    for one in document.measurements:
        span = f"[{number(one.ci_low, 4)}, {number(one.ci_high, 4)}]"
        typer.echo(f"{_label(one):<{width}} {number(one.value, 4):>12} {one.unit:<9} {span:<26} {one.basis}; {one.interval}")
    for note in document.notes:
        typer.echo(f"note: {note}")
    environment = document.environment
    typer.echo(f"protocol {document.protocol.name}, on {environment.hardware}, {environment.threads} threads")


def _label(one: Measurement) -> str:
    conditions = " ".join(f"{name}={value}" for name, value in one.conditions.items())
    return f"{one.metric} {conditions}".rstrip()
