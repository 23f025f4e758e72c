"""Depth pruning: whole layers go, those whose output differs least in direction from their input (ShortGPT's block influence)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hub.domain import Step
from hub.errors import UnfitModel
from runners import dense, depth, economy, gates, method
from runners.architectures import architecture
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Removes the layers of least block influence (1 - cosine similarity of input and output on calibration text)."
PAPER = "https://arxiv.org/abs/2403.03853"
SCHEMES = ("depth",)
FORMAT = "dense"
NEEDS = ("transformers", "torch", "safetensors")
WORKS = "whole"
RESUMES = "no"
SPARES = True


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
    return method.unchanged(depth.shortened(shape, shape.layers - _removed(step, shape.layers)))


def influence(model: Any, root: str, windows: list[list[int]]) -> list[float]:
    """Return each layer's block influence: 1 - mean cosine similarity of its input and output over all tokens, in [0, 2].

    Raises `Unstable` where a layer puts out NaN or infinity.
    """
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
        for batch in torch.tensor(windows).split(economy.together(gates.BATCH)):
            model.base_model(batch, use_cache=False)
            tokens += batch.numel()
    for handle in handles:
        handle.remove()
    broken = next((place for place, total in enumerate(sums) if not math.isfinite(total)), None)
    if broken is not None:
        raise gates.overflow(f"{root}.{broken}")
    return [1.0 - total / tokens for total in sums]


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Measure block influence once on the whole model, in the dtype it is stored in, drop the lowest layers, and write a true config."""
    shape = shape_of(source)
    root = architecture(shape.architecture).layers
    scores = influence(dense.load(source, dtype=dense.own_dtype(source)), root, context.windows(step))
    count = _removed(step, len(scores))
    dropped = sorted(range(len(scores)), key=lambda place: (scores[place], place))[:count]
    kept = [place for place in range(len(scores)) if place not in dropped]
    depth.write(source, target, kept)
    layers = depth.told(root, len(scores), kept, influence=[round(score, 6) for score in scores])
    return Outcome(layers=layers, notes=(method.SAME_MACHINE,))
