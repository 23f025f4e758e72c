"""Gradual magnitude pruning: while the model learns, more and more of the weights of least magnitude become zero and stay so."""

from __future__ import annotations

from pathlib import Path

from hub.domain import Step
from runners import masking, masks, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Zeroes weights of least magnitude step by step while training, by a cubic schedule; the size on disk stays."
PAPER = "https://arxiv.org/abs/1710.01878"
SCHEMES = masking.SCHEMES
FORMAT = "dense"
NEEDS = masking.NEEDS
WORKS = "training"
RESUMES = "no"
SPARES = True


def _options(step: Step) -> tuple[masking.Options, float]:
    asked = masking.options(step, ramp=0.6)
    ramp = float(asked.rest["ramp"])
    method.require(0 < ramp <= 1, step, "ramp", ramp, "above 0 and at most 1")
    return asked, ramp


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures and a step without a text to learn from."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    _options(step)


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; the given share of every linear layer's weights is zero."""
    return masks.promise(shape, _options(step)[0].sparsity)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Train with the schedule for the first part of the budget (`ramp`), and on with the last masks for the rest."""
    asked, ramp = _options(step)
    learner = masking.Learner(step, asked, source, context)
    steps = learner.steps()

    def after(number: int) -> None:
        share = masking.cubic(number, steps, share=asked.sparsity, ramp=ramp)
        for weight in learner.weights:
            learner.mask(weight, weight.detach().abs(), share)

    learner.train(steps, after=after)
    return learner.save(target)
