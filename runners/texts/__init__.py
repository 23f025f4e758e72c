"""Texts to calibrate and to measure on, named or given as a path, and the windows cut from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hub.domain import Calibration
from hub.errors import UnknownName, UsageError

_FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Return the names of the shipped texts."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt"))


def _path(name_or_path: str) -> Path:
    if name_or_path in names():
        return _FOLDER / f"{name_or_path}.txt"
    path = Path(name_or_path)
    if path.suffix and path.is_file():
        return path
    near = get_close_matches(name_or_path, names(), n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise UnknownName(
        f"There is no text {name_or_path!r}.", hint=f"{hint}There are: {', '.join(names())}; or give the path of a .txt file."
    )


def read(name_or_path: str) -> str:
    """Return a text; raise `UnknownName` naming the nearest one, `UsageError` where it is not UTF-8."""
    try:
        return _path(name_or_path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"The text {name_or_path} is not UTF-8, from byte {error.start} on.", hint="Convert it to UTF-8.") from error


def sha256(name_or_path: str) -> str:
    """Return the SHA-256 of a text's bytes in hexadecimal."""
    return hashlib.sha256(_path(name_or_path).read_bytes()).hexdigest()


def samples_sha256(windows: Sequence[Sequence[int]]) -> str:
    """Return the SHA-256 of token windows in hexadecimal, so that two presses can be seen to have been shown the same."""
    return hashlib.sha256(json.dumps([list(window) for window in windows]).encode()).hexdigest()


def tokens(name_or_path: str, tokenizer: Any) -> list[int]:
    """Return the token ids of a whole text, without special tokens."""
    return [int(token) for token in tokenizer(read(name_or_path), add_special_tokens=False, verbose=False)["input_ids"]]


def windows(calibration: Calibration, tokenizer: Any) -> list[list[int]]:
    """Return `samples` non-overlapping windows of a text, drawn without replacement and in an order that the seed fixes.

    Raises `UsageError` where the text has fewer windows than asked for.
    """
    import random

    ids = tokens(calibration.text, tokenizer)
    length = calibration.sequence_length
    count = len(ids) // length if length > 0 else 0
    if not 0 < calibration.samples <= count:
        raise UsageError(
            f"The text {calibration.text} has {count} windows of {length} tokens; the calibration asks for {calibration.samples}.",
            hint="Ask for fewer or shorter windows, or give a longer text.",
        )
    chosen = random.Random(calibration.seed).sample(range(count), calibration.samples)  # noqa: S311 - a seeded draw, no secret
    return [ids[place * length : (place + 1) * length] for place in chosen]
