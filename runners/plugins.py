"""Files that are plug-ins: found by their names, imported one by one, so that a broken neighbour breaks nothing."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from types import ModuleType

from hub.errors import Unavailable, UnknownName


def names(package: str) -> list[str]:
    """Return the names of a package's plug-ins: its modules that do not start with an underscore, sorted."""
    spec = find_spec(package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    return sorted(module.name for module in iter_modules(places) if not module.name.startswith("_"))


def load(package: str, name: str, kind: str) -> ModuleType:
    """Import one plug-in; raise `UnknownName` with the nearest valid name, or `Unavailable` when the file itself is broken."""
    known = names(package)
    if name not in known:
        near = get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UnknownName(f"There is no {kind} named {name!r}.", hint=f"{hint}There are: {', '.join(known)}.")
    try:
        return import_module(f"{package}.{name}")
    except Exception as error:  # whatever a broken file raises
        raise Unavailable(
            f"The {kind} {name} cannot be loaded: {type(error).__name__}: {error}.", hint=f"Repair or delete its file in {package}."
        ) from error


def missing(modules: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of the top-level modules that are not installed here, without importing any."""
    return tuple(module for module in modules if find_spec(module) is None)
