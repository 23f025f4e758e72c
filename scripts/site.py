"""`modelpress site`: build the static site."""

from __future__ import annotations

import typer

from modelpress.options import AsJson, emit


def site(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Build the leaderboard site from the database; needs no torch and no hub."""
    from modelpress import pipeline
    from modelpress.session import Session

    with Session(ctx.obj.settings()) as session:
        folder, pages = pipeline.site(session)
    if as_json:
        emit({"folder": str(folder), "pages": pages})
    else:
        typer.echo(f"{pages} pages in {folder}; open {folder / 'index.html'}")
