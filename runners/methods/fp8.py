"""FP8: weights and activations as 8-bit floats (E4M3), which GPUs since Ada and Hopper multiply as they are."""

from __future__ import annotations

from pathlib import Path

from hub.domain import Step
from hub.errors import UnfitModel
from runners import compressed, layouts, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights and activations to 8-bit floats: by row and token, by tensor and calibrated, or by block (llm-compressor)."
PAPER = "https://arxiv.org/abs/2209.05433"
SCHEMES = ("FP8_DYNAMIC", "FP8", "FP8_BLOCK")
FORMAT = "compressed-tensors"
NEEDS = compressed.NEEDS
WORKS = "layerwise"
RESUMES = "layers"
SPARES = True
BLOCK = 128


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models, and for blocks inputs that are not divisible by them: activations are rounded in groups as wide."""
    method.check_common(step, shape, SCHEMES, calibrated=step.scheme == "FP8")
    method.options(step)
    method.check_plain_linear(step, shape, "compressed-tensors")
    odd = next((linear for linear in shape.linears if step.scheme == "FP8_BLOCK" and linear.in_features % BLOCK), None)
    if odd:
        raise UnfitModel(
            f"fp8's scheme FP8_BLOCK needs inputs divisible by {BLOCK}; {odd.name} has {odd.in_features}.",
            hint="Use the recipe fp8-dynamic for this model.",
        )


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder becomes bytes with their scales; embeddings, norms and the head stay as they are."""
    strategy = {"FP8_DYNAMIC": "channel", "FP8": "tensor", "FP8_BLOCK": "block"}[step.scheme]
    return method.replaced(
        shape,
        {
            linear.name: layouts.float_quantized(linear, shape.dtype, strategy=strategy, block=BLOCK, static=step.scheme == "FP8")
            for linear in shape.linears
        },
    )


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Quantize a few tensors at a time; static scales are found a decoder layer at a time."""
    windows = context.windows(step) if step.scheme == "FP8" else ()
    return compressed.write(source, target, compressed.preset(step.scheme), windows=windows)
