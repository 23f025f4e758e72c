"""HQQ: half-quadratic quantization, which chooses scales so that a robust norm of the weights' error is least, without any text.

Through torchao, which solves for the scale alone (zero points stay in the middle) and keeps a byte a weight: the package of HQQ's
authors saves a pickle, and transformers 5.17 reads none of its formats. At 2 bits, which live on zero points, that is worse than plain
rounding, so they are not offered.
"""

from __future__ import annotations

from pathlib import Path

from hub.domain import Step
from runners import method, torchao_files
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights to 3, 4 or 8 bits with half-quadratic scales, no text; a byte a weight on disk (torchao)."
PAPER = "https://mobiusml.github.io/hqq_blog/"
SCHEMES = ("W3A16", "W4A16", "W8A16")
FORMAT = torchao_files.FORMAT
NEEDS = torchao_files.NEEDS
WORKS = "whole"
RESUMES = "no"
SPARES = False


def _group_size(step: Step) -> int:
    group = int(method.options(step, group_size=64)["group_size"])
    method.require(group == -1 or group >= 4, step, "group_size", group, "at least 4, or -1 for one scale a row")
    return group


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models and widths that the groups do not divide."""
    method.check_common(step, shape, SCHEMES)
    method.check_plain_linear(step, shape, "torchao")
    method.check_divisible(step, shape, max(_group_size(step), 1))


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is a byte a weight; embeddings, norms and the head stay as they are."""
    return method.replaced(
        shape, {linear.name: torchao_files.layout(linear, shape.dtype, group_size=_group_size(step)) for linear in shape.linears}
    )


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Quantize while loading, in the model's own dtype."""
    import torch
    from torchao.quantization import IntxWeightOnlyConfig
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{method.weight_bits(step)}"),
        granularity=torchao_files.granularity(_group_size(step)),
        intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY,
    )
    return torchao_files.write(source, target, config)
