"""Compression methods, one file each; the listing reads names and constants and imports no heavy part."""

from __future__ import annotations

from typing import cast

from hub.errors import ModelPressError
from runners import plugins
from runners.method import INSTALL, Method, MethodInfo


def names() -> list[str]:
    """Return the names of all methods."""
    return plugins.names(__name__)


def get(name: str) -> Method:
    """Return a method by name; raise `UnknownName` with the nearest one, or `Unavailable` where its file is broken."""
    return cast(Method, plugins.load(__name__, name, "method"))


def available() -> list[MethodInfo]:
    """Return every method with whether it can be used here; a broken file is listed as such and hides no other."""
    return [_info(name) for name in names()]


def _info(name: str) -> MethodInfo:
    try:
        method = get(name)
        missing = plugins.missing(method.NEEDS)
        return MethodInfo(
            name=name,
            family=method.FAMILY,
            summary=method.SUMMARY,
            paper=method.PAPER,
            schemes=method.SCHEMES,
            available=not missing,
            reason=f"not installed here: {', '.join(missing)}" if missing else "",
            install=getattr(method, "INSTALL", INSTALL) if missing else "",
            resumes=method.RESUMES == "layers",
            spares=method.SPARES,
        )
    except (ModelPressError, AttributeError) as error:
        return MethodInfo(
            name=name,
            family="broken",
            summary="",
            paper="",
            schemes=(),
            available=False,
            reason=str(error),
            install="repair or delete its file",
        )
