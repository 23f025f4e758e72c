"""torchao: integer weights, and inputs on request, rounded by PyTorch's own library; needs no calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hub.domain import Step
from runners import method, torchao_files
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights to 8 or 4 bits (a byte each on disk), inputs too if asked for; needs no calibration (torchao)."
PAPER = "https://arxiv.org/abs/2507.16099"
SCHEMES = ("W8A16", "W8A8", "W4A8")
FORMAT = torchao_files.FORMAT
NEEDS = torchao_files.NEEDS
WORKS = "whole"
RESUMES = "no"
SPARES = False


def _group_size(step: Step) -> int:
    group = int(method.options(step, group_size=-1)["group_size"])
    method.require(group == -1 or group >= 4, step, "group_size", group, "at least 4, or -1 for one scale a row")
    method.require(group == -1 or step.scheme == "W4A8", step, "group_size", group, "left out for 8 bits")
    return group


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models and widths that the groups do not divide."""
    method.check_common(step, shape, SCHEMES)
    method.check_plain_linear(step, shape, "torchao")
    method.check_divisible(step, shape, max(_group_size(step), 1))


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is a byte a weight; embeddings, norms and the head stay as they are."""
    dtype = shape.dtype if step.scheme == "W4A8" else "F32"
    return method.replaced(
        shape, {linear.name: torchao_files.layout(linear, dtype, group_size=_group_size(step)) for linear in shape.linears}
    )


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Quantize while loading, in the model's own dtype."""
    return torchao_files.write(source, target, _config(step))


def _config(step: Step) -> Any:
    import torch
    from torchao import quantization

    if step.scheme == "W8A16":
        return quantization.Int8WeightOnlyConfig()
    if step.scheme == "W8A8":
        return quantization.Int8DynamicActivationInt8WeightConfig()
    return quantization.Int8DynamicActivationIntxWeightConfig(
        weight_dtype=torch.int4, weight_granularity=torchao_files.granularity(_group_size(step))
    )
