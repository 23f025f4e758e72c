"""Wanda: in every row of a layer, the weights of least magnitude times input norm become zero."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from runners import masks, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Zeroes the least important half of each row's weights by |weight| times input norm; the size on disk stays."
PAPER = "https://arxiv.org/abs/2306.11695"
SCHEMES = masks.SCHEMES
FORMAT = "dense"
NEEDS = ("accelerate", "transformers", "torch", "safetensors")
WORKS = "layerwise"
RESUMES = "layers"
SPARES = True


def _sparsity(step: Step) -> float:
    return float(method.options(step, sparsity=0.5)["sparsity"])


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, and widths that the pattern does not divide."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    masks.check(step, shape, _sparsity(step))


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; the given share of every linear layer's weights is zero."""
    return masks.promise(shape, _sparsity(step))


def mask(weight: Any, norms: Any, *, sparsity: float, scheme: str) -> Any:
    """Return which weights go, as booleans shaped like `weight` (outputs by inputs); `norms` holds one input norm a column."""
    return masks.least(weight.abs() * norms, sparsity=sparsity, scheme=scheme, scope="row")


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Prune layer by layer, each seeing the outputs of those pruned before it.

    Own code: llm-compressor's modifier left every Conv1D of GPT-2 dense without a word.
    """
    from runners import layerwise

    def change(_: str, weight: Any, inputs: layerwise.Inputs) -> tuple[Any, Mapping[str, Scalar]]:
        return weight.masked_fill(mask(weight, inputs.norms, sparsity=_sparsity(step), scheme=step.scheme), 0.0), {}

    told = layerwise.press(source, target, context.windows(step), change, about=step)
    return Outcome(layers=told, notes=(method.SAME_MACHINE,))
