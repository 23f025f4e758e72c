"""Fewer decoder layers: which tensors stay under which names, what is promised, and the checkpoint written tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.domain import Scalar
from runners import dense, streaming
from runners.architectures import PER_LAYER_LISTS, architecture
from runners.checkpoint import ModelShape, read_config


def renumbered(name: str, root: str, kept: Sequence[int]) -> str | None:
    """Return the name a tensor or layer has where only the layers `kept` (ascending) are left, None where it goes with its layer."""
    if not name.startswith(f"{root}."):
        return name
    number, dot, rest = name.removeprefix(f"{root}.").partition(".")
    return f"{root}.{list(kept).index(int(number))}{dot}{rest}" if int(number) in kept else None


def shortened(shape: ModelShape, layers: int) -> ModelShape:
    """Return the shape with so many layers, whichever they are: of zeros, what all layers promised of a weight still holds."""
    root, kept = architecture(shape.architecture).layers, range(layers)
    tensors = {name: tensor for name, tensor in shape.tensors.items() if renumbered(name, root, kept) is not None}
    least: dict[str, float] = {}
    for name, share in shape.zeros.items():
        end = _end(name, root)
        least[end] = min(share, least.get(end, share))
    everywhere = {end for end in least if all(f"{root}.{layer}.{end}" in shape.zeros for layer in range(shape.layers))}
    zeros = {f"{root}.{layer}.{end}": share for layer in kept for end, share in least.items() if end in everywhere}
    return replace(shape, tensors=tensors, layers=layers, zeros=zeros)


def _end(name: str, root: str) -> str:
    return name.removeprefix(f"{root}.").partition(".")[2]


def write(source: Path, target: Path, kept: Sequence[int]) -> None:
    """Write the checkpoint with only the layers `kept`, numbered anew from zero, and a true config.json. Memory: one tensor."""
    config = read_config(source)
    known = architecture(str(config["architectures"][0]))

    def change(name: str, tensor: Any) -> Mapping[str, Any]:
        new = renumbered(name, known.layers, kept)
        return {} if new is None else {new: tensor}

    streaming.rewrite(source, target, change)
    values: dict[str, object] = {
        key: [config[key][place] for place in kept] for key in PER_LAYER_LISTS if isinstance(config.get(key), list)
    }
    # Qwen's way to say it: from this layer on attention is to a window only.
    if config.get("use_sliding_window") and "max_window_layers" in config and "layer_types" not in values:
        values["max_window_layers"] = sum(place < config["max_window_layers"] for place in kept)
    dense.edit_config(target, **{known.count_key: len(kept)}, **values)


def told(root: str, layers: int, kept: Sequence[int], **findings: Sequence[float]) -> dict[str, dict[str, Scalar]]:
    """Return what a step tells of each of the decoder layers it was given: whether it was removed, and what was found of it."""
    return {
        f"{root}.{place}": {**{name: found[place] for name, found in findings.items()}, "removed": place not in kept}
        for place in range(layers)
    }
