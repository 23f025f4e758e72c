"""The quality pass: a model, and its base beside it, over windows of held-out text, streamed through the metrics in small chunks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

from hub.codec import content_id
from hub.domain import Scores
from hub.errors import BadCheckpoint, UnfitModel, Unstable
from hub.protocol import Quality
from runners import base_states, dense, texts
from runners.base_states import Beside, Rows
from runners.checkpoint import read_config
from runners.engines import Loaded
from runners.observations import Chunk, Room, Windows

# Elements of a chunk: its four float64 tensors stay in a CPU's cache; a GPU is given more at once, 128 MiB each.
_CHUNK_ELEMENTS = {"cpu": 2**18, "cuda": 2**24}
SOURCE = "windows"
_LOSSES = ("loss", "base's loss")


@dataclass(frozen=True, kw_only=True)
class Side:
    """One of the two that are compared: its folder, and the model loaded from it."""

    folder: Path
    loaded: Loaded


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a quality pass gives: by metric what its `summarize` takes, the record to keep beside the result, and notes."""

    windows: Mapping[str, Windows]
    scores: Scores
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A text cut into windows: their token ids, and by window the UTF-8 bytes that its scored tokens stand for (empty: not known)."""

    ids: tuple[tuple[int, ...], ...]
    bytes: tuple[int, ...]


def score(
    side: Side, base: Side | None, text: str, plan: Quality, metrics: Mapping[str, ModuleType], *, cache: Path | None = None
) -> Scored:
    """Run a model over the windows of a text, its base beside it, and return what each of the window metrics says of them.

    The first token of a window is context only: `sequence_length - 1` positions are scored, each given all before it in its window.
    `cache`: where a base's hidden states are kept for all its variants; a model without a base beside it is one, and its pass keeps them.
    Raises `BadDocument` for an empty text, `UnfitModel` where
    text or model are too short for the windows, `BadCheckpoint` where tokenizer or vocabulary are not what they should be, `Unstable` where
    logits are no finite numbers.
    """
    for name, one in (("model", side), ("base", base)):
        if one and plan.sequence_length > one.loaded.context_length:
            raise UnfitModel(
                f"The {name} takes {one.loaded.context_length} tokens, a window has {plan.sequence_length}.",
                hint="Measure with a protocol of shorter windows.",
            )
    cut = tokenize(side, text, plan)
    given = [ids[:-1] for ids in cut.ids]
    if base:
        _same_tokenizer(side, base, text)
        _within_vocabulary(base, cut.ids)
        beside, notes = base_states.beside(base.loaded, base.folder, given, cache)
        windows = over_windows(base_states.live(side.loaded, given[0]), beside, cut, metrics)
    else:
        own, notes = base_states.beside(side.loaded, side.folder, given, cache)
        windows = over_windows(own, None, cut, metrics)
    return Scored(windows=windows, scores=_scores(windows, cut, side), notes=notes)


def over_windows(model: Beside, base: Beside | None, cut: Cut, metrics: Mapping[str, ModuleType]) -> dict[str, Windows]:
    """Run a model over windows of tokens and return what each of the window metrics says of them; raise as `score` does."""
    found: dict[str, list[Any]] = {name: [] for name in metrics}
    room = Room()
    for index, ids in enumerate(cut.ids):
        where = f"window {index + 1} of {len(cut.ids)}"
        rows = base.window(index, ids[:-1]) if base else None
        for name, values in _values(model.window(index, ids[:-1]), rows, ids, metrics, room, where).items():
            found[name].append(values)
    return {name: _windows(values, cut, keep=getattr(metrics[name], "KEEPS_TOKENS", False)) for name, values in found.items()}


def starts(total: int, plan: Quality) -> list[int]:
    """Return where the plan's windows begin in a text of `total` tokens.

    Windows are adjacent, the tail is dropped. Of these, `windows` are taken at even distances over the whole text (0: all of them).
    """
    length = plan.sequence_length
    there = total // length
    count = plan.windows or there
    if there < max(count, 2):
        raise UnfitModel(
            f"The text gives {there} windows of {length} tokens here; the protocol needs {max(count, 2)}.",
            hint="Measure with a protocol of fewer windows or a longer text.",
        )
    return [index * there // count * length for index in range(count)]


def tokenize(side: Side, text: str, plan: Quality) -> Cut:
    """Cut a text into windows of tokens.

    It is encoded once as a whole, so a start token stands only at its very start. A window's scored bytes run from the end of its first
    token to the end of its last. Raises `BadDocument`, `UnfitModel` or `BadCheckpoint` as `score` does.
    """
    texts.check(text)
    tokenizer = _tokenizer(side)
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(text, verbose=False, **({"return_offsets_mapping": True} if fast else {}))
    ids: list[int] = list(encoded["input_ids"])
    length = plan.sequence_length
    begins = starts(len(ids), plan)
    found = tuple(tuple(ids[start : start + length]) for start in begins)
    _within_vocabulary(side, found)
    sizes: tuple[int, ...] = ()
    if fast:
        # A special token after the text, as some tokenizers add, lies at (0, 0).
        ends = list(accumulate((end for _, end in encoded["offset_mapping"]), max))
        sizes = tuple(len(text[ends[start] : ends[start + length - 1]].encode()) for start in begins)
    return Cut(ids=found, bytes=sizes)


def _values(
    model: Rows, base: Rows | None, ids: Sequence[int], metrics: Mapping[str, ModuleType], room: Room, where: str
) -> dict[str, Any]:
    """Return by metric the values of one window's scored positions, a float64 array (positions,) or (positions, k)."""
    import torch

    with torch.inference_mode():
        first = model(0, 1)
        targets = torch.tensor(ids[1:], device=first.device)
        block = base_states.block_rows(first.shape[-1])
        parts: dict[str, list[Any]] = {name: [] for name in (*metrics, *_LOSSES)}
        for start in range(0, len(targets), block):
            mine = model(start, min(start + block, len(targets)))
            its = base(start, start + len(mine)) if base else None
            if its is not None and its.shape != mine.shape:
                raise BadCheckpoint(
                    f"The variant predicts {mine.shape[-1]} tokens, its base {its.shape[-1]}.",
                    hint="A variant must keep its base's vocabulary: press it again with another recipe.",
                )
            _add(parts, metrics, (mine, targets[start : start + len(mine)], its), room)
        values = {name: torch.cat(found) for name, found in parts.items() if found}
    for name in (*_LOSSES, *metrics):
        if name in values:
            _require_numbers(values[name], name, where)
    return {name: values[name].cpu().numpy() for name in metrics}


def _add(parts: dict[str, list[Any]], metrics: Mapping[str, ModuleType], block: tuple[Any, Any, Any], room: Room) -> None:
    """Append what the metrics say of each position of a block, chunk by chunk, and both models' losses, to see that they are numbers."""
    logits, targets, base = block
    step = chunk_rows(logits)
    for start in range(0, len(targets), step):
        stop = min(start + step, len(targets))
        chunk = Chunk(logits[start:stop], targets[start:stop], None if base is None else base[start:stop], room)
        parts[_LOSSES[0]].append(chunk.nll)
        if base is not None:
            parts[_LOSSES[1]].append(chunk.base_nll)
        for name, metric in metrics.items():
            parts[name].append(metric.per_token(chunk))


def chunk_rows(logits: Any) -> int:
    """Return how many positions of logits (positions, vocabulary) are looked at together."""
    return max(1, _CHUNK_ELEMENTS["cpu" if logits.device.type == "cpu" else "cuda"] // int(logits.shape[-1]))


def _require_numbers(values: Any, name: str, where: str) -> None:
    """Raise `Unstable` where a value is NaN or infinite; NaN or all-infinite logits make the loss so."""
    if not values.isfinite().all():
        raise Unstable(
            f"The model's {name} is no finite number in {where}: there are NaN or infinite logits.",
            hint="Press it again with another recipe; if it is the base, download it again.",
        )


def _windows(values: Sequence[Any], cut: Cut, *, keep: bool) -> Windows:
    means = [array.mean(axis=0) for array in values]
    return Windows(
        means=tuple(float(one) if one.ndim == 0 else tuple(float(part) for part in one) for one in means),
        scored=tuple(len(array) for array in values),
        bytes=cut.bytes,
        tokens=tuple(values) if keep else (),
    )


def _scores(windows: Mapping[str, Windows], cut: Cut, side: Side) -> Scores:
    """Return the record that lets any two models be compared as pairs: means by window of all metrics of one column."""
    sizes = {"tokens": tuple(len(ids) - 1 for ids in cut.ids)}
    return Scores(
        source=SOURCE,
        fingerprint=content_id(cut.ids),
        tokenizer_sha256=tokenizer_sha256(side),
        values={name: one.means for name, one in windows.items() if isinstance(one.means[0], float)},
        sizes=sizes | ({"bytes": cut.bytes} if cut.bytes else {}),
    )


def _same_tokenizer(side: Side, base: Side, text: str) -> None:
    if tokenizer_sha256(side) == tokenizer_sha256(base):
        return
    if base.loaded.encode(text) != side.loaded.encode(text):
        raise BadCheckpoint(
            "The variant's tokenizer cuts the text into other tokens than its base's.",
            hint="Press it again: the base's tokenizer belongs beside it.",
        )


def _within_vocabulary(side: Side, windows: Sequence[Sequence[int]]) -> None:
    """Refuse tokens that the model has no row for: looking them up would crash, on a GPU for the whole process."""
    model = getattr(side.loaded, "model", None)
    table = getattr(model.get_input_embeddings(), "num_embeddings", None) if model is not None else None
    size = table or read_config(side.folder).get("vocab_size")
    highest = max(max(ids) for ids in windows)
    if isinstance(size, int) and highest >= size:
        raise BadCheckpoint(
            f"The tokenizer gives the token {highest}; the model knows the tokens 0 to {size - 1}.",
            hint="Put the tokenizer that belongs to the model beside its weights.",
        )


def _tokenizer(side: Side) -> Any:
    return getattr(side.loaded, "tokenizer", None) or dense.tokenizer(side.folder)


def tokenizer_sha256(side: Side) -> str:
    """Return the SHA-256 of tokenizer.json, or of the vocabulary where there is no such file."""
    path = side.folder / "tokenizer.json"
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(_tokenizer(side).get_vocab(), sort_keys=True).encode()).hexdigest()
