"""W8A8 and W4A8: weights and activations in integers, so that engines multiply integers too."""

from __future__ import annotations

from pathlib import Path

from hub.domain import Step
from runners import compressed, layouts, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights to INT8 or INT4 and activations to INT8, per token as they come or by a calibrated scale (llm-compressor)."
PAPER = "https://arxiv.org/abs/2206.01861"
SCHEMES = ("W8A8", "W4A8")
FORMAT = "compressed-tensors"
NEEDS = compressed.NEEDS
WORKS = "layerwise"
RESUMES = "layers"
SPARES = True


def _options(step: Step) -> tuple[bool, int]:
    """Return whether activations are rounded by a calibrated scale, and the weights' group size, 0 for a scale per row."""
    values = method.options(step, activations="dynamic", group_size=0)
    activations, group = str(values["activations"]), int(values["group_size"])
    method.require(activations in ("dynamic", "static"), step, "activations", activations, "dynamic or static")
    # Engines have no kernel for other pairs: INT8 weights come with a scale per row, INT4 ones with dynamic activations.
    method.require(step.scheme == "W4A8" or group == 0, step, "group_size", group, "0 for W8A8, which has a scale per row")
    method.require(step.scheme == "W8A8" or activations == "dynamic", step, "activations", activations, "dynamic for W4A8")
    method.require(group == 0 or group >= 8, step, "group_size", group, "at least 8, or 0 for a scale per row")
    return activations == "static", group


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models, which compressed-tensors would leave dense without a word, and widths that groups do not divide."""
    method.check_common(step, shape, SCHEMES)
    static, group = _options(step)
    method.check_common(step, shape, SCHEMES, calibrated=static)
    method.check_plain_linear(step, shape, "compressed-tensors")
    method.check_divisible(step, shape, group or 1)


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder becomes a byte a weight, INT4 ones too: so engines read it. The rest stays as it is."""
    static, group = _options(step)
    strategy = "group" if group else "channel"
    return method.replaced(
        shape,
        {
            linear.name: layouts.int_quantized(linear, shape.dtype, strategy=strategy, group_size=group, static=static)
            for linear in shape.linears
        },
    )


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Quantize a few tensors at a time; static scales are found a decoder layer at a time."""
    static, group = _options(step)
    weights = {**compressed.INT8_ROWS, "num_bits": method.weight_bits(step)}
    if group:
        weights |= {"strategy": "group", "group_size": group}
    scheme = compressed.scheme(weights, compressed.INT8_STATIC if static else compressed.INT8_DYNAMIC)
    return compressed.write(source, target, scheme, windows=context.windows(step) if static else ())
