"""SmoothQuant: channels with large activations are scaled down, the weights that read them up, before both are rounded to INT8."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from hub.domain import Step
from runners import compressed, dense, layouts, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Moves activation outliers into the weights by norms and linears, then rounds both to INT8 (llm-compressor)."
PAPER = "https://arxiv.org/abs/2211.10438"
SCHEMES = ("W8A8",)
FORMAT = "compressed-tensors"
NEEDS = compressed.NEEDS
WORKS = "whole"


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
    """Smooth in float32, store that as the base lies, then quantize it."""
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    from runners import oneshot

    strength, static = _options(step)
    windows = context.windows(step)
    smoothed = context.scratch / "smoothed"
    model = dense.load(source, dtype="float32")
    oneshot.run(SmoothQuantModifier(smoothing_strength=strength), model, smoothed, windows=windows)
    dense.settle(smoothed, source)
    scheme = compressed.scheme(compressed.INT8_ROWS, compressed.INT8_STATIC if static else compressed.INT8_DYNAMIC)
    outcome = compressed.write(smoothed, target, scheme, windows=windows if static else ())
    shutil.rmtree(smoothed)
    return replace(outcome, notes=(method.SAME_MACHINE,))
