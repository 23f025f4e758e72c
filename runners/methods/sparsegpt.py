"""SparseGPT: weights go by what their loss costs, and the weights to their right make up for them (second order, a layer at a time)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from runners import masks, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Zeroes half of the weights by second-order cost and corrects the others in their row; the size on disk stays."
PAPER = "https://arxiv.org/abs/2301.00774"
SCHEMES = masks.SCHEMES
FORMAT = "dense"
NEEDS = ("accelerate", "transformers", "torch", "safetensors")
WORKS = "layerwise"
RESUMES = "layers"
SPARES = True
BLOCK = 128
"""Columns whose mask is chosen together and whose corrections reach the rest at once."""
RAISES = 4
"""How often the damping is raised tenfold before a layer is kept as it is."""


def _options(step: Step) -> tuple[float, float]:
    values = method.options(step, sparsity=0.5, damp=0.01)
    return float(values["sparsity"]), float(values["damp"])


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, and widths that the pattern does not divide."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    sparsity, damp = _options(step)
    method.require(0 < damp <= 1, step, "damp", damp, "above 0 and at most 1")
    masks.check(step, shape, sparsity)


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; the given share of every linear layer's weights is zero."""
    return masks.promise(shape, _options(step)[0])


def factor(gram: Any, damp: float) -> tuple[Any, float]:
    """Return the upper Cholesky factor of the damped Gram matrix's inverse, and the damping that it took.

    `damp` is relative to the mean of the diagonal; it is raised tenfold where a factor cannot be found. Raises `KeptError` when that does
    not help. Row j holds what the inverse over columns j, j+1, … says of column j, which is all that pruning from left to right asks for.
    """
    import torch

    from runners.layerwise import KeptError

    for raised in range(RAISES + 1):
        tried = damp * 10**raised
        damped = gram.clone()
        damped.diagonal()[damped.diagonal() == 0] = 1.0
        damped.diagonal().add_(tried * damped.diagonal().mean())
        damped, failed = torch.linalg.cholesky_ex(damped)  # the same name: a layer's Gram matrix is large
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(damped), upper=True)
        if not failed and upper.isfinite().all():
            return upper, tried
    raise KeptError(f"its inputs' Gram matrix has no Cholesky factor, not even with a damping of {tried:g}")


def prune(weight: Any, upper: Any, *, sparsity: float, scheme: str) -> Any:
    """Return the weight (out, in) with zeros chosen block by block and the rest corrected; `upper` as `factor` gives it.

    Weights that are zero already stay so. Algorithm 1 of the paper, with the mask of a 2:4 or 4:8 group chosen when it is reached.
    """
    left, size = weight.clone(), masks.group(scheme)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        part, inverse = left[:, start:end], upper[start:end, start:end]
        fixed = weight[:, start:end] == 0
        gone, errors = fixed.clone(), part.new_zeros(part.shape)
        if not size:
            gone |= masks.least(_scores(part, inverse, fixed), sparsity=sparsity, scheme=scheme)
        for column in range(end - start):
            if size and column % size == 0:
                span = slice(column, column + size)
                scores = _scores(part[:, span], inverse[span, span], fixed[:, span])
                gone[:, span] |= masks.least(scores, sparsity=sparsity, scheme=scheme)
            errors[:, column] = part[:, column].where(gone[:, column], 0.0) / inverse[column, column]
            part[:, column:] -= errors[:, column, None] * inverse[column, column:]
            part[:, column].masked_fill_(gone[:, column], 0.0)  # what rounding leaves of it
        left[:, end:] -= errors @ upper[start:end, end:]
    return left


def _scores(weight: Any, inverse: Any, fixed: Any) -> Any:
    return (weight / inverse.diagonal()).square().masked_fill(fixed, -1.0)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Prune and correct layer by layer, each seeing the outputs of those pruned before it.

    Own code: llm-compressor's modifier leaves every Conv1D of GPT-2 dense without a word, and prunes heads that are tied to embeddings.
    """
    from runners import layerwise

    sparsity, damp = _options(step)
    last: list[tuple[layerwise.Inputs, tuple[Any, float]]] = []  # query, key and value are shown the same: factored once

    def change(_: str, weight: Any, inputs: layerwise.Inputs) -> tuple[Any, Mapping[str, Scalar]]:
        if not last or last[0][0] is not inputs:
            last[:] = [(inputs, factor(inputs.gram, damp))]
        upper, used = last[0][1]
        alive = weight.masked_fill(inputs.squares == 0, 0.0)  # what no input ever reaches goes first
        return prune(alive, upper, sparsity=sparsity, scheme=step.scheme), {"damp": used} if used > damp else {}

    told = layerwise.press(source, target, context.windows(step), change, about=step, gram=True)
    return Outcome(layers=told, notes=(method.SAME_MACHINE,))
