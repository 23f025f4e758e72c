"""Wanda: in every row of a layer, the weights of least magnitude times input norm become zero."""

from __future__ import annotations

from pathlib import Path

from hub.domain import Step
from runners import dense, method
from runners.checkpoint import ModelShape
from runners.method import PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Zeroes the least important half of each row's weights by |weight| times input norm; the size on disk stays (llm-compressor)."
PAPER = "https://arxiv.org/abs/2306.11695"
SCHEMES = ("unstructured", "2:4")
NEEDS = ("llmcompressor", "compressed_tensors", "transformers", "torch")


def _sparsity(step: Step) -> float:
    sparsity = float(method.options(step, sparsity=0.5)["sparsity"])
    method.require(0 < sparsity < 1, step, "sparsity", sparsity, "between 0 and 1")
    method.require(step.scheme != "2:4" or sparsity == 0.5, step, "sparsity", sparsity, "0.5 for the scheme 2:4")
    return sparsity


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, and widths that a 2:4 pattern does not divide."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    _sparsity(step)
    if step.scheme == "2:4":
        method.check_divisible(step, shape, 4)


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; the given share of every linear layer's weights is zero."""
    return method.unchanged(shape, zeros=_sparsity(step))


def apply(step: Step, source: Path, target: Path, context: PressContext) -> None:
    """Prune layer by layer, each seeing the outputs of those pruned before it."""
    from llmcompressor.modifiers.pruning import WandaPruningModifier

    from runners import oneshot

    modifier = WandaPruningModifier(
        sparsity=_sparsity(step),
        mask_structure="2:4" if step.scheme == "2:4" else "0:0",
        targets=["Linear", "Conv1D"],
        # By name alone the head is missed ("lm_head." is what is matched), and a tied head is the embedding.
        ignore=["re:.*lm_head.*"],
    )
    model = dense.load(source, dtype="float32")
    oneshot.run(modifier, model, target, calibration=step.calibration, base_folder=context.base_folder)
    dense.settle(target, source)
