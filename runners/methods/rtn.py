"""Round to nearest: the plainest weight-only quantization, and the yardstick for all others."""

from __future__ import annotations

from pathlib import Path

from hub.domain import Step
from runners import dense, formats, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights to the nearest of 2**bits levels in groups, without looking at any text (llm-compressor)."
PAPER = "https://arxiv.org/abs/2106.08295"
SCHEMES = ("W3A16", "W4A16", "W8A16")
FORMAT = "compressed-tensors"
NEEDS = ("llmcompressor", "compressed_tensors", "transformers", "torch")
WORKS = "whole"


def _group_size(step: Step) -> int:
    group = int(method.options(step, group_size=128)["group_size"])
    method.require(group >= 8, step, "group_size", group, "at least 8")
    return group


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models and widths that the groups do not divide."""
    method.check_common(step, shape, SCHEMES)
    method.check_plain_linear(step, shape, "compressed-tensors")
    method.check_divisible(step, shape, _group_size(step))


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed; embeddings, norms and the head stay as they are."""
    bits, group = method.weight_bits(step), _group_size(step)
    layers = {linear.name: formats.pack_quantized(linear, shape.dtype, bits=bits, group_size=group) for linear in shape.linears}
    return method.replaced(shape, layers)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Quantize in the model's own dtype, so that weights are rounded with the very scales that are stored."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.quantization import QuantizationModifier

    from runners import oneshot

    weights = QuantizationArgs(
        num_bits=method.weight_bits(step), type="int", symmetric=True, strategy="group", group_size=_group_size(step)
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    model = dense.load(source, dtype=dense.own_dtype(source))
    oneshot.run(QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"]), model, target)
    return Outcome()
