"""Depth pruning: whole layers go, those whose output differs least in direction from their input (ShortGPT's block influence)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hub.domain import Step
from hub.errors import UnfitModel
from runners import dense, method
from runners.architectures import PER_LAYER_LISTS, architecture
from runners.checkpoint import ModelShape, canonical, read_config, write_atomically
from runners.headers import weight_files
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Removes the layers of least block influence (1 - cosine similarity of input and output on calibration text)."
PAPER = "https://arxiv.org/abs/2403.03853"
SCHEMES = ("depth",)
FORMAT = "dense"
NEEDS = ("transformers", "torch", "safetensors")
WORKS = "whole"


def _removed(step: Step, layers: int) -> int:
    fraction = float(method.options(step, fraction=0.25)["fraction"])
    method.require(0 < fraction < 1, step, "fraction", fraction, "between 0 and 1")
    return max(1, round(layers * fraction))


def check(step: Step, shape: ModelShape) -> None:
    """Refuse models in which no layer would be left."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    if _removed(step, shape.layers) >= shape.layers:
        raise UnfitModel(
            f"depth_prune is to remove {_removed(step, shape.layers)} of {shape.layers} layers; at least one must be left.",
            hint="Use a smaller fraction, or a deeper model.",
        )


def promise(step: Step, shape: ModelShape) -> Promise:
    """The layers left are numbered anew from zero; all other tensors stay as they are."""
    left = shape.layers - _removed(step, shape.layers)
    tensors = _renumbered(shape.tensors, architecture(shape.architecture).layers, list(range(left)))
    return method.unchanged(method.reshaped(shape, tensors, left))


def _renumbered(tensors: Any, root: str, kept: list[int]) -> dict[str, Any]:
    places = {old: new for new, old in enumerate(kept)}
    out: dict[str, Any] = {}
    for name, tensor in tensors.items():
        if not name.startswith(f"{root}."):
            out[name] = tensor
            continue
        number, _, rest = name.removeprefix(f"{root}.").partition(".")
        if int(number) in places:
            out[f"{root}.{places[int(number)]}.{rest}"] = tensor
    return out


def influence(model: Any, root: str, windows: list[list[int]]) -> list[float]:
    """Return each layer's block influence: 1 - mean cosine similarity of its input and output over all tokens, in [0, 2]."""
    import torch

    layers = model.get_submodule(root)
    sums = [0.0] * len(layers)
    tokens = 0

    def watch(place: int) -> Any:
        def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            sums[place] += float(torch.nn.functional.cosine_similarity(inputs[0].float(), after.float(), dim=-1).sum())

        return hook

    handles = [layer.register_forward_hook(watch(place)) for place, layer in enumerate(layers)]
    with torch.inference_mode():
        for start in range(0, len(windows), 4):
            batch = torch.tensor(windows[start : start + 4])
            model.base_model(batch, use_cache=False)
            tokens += batch.numel()
    for handle in handles:
        handle.remove()
    return [1.0 - total / tokens for total in sums]


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Measure block influence once on the whole model, drop the lowest layers, and write a true config.json."""
    config = read_config(source)
    name = str(config["architectures"][0])
    root = architecture(name).layers
    model = dense.load(source, dtype="float32")
    scores = influence(model, root, context.windows(step))
    del model
    count = _removed(step, len(scores))
    dropped = sorted(range(len(scores)), key=lambda place: (scores[place], place))[:count]
    kept = [place for place in range(len(scores)) if place not in dropped]
    _write_weights(source, target, name, root, kept)
    config[architecture(name).count_key] = len(kept)
    for key in PER_LAYER_LISTS:
        if isinstance(config.get(key), list):
            config[key] = [config[key][place] for place in kept]
    write_atomically(target / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    return Outcome(layers={f"{root}.{place}": {"influence": score, "removed": place in dropped} for place, score in enumerate(scores)})


def _write_weights(source: Path, target: Path, name: str, root: str, kept: list[int]) -> None:
    from safetensors.torch import load_file, save_file

    tensors: dict[str, Any] = {}
    for path in weight_files(source):
        tensors.update({new: tensor for old, tensor in load_file(path).items() if (new := canonical(old, name)) is not None})
    save_file(_renumbered(tensors, root, kept), target / "model.safetensors", metadata={"format": "pt"})
