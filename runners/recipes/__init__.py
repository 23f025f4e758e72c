"""Recipes as data: one TOML file each, its stem the name; `default = true` puts it into the set that `modelpress run` presses."""

from __future__ import annotations

import json
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hub.codec import from_json
from hub.domain import Recipe
from hub.errors import BadDocument, UnknownName
from runners import methods

_FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def default_names() -> list[str]:
    """Return the names of the shipped recipes marked `default = true`."""
    return [name for name in names() if _read(_FOLDER / f"{name}.toml").get("default", False)]


def load(name_or_path: str) -> Recipe:
    """Return a recipe by its name or from a .toml file; raise `UnknownName` or `BadDocument`."""
    if name_or_path in names():
        path = _FOLDER / f"{name_or_path}.toml"
    elif name_or_path.endswith(".toml") and Path(name_or_path).is_file():
        path = Path(name_or_path)
    else:
        begun = [name for name in names() if name_or_path and name.startswith(name_or_path)]
        near = begun or get_close_matches(name_or_path, names(), n=3)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise UnknownName(
            f"There is no recipe {name_or_path!r}.",
            hint=f"{hint}modelpress recipes lists all {len(names())}; or give the path of a .toml file.",
        )
    document = _read(path)
    default = document.pop("default", False)
    if not isinstance(default, bool):
        raise BadDocument(f"The recipe {path.name}: default must be true or false; got {default!r}.", hint="Correct the file.")
    try:
        text = json.dumps({"name": path.stem, **document}, default=str, allow_nan=False)
    except ValueError as error:
        raise BadDocument(f"The recipe {path.name} holds a number that is not finite.", hint="Correct the file.") from error
    recipe = from_json(Recipe, text, where=f"The recipe {path.name}")
    if recipe.name != path.stem or not recipe.steps:
        raise BadDocument(f"The recipe {path.name} must have at least one step, and no name but its file's.", hint="Correct the file.")
    _check_formats(recipe, path.name)
    return recipe


def _check_formats(recipe: Recipe, file: str) -> None:
    left = [methods.get(step.method).FORMAT for step in recipe.steps]
    packing = next((step.method for step, found in zip(recipe.steps[:-1], left, strict=False) if found != "dense"), None)
    if packing:
        raise BadDocument(
            f"The recipe {file}: {packing} packs the weights, and no step can follow it.", hint=f"Make {packing} the last step, or drop it."
        )
    if recipe.format != left[-1]:
        raise BadDocument(
            f"The recipe {file}: {recipe.steps[-1].method} leaves the format {left[-1]}; the recipe says {recipe.format!r}.",
            hint=f'Write format = "{left[-1]}".',
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadDocument(f"The recipe {path.name} is not valid TOML: {error}.", hint="Correct the file.") from error
