"""FP4: weights, and on request activations, as 4-bit floats in small blocks that share a scale: NVIDIA's NVFP4 and OCP's MXFP4."""

from __future__ import annotations

from pathlib import Path

from hub.domain import Step
from hub.errors import UnfitModel
from runners import compressed, layouts, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights, and activations unless A16, to 4-bit floats in blocks of 16 (NVFP4) or 32 (MXFP4) (llm-compressor)."
PAPER = "https://arxiv.org/abs/2310.10537"
SCHEMES = ("NVFP4A16", "NVFP4", "MXFP4A16", "MXFP4")
FORMAT = "compressed-tensors"
NEEDS = compressed.NEEDS
WORKS = "layerwise"
RESUMES = "layers"
SPARES = True


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models, and inputs that the blocks do not divide."""
    method.check_common(step, shape, SCHEMES, calibrated=step.scheme == "NVFP4")
    method.options(step)
    method.check_plain_linear(step, shape, "compressed-tensors")
    block = 16 if step.scheme.startswith("NV") else 32
    odd = next((linear for linear in shape.linears if linear.in_features % block), None)
    if odd:
        raise UnfitModel(
            f"{step.scheme} needs inputs divisible by {block}; {odd.name} has {odd.in_features}.",
            hint="Use the recipe fp8-dynamic for this model.",
        )


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed, two weights a byte; embeddings, norms and the head stay as they are."""
    return method.replaced(
        shape,
        {
            linear.name: layouts.nvfp4(linear, activations=step.scheme == "NVFP4")
            if step.scheme.startswith("NV")
            else layouts.mxfp4(linear)
            for linear in shape.linears
        },
    )


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Quantize a few tensors at a time; NVFP4's global scale of the activations is found a decoder layer at a time."""
    windows = context.windows(step) if step.scheme == "NVFP4" else ()
    return compressed.write(source, target, compressed.preset(step.scheme), windows=windows)
