"""W8A8: weights in 8 bits with a scale per row, activations rounded to 8 bits per token while the model runs."""

from __future__ import annotations

from pathlib import Path

from hub.domain import Step
from runners import dense, formats, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights (per row) and activations (per token, as they come) to INT8; needs no calibration (llm-compressor)."
PAPER = "https://arxiv.org/abs/2206.01861"
SCHEMES = ("W8A8",)
FORMAT = "compressed-tensors"
NEEDS = ("llmcompressor", "compressed_tensors", "transformers", "torch")
WORKS = "whole"


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models: compressed-tensors would leave them dense without a word."""
    method.check_common(step, shape, SCHEMES)
    method.options(step)
    method.check_plain_linear(step, shape, "compressed-tensors")


def promise(step: Step, shape: ModelShape) -> Promise:  # noqa: ARG001 - one signature for all methods
    """Every linear layer of the decoder becomes bytes with a scale per row; embeddings, norms and the head stay as they are."""
    return method.replaced(shape, {linear.name: formats.int_quantized(linear, shape.dtype) for linear in shape.linears})


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Quantize in the model's own dtype, so that weights are rounded with the very scales that are stored."""
    from llmcompressor.modifiers.quantization import QuantizationModifier

    from runners import oneshot

    model = dense.load(source, dtype=dense.own_dtype(source))
    oneshot.run(QuantizationModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]), model, target)
    return Outcome()
