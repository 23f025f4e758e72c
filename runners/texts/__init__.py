"""Texts to calibrate and to measure on: shipped, a local file, or a file of a Hub dataset; and the windows cut from them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.domain import Calibration
from hub.errors import BadDocument, CalibrationFailed, UnknownName, UsageError
from hub.protocol import Text

if TYPE_CHECKING:
    from hub.client import HubClient

HUB = "hub:"
_FOLDER = Path(__file__).resolve().parent
_MOST = 2**24  # characters: with a small vocabulary, their tokens and offsets take some 3 GB while they are cut


def names() -> list[str]:
    """Return the names of the shipped texts."""
    return sorted(path.stem for path in _FOLDER.glob("*.txt"))


def read(name_or_path: str) -> str:
    """Return a text; raise `UnknownName` naming the nearest one, `UsageError` where it is not UTF-8."""
    return _decode(_plain(_path(name_or_path).read_bytes()), name_or_path)


def sha256(name_or_path: str) -> str:
    """Return the SHA-256 of a text's bytes in hexadecimal, its lines ending in a newline alone."""
    return _sum(_plain(_path(name_or_path).read_bytes()))


def content(text: Text, places: Iterable[Path]) -> str:
    """Return a protocol's text: shipped, or a file in one of the folders `places` (or one level below) that has its name and SHA-256.

    Raises `UnknownName` where no place has it, `BadDocument` where a file of its name holds something else.
    """
    wrong = ""
    for path in _candidates(text, places):
        data = _plain(path.read_bytes())
        if _sum(data) == text.sha256:
            return _decode(data, text.name)
        wrong = f"{path} has SHA-256 {_sum(data)[:16]}…, the protocol names {text.sha256[:16]}…"
    if wrong:
        raise BadDocument(
            f"The text {text.name} is another one: {wrong}.",
            hint="Restore it, or measure with --text: numbers of different texts cannot be compared, so it gets another protocol name.",
        )
    raise UnknownName(
        f"The text {text.name} is not here.",
        hint="Name the folder that holds it with --data or press.data_dir"
        + (f", or let {text.dataset} be fetched." if text.dataset else "."),
    )


def check(text: str) -> None:
    """Raise `BadDocument` for a text that holds nothing to read, or more than can be cut into tokens at once."""
    if not text.strip():
        raise BadDocument("The text to measure on is empty.", hint="Give a text of some thousand words.")
    if len(text) > _MOST:
        raise BadDocument(f"The text to measure on has {len(text)} characters; at most {_MOST} are read.", hint="Give a part of it.")


def has(text: Text, places: Iterable[Path]) -> bool:
    """Whether a text of this name is shipped or in one of the places, right or wrong."""
    return next(_candidates(text, places), None) is not None


def bring(text: Text | None, places: Iterable[Path], client: Callable[[], HubClient], into: Path) -> None:
    """See to it that `content` finds a protocol's text: one of a Hub dataset that no place has is fetched; others are here or nowhere.

    `client` is asked for a client only where something is fetched.
    """
    if text and text.dataset and not has(text, places):
        fetch(text, client(), into)


def fetch(text: Text, client: HubClient, into: Path) -> Text:
    """Fetch a text of a Hub dataset at its revision into the folder `into`, its rows joined, and return it with what it has.

    An empty revision is the newest one; an empty SHA-256 is not checked. Raises `BadDocument` for bytes that are not the text named, or a
    file that cannot be read.
    """
    sha, path = client.dataset_file(text.dataset, text.revision or None, text.file)
    data = _plain(_joined(path, text).encode())
    found = _sum(data)
    if text.sha256 and found != text.sha256:
        raise BadDocument(
            f"{text.file} of {text.dataset} at {sha[:8]} gives a text of SHA-256 {found[:16]}…; {text.sha256[:16]}… is named.",
            hint="Another column, another joiner, or a changed revision: numbers of different texts cannot be compared.",
        )
    keep(data, into)
    return replace(text, sha256=found, revision=sha)


def keep(data: bytes, into: Path) -> None:
    """Put a text's bytes into a folder where `content` finds them by their SHA-256."""
    into.mkdir(parents=True, exist_ok=True)
    found = _sum(data)
    unfinished = into / f".{found}.{os.getpid()}.new"  # another process may keep the same text at the same time
    unfinished.write_bytes(data)
    unfinished.replace(into / f"{found}.txt")


def parse(given: str) -> Text:
    """Return the text that a person names: a shipped one, a local file, or `hub:owner/name@revision/path/in/it#column`.

    The revision may be left out. A text of the Hub has no SHA-256 yet. Raises `UnknownName` or `UsageError`.
    """
    if not given.startswith(HUB):
        path = _path(given)
        return Text(name=given if given in names() else path.name, sha256=sha256(given))
    place, _, column = given.removeprefix(HUB).partition("#")
    owner, _, rest = place.partition("/")
    repo, _, file = rest.partition("/")
    name, _, revision = repo.partition("@")
    if not (owner and name and file):
        raise UsageError(f"{given} names no file of a dataset.", hint="Write hub:owner/name@revision/path/in/it.parquet#column.")
    return Text(
        name=file, sha256="", dataset=f"{owner}/{name}", revision=revision, file=file, column=column, joiner="\n\n" if column else ""
    )


def samples_sha256(windows: Sequence[Sequence[int]]) -> str:
    """Return the SHA-256 of token windows in hexadecimal, so that two presses can be seen to have been shown the same."""
    return hashlib.sha256(json.dumps([list(window) for window in windows]).encode()).hexdigest()


def tokens(name_or_path: str, tokenizer: Any) -> list[int]:
    """Return the token ids of a whole text, without special tokens."""
    return [int(token) for token in tokenizer(read(name_or_path), add_special_tokens=False, verbose=False)["input_ids"]]


def windows(calibration: Calibration, tokenizer: Any) -> list[list[int]]:
    """Return `samples` non-overlapping windows of a text, drawn without replacement and in an order that the seed fixes.

    Raises `CalibrationFailed` where the text has fewer windows than asked for.
    """
    import random

    ids = tokens(calibration.text, tokenizer)
    length = calibration.sequence_length
    count = len(ids) // length if length > 0 else 0
    if not 0 < calibration.samples <= count:
        raise CalibrationFailed(
            f"The text {calibration.text} has {count} windows of {length} tokens; the calibration asks for {calibration.samples}.",
            hint="Ask for fewer or shorter windows, or give a longer text.",
        )
    chosen = random.Random(calibration.seed).sample(range(count), calibration.samples)  # noqa: S311 - a seeded draw, no secret
    return [ids[place * length : (place + 1) * length] for place in chosen]


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


def _candidates(text: Text, places: Iterable[Path]) -> Iterator[Path]:
    if text.name in names():
        yield _FOLDER / f"{text.name}.txt"
    name = Path(text.name).name
    for place in places:
        found = [place / f"{text.sha256}.txt", place / name, *sorted(place.glob(f"*/{name}"))] if name else []
        yield from (path for path in found if path.is_file())


def _joined(path: Path, text: Text) -> str:
    """Return a file's text: the whole file, or the rows of its column (Parquet, JSON Lines) joined."""
    if not text.column:
        if text.file.endswith(".parquet"):
            raise UsageError(f"{text.file} of {text.dataset} holds columns, and none is named.", hint="Name the one of texts after #.")
        return _decode(path.read_bytes(), text.file)
    try:
        if text.file.endswith(".parquet"):
            from pyarrow import parquet

            rows = parquet.read_table(path, columns=[text.column]).column(text.column).to_pylist()
        else:
            rows = [json.loads(line)[text.column] for line in path.read_text("utf-8").split("\n") if line.strip()]
        return text.joiner.join(rows)
    except (OSError, ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise BadDocument(
            f"{text.file} of {text.dataset} has no column {text.column!r} of texts: {error}",
            hint="Name a Parquet or JSON Lines file, and its column after #.",
        ) from error


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"The text {name} is not UTF-8, from byte {error.start} on.", hint="Convert it to UTF-8.") from error


def _plain(data: bytes) -> bytes:
    """Return a text's bytes with lines that end as they do everywhere but on Windows, so that each copy of a text is the same text."""
    return data.replace(b"\r\n", b"\n")


def _sum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
