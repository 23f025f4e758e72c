"""Wanda: in every row of a layer, the weights of least magnitude times input norm become zero."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hub.domain import Step
from hub.errors import UnfitModel
from runners import dense, method
from runners.architectures import architecture
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Zeroes the least important half of each row's weights by |weight| times input norm; the size on disk stays."
PAPER = "https://arxiv.org/abs/2306.11695"
SCHEMES = ("unstructured", "2:4")
FORMAT = "dense"
NEEDS = ("transformers", "torch")
WORKS = "whole"


def _sparsity(step: Step) -> float:
    sparsity = float(method.options(step, sparsity=0.5)["sparsity"])
    method.require(0 < sparsity < 1, step, "sparsity", sparsity, "between 0 and 1")
    method.require(step.scheme != "2:4" or sparsity == 0.5, step, "sparsity", sparsity, "0.5 for the scheme 2:4")
    return sparsity


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, and widths that a 2:4 pattern does not divide."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    _sparsity(step)
    odd = next((linear for linear in shape.linears if step.scheme == "2:4" and linear.in_features % 4), None)
    if odd:
        raise UnfitModel(
            f"wanda's scheme 2:4 needs inputs divisible by 4; {odd.name} has {odd.in_features}.",
            hint="Use a recipe with the scheme unstructured for this model.",
        )


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; the given share of every linear layer's weights is zero."""
    return method.unchanged(shape, zeros=_sparsity(step))


def mask(weight: Any, norms: Any, *, sparsity: float, pattern: str) -> Any:
    """Return which weights go, as booleans shaped like `weight` (outputs by inputs); `norms` holds one input norm a column."""
    import torch

    score = weight.abs() * norms
    if pattern == "2:4":
        score = score.reshape(len(score), -1, 4)
    count = 2 if pattern == "2:4" else round(score.shape[-1] * sparsity)
    least = score.argsort(dim=-1, stable=True)[..., :count]
    return torch.zeros_like(score, dtype=torch.bool).scatter_(-1, least, True).reshape(weight.shape)


class _EnoughError(Exception):
    """Ends a forward pass once the layer in question has run."""


def _input_norms(model: Any, layer: Any, linears: list[Any], batches: list[Any]) -> dict[Any, Any]:
    import torch

    sums: dict[Any, Any] = dict.fromkeys(linears, 0.0)

    def watch(module: Any, inputs: tuple[Any, ...], _: Any) -> None:
        sums[module] = sums[module] + inputs[0].float().flatten(0, -2).square().sum(dim=0)

    def stop(*_: Any) -> None:
        raise _EnoughError

    handles = [linear.register_forward_hook(watch) for linear in linears] + [layer.register_forward_hook(stop)]
    with torch.inference_mode():
        for batch in batches:
            with contextlib.suppress(_EnoughError):
                model.base_model(batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return {module: total.sqrt() for module, total in sums.items()}


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Prune layer by layer, each seeing the outputs of those pruned before it.

    Own code: llm-compressor's modifier left every Conv1D of GPT-2 dense without a word.
    """
    import torch

    before = shape_of(source)
    model = dense.load(source, dtype="float32")
    windows = torch.tensor(context.windows(step))
    root = architecture(before.architecture).layers
    for place, layer in enumerate(model.get_submodule(root)):
        names = [linear.name for linear in before.linears if linear.name.startswith(f"{root}.{place}.")]
        linears = [model.get_submodule(name) for name in names]
        for module, norms in _input_norms(model, layer, linears, list(windows.split(4))).items():
            weight = module.weight.data.t() if before.conv1d else module.weight.data
            weight[mask(weight, norms, sparsity=_sparsity(step), pattern=step.scheme)] = 0.0
    model.save_pretrained(target)
    dense.settle(target, source)
    return Outcome(notes=(method.SAME_MACHINE,))
