"""`modelpress verify`: the gate again, on the bytes that the hub serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from modelpress.options import AsJson, console, echo, emit

if TYPE_CHECKING:
    from modelpress.session import Session
    from modelpress.verifying import Report

_COLOURS = {"passed": "green", "failed": "red", "not checked": "yellow"}


def verify(
    ctx: typer.Context,
    repo: Annotated[
        str | None, typer.Argument(metavar="[REPO]", help="A repository of anybody, owner/name; else this folder's own releases.")
    ] = None,
    revision: Annotated[str | None, typer.Argument(metavar="[REVISION]", help="Its commit, branch or tag; else its head.")] = None,
    again: Annotated[bool, typer.Option("--all", help="Also releases that were verified before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download published bytes to an empty cache, compare checksums, load, generate, read the card back, and judge."""
    from modelpress.session import Session

    with Session(ctx.obj.settings(), exclusive=True) as session:
        if repo is None:
            _releases(session, again=again, as_json=as_json)
        else:
            _repository(session, repo, revision, as_json=as_json)


def _releases(session: Session, *, again: bool, as_json: bool) -> None:
    from hub.errors import GateRefusal, Incomplete
    from leaderboard.faults import OF_RELEASES
    from modelpress import pipeline

    verdicts, refused = pipeline.verify(session, again=again)
    if as_json:
        emit({"verdicts": verdicts, "refused": refused})
    else:
        echo(f"{sum(verdict.passed for verdict in verdicts)} releases verified, {len(refused)} not")
    if broken := [one for one in refused if one.error in {kind.__name__ for kind in OF_RELEASES}]:
        raise GateRefusal(f"{len(broken)} releases did not verify; first: {broken[0].reason}", hint="they are marked as not verified")
    if refused:
        raise Incomplete(f"{len(refused)} releases could not be judged; first: {refused[0].reason}", hint="run modelpress verify again")


def _repository(session: Session, repo: str, revision: str | None, *, as_json: bool) -> None:
    from hub.errors import GateRefusal
    from modelpress import verifying

    report = verifying.look(session, repo, revision)
    if as_json:
        emit({**vars(report), "passed": report.passed})
    else:
        _show(report)
    if failed := [finding for finding in report.findings if finding.state == "failed"]:
        raise GateRefusal(
            f"{repo} at {report.sha[:8]} does not pass: {failed[0].name}: {failed[0].detail}", hint="docs/gate.md says what each check asks"
        )


def _show(report: Report) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("check", "verdict", "found"):
        table.add_column(column, overflow="fold", no_wrap=column != "found")
    for one in report.findings:
        table.add_row(one.name, f"[{_COLOURS[one.state]}]{one.state}[/]", escape(one.detail))
    echo(f"{report.repo_id} at {report.sha}, judged by {report.promised_by}")
    console().print(table)
    counts = {state: sum(one.state == state for one in report.findings) for state in _COLOURS}
    echo(", ".join(f"{count} {state}" for state, count in counts.items()))
