"""Movement pruning: while the model learns, the weights that training moves towards zero go, however large they still are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.domain import Step
from runners import masking, masks, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Zeroes the weights that training moves towards zero, by learnt scores and a cubic schedule; the size on disk stays."
PAPER = "https://arxiv.org/abs/2005.07683"
SCHEMES = masking.SCHEMES
FORMAT = "dense"
NEEDS = masking.NEEDS
WORKS = "training"
RESUMES = "no"
SPARES = True
STARTS = ("magnitude", "equal")


@dataclass(frozen=True, kw_only=True)
class _Options:
    asked: masking.Options
    ramp: float
    start: str
    reach: float


def _options(step: Step) -> _Options:
    asked = masking.options(step, ramp=0.6, start="magnitude", reach=0.6)
    found = _Options(asked=asked, ramp=float(asked.rest["ramp"]), start=str(asked.rest["start"]), reach=float(asked.rest["reach"]))
    method.require(0 < found.ramp <= 1, step, "ramp", found.ramp, "above 0 and at most 1")
    method.require(found.start in STARTS, step, "start", found.start, " or ".join(STARTS))
    method.require(found.reach > 0, step, "reach", found.reach, "above 0")
    return found


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures and a step without a text to learn from."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    _options(step)


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; the given share of every linear layer's weights is zero."""
    return masks.promise(shape, _options(step).asked.sparsity)


class Scores:
    """A score S for every weight, S ← S - rate W ∂L/∂(W ⊙ M): it falls where a step of training moves the weight towards zero.

    The derivative is by the masked weight and known for dead weights too (the straight-through estimator), which keep the value that they
    had and may live again. Sanh et al. 2020, equations 3 and 4, with two departures: the product is divided by its root mean square over
    the layer (theirs goes through Adam), and scores may begin as |W| over its mean instead of all equal: over budgets a thousand times
    smaller than theirs, scores that begin equal are mostly noise.
    """

    def __init__(self, learner: masking.Learner, *, start: str, rate: float) -> None:
        """Begin; what the weights came with as zero never lives."""
        self._learner = learner
        self._rate = rate
        self._values = {weight: weight.detach().clone() for weight in learner.weights}
        self._scores = {weight: self._first(weight.detach(), start) for weight in learner.weights}

    @staticmethod
    def _first(weight: Any, start: str) -> Any:
        size = weight.abs()
        return (size / size.mean() if start == "magnitude" else size * 0).masked_fill_(weight == 0, -math.inf)

    def learn(self, _: int) -> None:
        """Take in the gradients of a step."""
        for weight, score in self._scores.items():
            push = weight.grad * self._values[weight]
            score.sub_(push, alpha=self._rate / max(float(push.square().mean().sqrt()), 1e-30))

    def prune(self, share: float) -> None:
        """Keep what lives as it was trained, and choose anew what lives."""
        import torch

        with torch.no_grad():
            for weight, value in self._values.items():
                torch.where(self._learner.masks[weight], weight, value, out=value)
                score = self._scores[weight]
                self._learner.masks[weight] = masking.alive(score, share) & (score > -math.inf)
                torch.mul(value, self._learner.masks[weight], out=weight)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Train with the schedule for the first part of the budget (`ramp`), and on, still choosing, at the full share for the rest."""
    options = _options(step)
    learner = masking.Learner(step, options.asked, source, context)
    steps = learner.steps()
    scores = Scores(learner, start=options.start, rate=options.reach / steps)

    def after(number: int) -> None:
        scores.prune(masking.cubic(number, steps, share=options.asked.sparsity, ramp=options.ramp))

    learner.train(steps, before=scores.learn, after=after)
    return learner.save(target)
