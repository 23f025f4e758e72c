"""Measurement protocols as data: one TOML file each, its name is the protocol's.

A name that ends in another window length than a file's (`wikitext2-paper@512` where there is `wikitext2-paper@2048`) is that protocol with
windows of this length.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from difflib import get_close_matches
from importlib.resources import files
from typing import Any

from hub.codec import from_json, to_json
from hub.errors import BadDocument, UnknownName
from hub.protocol import Protocol, Text
from runners import texts

DEFAULT = "stdlib-heldout@512"
QUICK = "stdlib-heldout@512-quick"
_LENGTH = re.compile(r"(?P<stem>.+@)(?P<length>[1-9]\d{1,6})")


def names() -> list[str]:
    """Return the names of all protocols, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml"))


def load(name: str) -> Protocol:
    """Return a protocol with its text's SHA-256; raise `UnknownName` with the nearest name, `BadDocument` for a wrong file."""
    if name in names():
        return _read(name)
    if (asked := _LENGTH.fullmatch(name)) and (model := _of_other_length(asked["stem"])) and model.quality:
        return replace(model, name=name, quality=replace(model.quality, sequence_length=int(asked["length"])))
    near = get_close_matches(name, names(), n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UnknownName(f"There is no protocol named {name!r}.", hint=f"{hint}There are: {', '.join(names())}.")


def on_text(protocol: Protocol, text: Text) -> Protocol:
    """Return a protocol's sections on another text, under a name of its own: numbers of different texts cannot be compared."""
    if protocol.text and text.sha256 == protocol.text.sha256:
        return protocol
    label = re.sub(r"[^\w.-]", "-", text.name.rpartition("/")[2]) or "text"
    return replace(protocol, text=text, name=f"{protocol.name}:{label}-{text.sha256[:8]}")


def _of_other_length(stem: str) -> Protocol | None:
    found = next((name for name in names() if (match := _LENGTH.fullmatch(name)) and match["stem"] == stem), None)
    return _read(found) if found else None


def _read(name: str) -> Protocol:
    where = f"runners/protocols/{name}.toml"
    try:
        data = tomllib.loads(files(__name__).joinpath(f"{name}.toml").read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise BadDocument(f"{where} is not TOML: {error}.", hint="Mend the file.") from error
    protocol = from_json(Protocol, to_json({"name": name, **data, "text": _text(data)}), where=where)
    if protocol.text is None and (protocol.quality or protocol.speed or protocol.memory):
        raise BadDocument(f"{where} measures on a text but names none.", hint="Add a section [text].")
    return protocol


def _text(data: dict[str, Any]) -> Any:
    """Add the SHA-256 of a shipped text, which its file does not state."""
    text = data.get("text")
    return {**text, "sha256": texts.sha256(text["name"])} if isinstance(text, dict) and text.get("name") in texts.names() else text
