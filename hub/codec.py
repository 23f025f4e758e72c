"""JSON for the domain's types: written in one canonical way, read strictly (unknown keys refused)."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from pydantic_core import to_jsonable_python

from hub.errors import BadDocument

T = TypeVar("T")
_CANONICAL = json.JSONEncoder(sort_keys=True, allow_nan=False)


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    strict = ConfigDict(extra="forbid", hide_input_in_errors=True)  # a document may hold a token, and errors are logged
    return TypeAdapter(with_config(strict)(kind) if not hasattr(kind, "__pydantic_config__") else kind)


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return canonical JSON: sorted keys, ASCII, no NaN; half of a surrogate pair, which no reader would take, becomes a `?`."""
    encoder = _CANONICAL if indent is None else json.JSONEncoder(sort_keys=True, allow_nan=False, indent=indent)
    text = encoder.encode(to_jsonable_python(value))
    if "\\ud" in text:  # of an emoji, or alone
        text = encoder.encode(json.loads(json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")))
    return text


def from_json(kind: type[T], text: str | bytes, *, where: str = "JSON") -> T:
    """Read a domain type from JSON; raise `BadDocument` naming the place and what is wrong."""
    try:
        adapter: TypeAdapter[T] = _adapter(cast("Any", kind))
        value = adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole document"
        raise BadDocument(f"{where} is not a valid {kind.__name__}: {place}: {first['msg']}") from error
    return value


def readable(kind: type[T], text: str | None) -> T | None:
    """Read a domain type from JSON where nothing is lost but what it tells; None for no document, or one that another version wrote."""
    try:
        return from_json(kind, text) if text else None
    except BadDocument:
        return None


def content_id(value: object) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the value's canonical JSON."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()[:16]
