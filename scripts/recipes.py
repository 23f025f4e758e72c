"""`modelpress recipes`: the recipes that can be named."""

from __future__ import annotations

from modelpress.options import AsJson, console, emit


def recipes(as_json: AsJson = False) -> None:
    """List the recipes: name, method, scheme, format, and whether a plain `run` uses it."""
    from rich.table import Table

    from runners import recipes as shipped

    loaded = [shipped.load(name) for name in shipped.names()]
    defaults = set(shipped.default_names())
    if as_json:
        emit([{"default": recipe.name in defaults, "recipe": recipe} for recipe in loaded])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("recipe", "method", "scheme", "format", "default", "what it does"):
        table.add_column(column, overflow="fold")
    for recipe in loaded:
        table.add_row(recipe.name, recipe.method, recipe.scheme, recipe.format, "yes" if recipe.name in defaults else "", recipe.summary)
    console().print(table)
