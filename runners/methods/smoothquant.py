"""SmoothQuant: channels with large activations are scaled down, the weights that read them up, before both are rounded to INT8.

Own code for the smoothing, with llm-compressor's formula, which a test compares it with: llm-compressor's holds the whole model in float32.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.domain import Step
from runners import compressed, layerwise, layouts, method, scaling
from runners.checkpoint import ModelShape
from runners.layerwise import Layer
from runners.method import Outcome, PressContext, Promise
from runners.streaming import Source, Writer
from runners.unfinished import Made

FAMILY = "quantization"
SUMMARY = "Moves activation outliers into the weights through the norms, then rounds both to INT8 (llm-compressor)."
PAPER = "https://arxiv.org/abs/2211.10438"
SCHEMES = ("W8A8",)
FORMAT = "compressed-tensors"
NEEDS = compressed.NEEDS
WORKS = "layerwise"
RESUMES = "layers"
SPARES = True
LEAST = 1e-5
"""No scale is smaller: a channel without any activation would have one of 0."""


def _options(step: Step) -> tuple[float, bool]:
    """Return the strength (alpha in the paper), and whether activations are rounded by a calibrated scale."""
    values = method.options(step, strength=0.5, activations="dynamic")
    strength, activations = float(values["strength"]), str(values["activations"])
    method.require(0 < strength < 1, step, "strength", strength, "between 0 and 1")
    method.require(activations in ("dynamic", "static"), step, "activations", activations, "dynamic or static")
    return strength, activations == "static"


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models: compressed-tensors would leave them dense without a word."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    _options(step)
    method.check_plain_linear(step, shape, "compressed-tensors")


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder becomes bytes with a scale per row; norms change their values, the rest stays as it is."""
    static = _options(step)[1]
    return method.replaced(shape, {linear.name: layouts.int_quantized(linear, shape.dtype, static=static) for linear in shape.linears})


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Smooth in float32, store that as the base lies, then quantize it; all a decoder layer at a time."""
    strength, static = _options(step)
    windows = context.windows(step)
    smoothed = context.scratch / "smoothed"
    smoothed.mkdir()
    smooth(source, smoothed, windows, strength)
    scheme = compressed.scheme(compressed.INT8_ROWS, compressed.INT8_STATIC if static else compressed.INT8_DYNAMIC)
    outcome = compressed.write(smoothed, target, scheme, windows=windows if static else ())
    shutil.rmtree(smoothed)
    return replace(outcome, notes=(method.SAME_MACHINE,))


def smooth(source: Path, target: Path, windows: list[list[int]], strength: float) -> None:
    """Write into the folder `target` the dense checkpoint `source` with the same function, outliers moved from activations to weights.

    Where the weights of a set of linears, or their scales, are not finite, that set and its norm stay as they are.
    """
    given = Source(source)

    def smoothed(layer: Layer) -> Made:
        ranges = _ranges(layer)
        for norm, readers in scaling.NORMS:
            names = [f"{layer.name}.{reader}" for reader in readers]
            scale = _scale([layer.weight(name) for name in names], ranges[norm], strength)
            if all((layer.weight(name) * scale).to(given.dtype(f"{name}.weight")).isfinite().all() for name in names):
                scaling.move(layer, norm, names, scale, given)
        return Made(tensors={name: {name: tensor} for name, tensor in scaling.stored(layer, given)})

    with Writer(target, given) as out:
        layerwise.write(layerwise.each(source, windows, smoothed, about=("smoothquant", strength)), out)
        out.copy_rest()


def _ranges(layer: Layer) -> dict[str, Any]:
    """Return by norm the range of each channel that it gives, greatest less least value over all tokens, (width,)."""
    import torch

    least: dict[str, Any] = {}
    most: dict[str, Any] = {}

    def watch(norm: str) -> Callable[[Any, Any, Any], None]:
        def look(_module: Any, _inputs: Any, output: Any) -> None:
            rows = output.flatten(0, -2)
            least[norm] = torch.minimum(least.get(norm, rows[0]), rows.amin(dim=0))
            most[norm] = torch.maximum(most.get(norm, rows[0]), rows.amax(dim=0))

        return look

    handles = [layer.module.get_submodule(norm).register_forward_hook(watch(norm)) for norm, _ in scaling.NORMS]
    for batch in range(len(layer.hidden)):
        layer.run(batch)
    for handle in handles:
        handle.remove()
    return {norm: most[norm] - least[norm] for norm in most}


def _scale(weights: Sequence[Any], activations: Any, strength: float) -> Any:
    """Return the scale a channel, (width,): the activations' range ** strength over the weights' ** (1 - strength), equation 4.

    `weights` (out, width) all read the same `activations`, of which it takes the range. A channel that no weight reads has its own range.
    """
    import torch

    widths = 2 * torch.stack([weight.abs().amax(dim=0) for weight in weights]).amax(dim=0)
    scale = activations.pow(strength) / widths.pow(1 - strength)
    return scale.where(widths > 0, activations).clamp(min=LEAST)
