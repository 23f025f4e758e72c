"""What all commands share: the global options, and output: JSON, lines, tables."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leaderboard.text import terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    from hub.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that stand before the command."""

    config: Path | None
    work_dir: Path | None
    debug: bool

    def settings(self) -> Settings:
        """Read modelpress.toml and the environment; raise SettingsError."""
        from hub.settings import load

        settings = load(self.config)
        if self.work_dir is not None:
            press = settings.press.model_copy(update={"work_dir": self.work_dir})
            return settings.model_copy(update={"press": press})
        return settings


def emit(document: Any) -> None:
    """Print a JSON document to stdout."""
    from pydantic_core import to_jsonable_python

    typer.echo(json.dumps(to_jsonable_python(document), indent=2))


def echo(line: str = "", *, err: bool = False) -> None:
    """Print text that may hold words of others: nothing in it is obeyed by a terminal, or by a build service that keeps the log."""
    typer.echo(terminal(line), err=err)


def console(*, stderr: bool = False) -> Console:
    """Return a console for tables; where that is no terminal, lines are wide enough not to be folded. It shows all text as `echo` does.

    Nothing is highlighted by itself: rich searches for what to colour with patterns that take minutes for a long hostile name.
    """
    from rich import console

    class Harmless(console.Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=terminal(segment.text))

    stream = sys.stderr if stderr else sys.stdout
    return Harmless(stderr=stderr, width=None if stream.isatty() else 200, highlight=False, emoji=False)
