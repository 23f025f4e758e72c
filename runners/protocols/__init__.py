"""Measurement protocols as data: one TOML file each, its name is the protocol's."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from difflib import get_close_matches
from importlib.resources import files

from hub.codec import from_json, to_json
from hub.domain import Protocol
from hub.errors import BadDocument, UnknownName

DEFAULT = "stdlib-heldout@512"
QUICK = "stdlib-heldout@512-quick"


def names() -> list[str]:
    """Return the names of all protocols, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml"))


def load(name: str) -> Protocol:
    """Return a protocol with its text's SHA-256; raise `UnknownName` with the nearest name, `BadDocument` for a wrong file."""
    from runners import texts

    if name not in names():
        near = get_close_matches(name, names(), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UnknownName(f"There is no protocol named {name!r}.", hint=f"{hint}There are: {', '.join(names())}.")
    where = f"runners/protocols/{name}.toml"
    try:
        data = tomllib.loads(files(__name__).joinpath(f"{name}.toml").read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise BadDocument(f"{where} is not TOML: {error}.", hint="Mend the file.") from error
    stated = [field.name for field in fields(Protocol) if field.name not in ("name", "text_sha256")]
    if set(data) != set(stated):
        wrong = sorted(set(data) ^ set(stated))
        raise BadDocument(f"{where}: {', '.join(wrong)} is missing or not known.", hint=f"A protocol states exactly: {', '.join(stated)}.")
    return from_json(Protocol, to_json({"name": name, "text_sha256": texts.sha256(data["text"]), **data}), where=where)
