"""Knowledge distillation: a pruned student learns to predict what its base predicts, token by token.

Pressed again on the same machine with as many threads, the bytes are the same; other hardware sums in another order, and the small
differences grow from step to step.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.domain import Step
from runners import dense, method, training
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise

FAMILY = "distillation"
SUMMARY = "Trains the student on its base's own distributions: forward KL at a temperature, plus cross-entropy on the text."
PAPER = "https://arxiv.org/abs/1503.02531"
SCHEMES = ("logits",)
FORMAT = "dense"
NEEDS = ("transformers", "torch")
WORKS = "training"


@dataclass(frozen=True, kw_only=True)
class _Options:
    budget: training.Budget
    temperature: float
    text_weight: float


def _options(step: Step) -> _Options:
    values = method.options(step, tokens=65_536, batch=8, learning_rate=1e-3, temperature=1.0, text_weight=0.0)
    found = _Options(
        budget=training.budget(step, values),
        temperature=float(values["temperature"]),
        text_weight=float(values["text_weight"]),
    )
    method.require(found.temperature > 0, step, "temperature", found.temperature, "above 0")
    method.require(0 <= found.text_weight <= 1, step, "text_weight", found.text_weight, "between 0 and 1")
    return found


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures and a step without a text to learn from."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    _options(step)


def promise(step: Step, shape: ModelShape) -> Promise:  # noqa: ARG001 - one signature for all methods
    """All tensors keep their shapes; their values are learnt."""
    return method.unchanged(shape)


def loss(student: Any, teacher: Any, labels: Any, *, temperature: float, text_weight: float) -> Any:
    """Return the mean loss per token, in nats: T² KL(teacher ‖ student) at temperature T, mixed with cross-entropy by `text_weight`.

    `student` and `teacher` are logits of shape (tokens, vocabulary), `labels` the next tokens. Hinton et al. 2015, section 2.
    """
    import torch.nn.functional as F  # noqa: N812 - the name that everybody uses

    soft = training.divergence(student, teacher, temperature=temperature)
    return soft if text_weight == 0 else (1 - text_weight) * soft + text_weight * F.cross_entropy(student, labels)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Train with AdamW and a cosine rate over a budget of tokens, in float32; the teacher is the base model, frozen."""
    import torch

    assert step.calibration is not None  # check() refuses a step without one
    options = _options(step)
    torch.manual_seed(step.calibration.seed)
    student, teacher = dense.load(source, dtype="float32").train(), dense.load(context.base_folder, dtype="float32")
    windows = context.windows(step)

    def on(batch: Any) -> Any:
        given, wanted = training.logits(student, batch), training.targets(teacher, batch)
        return loss(given, wanted, batch[:, 1:].flatten(), temperature=options.temperature, text_weight=options.text_weight)

    training.train(
        student.parameters(),
        training.batches(windows, options.budget.batch, step.calibration.seed),
        on,
        steps=options.budget.steps(windows),
        learning_rate=options.budget.learning_rate,
        masks=training.zero_masks(student, shape_of(source)),
    )
    student.save_pretrained(target)
    dense.settle(target, source)
    return Outcome(notes=(method.SAME_MACHINE,))
