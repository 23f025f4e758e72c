"""`modelpress compress`: press one model with one recipe into a folder, without hub or database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leaderboard.text import duration, size
from modelpress.options import AsJson, echo, emit

if TYPE_CHECKING:
    from hub.domain import ModelRef
    from modelpress.session import Session

Log = Annotated[Path | None, typer.Option(help="Keep what the libraries print in this file.")]


def compress(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="A local folder, or an id on the hub, `owner/name` or `owner/name@commit`.")],
    recipe: Annotated[str, typer.Option(help="A recipe's name (modelpress recipes lists them) or a TOML file.")],
    out: Annotated[Path, typer.Option(help="The folder to make; it must not exist, or must hold this very variant.")],
    log: Log = None,
    as_json: AsJson = False,
) -> None:
    """Press MODEL with a recipe into a folder that transformers loads, or the engine of the recipe's format (GGUF, ONNX, OpenVINO)."""
    import time

    from modelpress.quiet import quiet
    from modelpress.session import Session
    from runners import recipes
    from runners.press import press

    chosen = recipes.load(recipe)
    began = time.monotonic()
    with Session(ctx.obj.settings()) as session:
        base, source = locate(session, model)
        with quiet(log):
            artifact = press(base, source, chosen, out)
    if as_json:
        emit(artifact)
    else:
        echo(f"{out}: {chosen.title}, {size(artifact.bytes)} in {len(artifact.files)} files, {duration(time.monotonic() - began)}")
        typer.echo(f"next: modelpress measure {out} --base {model}")


def locate(session: Session, model: str) -> tuple[ModelRef, Path]:
    """Return a model's reference and its folder; an id is downloaded at its pinned or newest commit."""
    from hub.errors import BadCheckpoint
    from hub.policy import PULL
    from runners.checkpoint import folder_ref

    folder = Path(model)
    if folder.is_dir():
        return folder_ref(folder), folder
    if folder.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise BadCheckpoint(
            f"{model} is neither a folder nor an id such as owner/name", hint="name a folder that holds config.json and safetensors"
        )
    repo_id, _, sha = model.partition("@")
    ref = session.client.candidate(repo_id, sha or None).ref
    return ref, session.client.download(ref, patterns=PULL)
