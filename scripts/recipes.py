"""`modelpress recipes`: the recipes that can be named."""

from __future__ import annotations

from modelpress.options import AsJson, console, emit


def recipes(as_json: AsJson = False) -> None:
    """List the recipes by family: name, methods with schemes, format, and which a plain `run` uses (`*`) or are for research."""
    from rich.table import Table

    from leaderboard.families import FAMILIES, TITLES, family
    from runners import recipes as shipped

    loaded = [shipped.load(name) for name in shipped.names()]
    defaults = set(shipped.default_names())
    if as_json:
        emit([{"default": recipe.name in defaults, "family": family(recipe), "recipe": recipe} for recipe in loaded])
        return
    table = Table(box=None, pad_edge=False)
    for column in ("", "recipe", "methods and schemes", "format", "track", "what it makes"):
        table.add_column(column, overflow="fold", no_wrap=column == "recipe")
    for name in FAMILIES:
        group = [recipe for recipe in loaded if family(recipe) == name]
        if group:
            table.add_row("", f"[bold]{TITLES[name]}[/bold]")
        for recipe in group:
            steps = " → ".join(f"{step.method} {step.scheme}" for step in recipe.steps)
            mark = "*" if recipe.name in defaults else ""
            table.add_row(mark, recipe.name, steps, recipe.format, recipe.track, recipe.title)
        if group:
            table.add_row()
    console().print(table)
    console().print(f"{len(loaded)} recipes; * is pressed by a plain `modelpress run`. `--json` tells each in full.", markup=False)
