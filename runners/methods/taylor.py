"""First-order Taylor pruning: the weights whose removal changes the loss least, by gradient times weight, become zero."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from runners import masks, method, training
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Zeroes the weights of least |gradient times weight| on calibration text, by layer or over all; the size on disk stays."
PAPER = "https://arxiv.org/abs/1906.10771"
SCHEMES = masks.SCHEMES
FORMAT = "dense"
NEEDS = ("transformers", "torch", "safetensors")
WORKS = "gradients"
RESUMES = "no"
SPARES = True
SCOPES = ("layer", "global")


def _options(step: Step) -> tuple[float, str]:
    values = method.options(step, sparsity=0.5, scope="layer")
    return float(values["sparsity"]), str(values["scope"])


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, and widths that the pattern does not divide."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    sparsity, scope = _options(step)
    method.require(scope in SCOPES, step, "scope", scope, f"one of {', '.join(SCOPES)}")
    method.require(step.scheme == "unstructured" or scope == "layer", step, "scope", scope, f"layer for the scheme {step.scheme}")
    masks.check(step, shape, sparsity)


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; every layer has the given share of zeros, or all layers together where they are compared."""
    sparsity, scope = _options(step)
    return method.unchanged(shape) if scope == "global" else masks.promise(shape, sparsity)


def delivered(step: Step, shape: ModelShape, layers: Mapping[str, Mapping[str, Scalar]]) -> Promise:
    """The promise with the zeros by layer that comparing all layers gave."""
    sparsity, scope = _options(step)
    return masks.delivered(step, shape, layers, sparsity) if scope == "global" else promise(step, shape)


def scores(model: Any, linears: list[str], windows: list[list[int]]) -> dict[str, Any]:
    """Return by linear Σ |∂loss/∂w · w| over the windows, each its own loss (mean nats a token), shaped as the weight is stored.

    The model is left without gradients. Molchanov et al. 2019, equation 8, with the absolute value in place of the square.
    """
    import torch

    sums: dict[str, Any] = {}
    handles = []

    def gather(name: str) -> Any:
        def take(parameter: Any) -> None:
            change = (parameter.grad * parameter.detach()).abs_()
            sums[name] = sums[name].add_(change) if name in sums else change
            parameter.grad = None  # taken as it comes, so that the gradients of all layers never lie beside each other

        return take

    model.requires_grad_(False)
    training.recompute(model)
    for name in linears:
        weight = model.get_submodule(name).weight
        weight.requires_grad_(True)
        handles.append(weight.register_post_accumulate_grad_hook(gather(name)))
    for window in windows:
        ids = torch.tensor([window])
        model(ids, labels=ids, use_cache=False).loss.backward()
    for handle in handles:
        handle.remove()
    return sums


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Sum up the scores on the whole model in float32, then write its checkpoint a tensor at a time.

    Own code: torch-pruning scores whole channels, not single weights.
    """
    from runners import dense

    sparsity, scope = _options(step)
    shape = shape_of(source)
    names = [linear.name for linear in shape.linears]
    model = dense.load(source, dtype="float32")
    found = scores(model, names, context.windows(step))
    del model
    broken = {name for name, score in found.items() if not score.isfinite().all()}
    pruned = [name for name in names if name not in broken]
    cut = masks.Cut(lambda: (found[name] for name in pruned), sparsity) if scope == "global" else None

    def gone(name: str, _: Any) -> Any:
        score = found.pop(name)
        score = score.t() if shape.conv1d else score
        return cut.gone(score) if cut else masks.least(score, sparsity=sparsity, scheme=step.scheme)

    told = masks.stream(source, target, pruned, gone)
    told |= {name: {"kept": "its gradients on the calibration text hold NaN or infinity"} for name in broken}
    layers = told if scope == "global" else {name: facts for name, facts in told.items() if "kept" in facts}
    return Outcome(layers=layers, notes=(method.SAME_MACHINE,))
