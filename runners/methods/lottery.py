"""The lottery ticket: train, prune what is smallest, put what is left back to where it began, and again; then train the ticket found.

A downloaded model comes without the checkpoint of an early step to which the paper on rewinding goes back; the base's own weights take its
place. The ticket is thus one of fine-tuning, not of training from nothing.
"""

from __future__ import annotations

from pathlib import Path

from hub.domain import Step
from runners import masking, masks, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "pruning"
SUMMARY = "Rounds of training, zeroing the weights of least magnitude and rewinding the others to the base's; then a last training."
PAPER = "https://arxiv.org/abs/1912.05671"
SCHEMES = masking.SCHEMES
FORMAT = "dense"
NEEDS = masking.NEEDS
WORKS = "training"
RESUMES = "no"
SPARES = True


def _options(step: Step) -> tuple[masking.Options, int]:
    asked = masking.options(step, rounds=3)
    rounds = int(asked.rest["rounds"])
    method.require(rounds > 0, step, "rounds", rounds, "at least 1")
    return asked, rounds


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures and a step without a text to learn from."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    _options(step)


def promise(step: Step, shape: ModelShape) -> Promise:
    """All tensors keep their shapes; the given share of every linear layer's weights is zero."""
    return masks.promise(shape, _options(step)[0].sparsity)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Share the budget equally among the rounds and the last training; each round leaves the same fraction of what lived before it.

    Every parameter is rewound, those without a mask too. Frankle and Carbin 2018 (1803.03635); Frankle et al. 2019, section 3.
    """
    asked, rounds = _options(step)
    learner = masking.Learner(step, asked, source, context)
    start = {name: tensor.detach().clone() for name, tensor in learner.model.named_parameters()}
    steps = learner.steps(1 / (rounds + 1))
    for number in range(1, rounds + 1):
        learner.train(steps, round_number=number)
        scores = [weight.detach().abs() for weight in learner.weights]
        _rewind(learner, start)
        for weight, score in zip(learner.weights, scores, strict=True):
            learner.mask(weight, score, 1 - (1 - asked.sparsity) ** (number / rounds))
    learner.train(steps, round_number=rounds + 1)
    return learner.save(target)


def _rewind(learner: masking.Learner, start: dict[str, object]) -> None:
    import torch

    with torch.no_grad():
        for name, parameter in learner.model.named_parameters():
            parameter.copy_(start[name])
