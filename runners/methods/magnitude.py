"""Magnitude pruning: the smallest weights go, compared within a row, a layer, or over all layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from hub.errors import UnfitModel
from runners import masks, method
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Zeroes the smallest weights by row, by layer or over all layers, singly or in blocks; the size on disk stays."
PAPER = "https://arxiv.org/abs/1506.02626"
BLOCKS = "4x1"
"""Four outputs by one input that go together; for single weights L1 and L2 give the same order, for blocks they do not."""
SCHEMES = (*masks.SCHEMES, BLOCKS)
FORMAT = "dense"
NEEDS = ("torch", "safetensors")
WORKS = "streaming"
RESUMES = "no"
SPARES = False
SCOPES = ("layer", "row", "global")
NORMS = ("l1", "l2")


@dataclass(frozen=True, kw_only=True)
class _Options:
    sparsity: float
    scope: str
    norm: str


def _options(step: Step) -> _Options:
    values = method.options(step, sparsity=0.5, scope="layer", norm="l1")
    return _Options(sparsity=float(values["sparsity"]), scope=str(values["scope"]), norm=str(values["norm"]))


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, widths that the pattern does not divide, and options that would change nothing."""
    method.check_common(step, shape, SCHEMES)
    options = _options(step)
    single = step.scheme == "unstructured"
    method.require(options.scope in SCOPES, step, "scope", options.scope, f"one of {', '.join(SCOPES)}")
    method.require(single or options.scope == "layer", step, "scope", options.scope, f"layer for the scheme {step.scheme}")
    method.require(options.norm in NORMS, step, "norm", options.norm, f"one of {', '.join(NORMS)}")
    method.require(step.scheme == BLOCKS or "norm" not in step.params, step, "norm", options.norm, f"left out but for {BLOCKS} blocks")
    masks.check(step, shape, options.sparsity)
    odd = next((linear for linear in shape.linears if step.scheme == BLOCKS and linear.out_features % 4), None)
    if odd:
        raise UnfitModel(
            f"magnitude's scheme {BLOCKS} needs outputs divisible by 4; {odd.name} has {odd.out_features}.",
            hint="Use a recipe with the scheme unstructured for this model.",
        )


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; every layer has the given share of zeros, or all layers together where they are compared."""
    options = _options(step)
    return method.unchanged(shape) if options.scope == "global" else masks.promise(shape, options.sparsity)


def delivered(step: Step, shape: ModelShape, layers: Mapping[str, Mapping[str, Scalar]]) -> Promise:
    """The promise with the zeros by layer that comparing all layers gave."""
    options = _options(step)
    return masks.delivered(step, shape, layers, options.sparsity) if options.scope == "global" else promise(step, shape)


def mask(weight: Any, *, sparsity: float, scheme: str, scope: str, norm: str = "l1") -> Any:
    """Return which weights of a linear (outputs by inputs) go, as booleans of its shape; `scope` is `row` or `layer`."""
    if scheme != BLOCKS:
        return masks.least(weight.abs(), sparsity=sparsity, scheme=scheme, scope=scope)
    blocks = weight.unflatten(0, (-1, 4)).norm(p=1 if norm == "l1" else 2, dim=1)
    return masks.least(blocks, sparsity=sparsity, scheme="unstructured", scope=scope).repeat_interleave(4, dim=0)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Prune a tensor at a time; where all layers are compared, two passes over the weights find the threshold before.

    Own code: no kept library prunes Hugging Face checkpoints by tensor, GPT-2's Conv1D included.
    """
    from runners.streaming import Source

    options = _options(step)
    given, linears = Source(source), {linear.name for linear in shape_of(source).linears}

    def weights() -> Iterator[Any]:
        for name in given.names:
            if name.removesuffix(".weight") in linears and (weight := given.read(name)).isfinite().all():
                yield weight

    if options.scope == "global":
        cut = masks.Cut(weights, options.sparsity)
        told = masks.stream(source, target, linears, lambda _, weight: cut.gone(weight))
        return Outcome(layers=told)
    told = masks.stream(
        source,
        target,
        linears,
        lambda _, weight: mask(weight, sparsity=options.sparsity, scheme=step.scheme, scope=options.scope, norm=options.norm),
    )
    return Outcome(layers={name: facts for name, facts in told.items() if "kept" in facts})
