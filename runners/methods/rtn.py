"""Round to nearest: the plainest weight-only quantization, and the yardstick for all others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hub.domain import Step
from runners import compressed, layouts, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights to the nearest of 2**bits levels by tensor, row or group, without looking at any text (llm-compressor)."
PAPER = "https://arxiv.org/abs/2106.08295"
SCHEMES = ("W2A16", "W3A16", "W4A16", "W8A16")
FORMAT = "compressed-tensors"
NEEDS = compressed.NEEDS
WORKS = "streaming"
RESUMES = "no"
SPARES = False


def _options(step: Step) -> dict[str, Any]:
    """Return the arguments of the weights; `group_size` 0 where there are no groups."""
    values = method.options(step, strategy="group", group_size=128, symmetric=True)
    strategy, group = str(values["strategy"]), int(values["group_size"])
    method.require(strategy in ("tensor", "channel", "group"), step, "strategy", strategy, "tensor, channel or group")
    method.require(group >= 8, step, "group_size", group, "at least 8")
    method.require(strategy == "group" or "group_size" not in step.params, step, "group_size", group, "left out without groups")
    return {"strategy": strategy, "group_size": group if strategy == "group" else 0, "symmetric": bool(values["symmetric"])}


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models and widths that the groups do not divide."""
    method.check_common(step, shape, SCHEMES)
    method.check_plain_linear(step, shape, "compressed-tensors")
    method.check_divisible(step, shape, _options(step)["group_size"] or 1)


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed; embeddings, norms and the head stay as they are."""
    bits, options = method.weight_bits(step), _options(step)
    return method.replaced(
        shape, {linear.name: layouts.pack_quantized(linear, shape.dtype, bits=bits, **options) for linear in shape.linears}
    )


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Quantize a few tensors at a time."""
    options = _options(step)
    weights = {**options, "group_size": options["group_size"] or None, "num_bits": method.weight_bits(step), "type": "int"}
    return compressed.write(source, target, compressed.scheme(weights))
