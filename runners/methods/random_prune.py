"""Random pruning: weights go by lot. The floor that every criterion must beat."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from hub.domain import Step
from runners import masks, method
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Zeroes weights by lot: the floor that every criterion must beat; the size on disk stays."
PAPER = "https://arxiv.org/abs/2003.03033"
SCHEMES = masks.SCHEMES
FORMAT = "dense"
NEEDS = ("torch", "safetensors")
WORKS = "streaming"
RESUMES = "no"
SPARES = False


def _options(step: Step) -> tuple[float, int]:
    values = method.options(step, sparsity=0.5, seed=0)
    return float(values["sparsity"]), int(values["seed"])


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, and widths that the pattern does not divide."""
    method.check_common(step, shape, SCHEMES)
    sparsity, seed = _options(step)
    method.require(seed >= 0, step, "seed", seed, "at least 0")
    masks.check(step, shape, sparsity)


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; the given share of every linear layer's weights is zero."""
    return masks.promise(shape, _options(step)[0])


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Draw a number for each weight, from the seed and the layer's name alone; the lowest go. Weights that are zero already go first."""
    import torch

    sparsity, seed = _options(step)

    def gone(name: str, weight: Any) -> Any:
        draw = torch.Generator().manual_seed(seed ^ zlib.crc32(name.encode()))
        scores = torch.rand(weight.shape, generator=draw).masked_fill(weight == 0, -1.0)
        return masks.least(scores, sparsity=sparsity, scheme=step.scheme)

    linears = [linear.name for linear in shape_of(source).linears]
    told = masks.stream(source, target, linears, gone)
    return Outcome(layers={name: facts for name, facts in told.items() if "kept" in facts})
