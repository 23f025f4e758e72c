"""What all commands share: the global options, and JSON output."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

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


def console() -> Console:
    """Return a console for tables on stdout; where that is no terminal, lines are wide enough not to be folded."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=200)
