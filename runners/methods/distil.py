"""Knowledge distillation: a pruned or new student learns from its base, which is the teacher.

Schemes: `logits`, the teacher's whole distributions; `hard`, its top answer alone; `text`, text that it writes; `features` and `relations`,
the distributions and besides its hidden states, or how its tokens relate; `on_policy`, its distributions on what the student writes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from runners import dense, distillation, lessons, method, training
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise

FAMILY = "distillation"
SUMMARY = "Trains the student on its base's distributions, top answers, texts or hidden states, or on what the student itself writes."
PAPER = "https://arxiv.org/abs/1503.02531"
SCHEMES = ("logits", "hard", "text", "features", "relations", "on_policy")
FORMAT = "dense"
NEEDS = ("transformers", "torch", "safetensors")
WORKS = "training"
RESUMES = "no"
SPARES = True

_SOFT: dict[str, Scalar] = {"temperature": 1.0, "text_weight": 0.0}
_WRITTEN: dict[str, Scalar] = {"piece": 128, "prompt_share": 0.5, "sampling_temperature": 1.0}
_DEFAULTS: dict[str, dict[str, Scalar]] = {
    "logits": {**_SOFT, "teacher": "online", "top_k": 64},
    "hard": {"text_weight": 0.0, "teacher": "online"},
    "text": _WRITTEN,
    "features": {**_SOFT, "match_weight": 1.0, "measure": "mse"},
    "relations": {**_SOFT, "match_weight": 0.1, "relation": "values"},
    "on_policy": {**_WRITTEN, "temperature": 1.0, "own_share": 0.5, "beta": 0.5},
}
_ONE_OF = {"teacher": ("online", "offline"), "measure": distillation.MEASURES, "relation": ("values", "hidden")}


def _options(step: Step) -> dict[str, Any]:
    values = method.options(step, tokens=65_536, batch=8, learning_rate=1e-3, **_DEFAULTS[step.scheme])
    training.budget(step, values)
    for name, value in values.items():
        if name in _ONE_OF:
            method.require(value in _ONE_OF[name], step, name, value, " or ".join(_ONE_OF[name]))
        elif name in ("text_weight", "own_share", "beta"):
            method.require(0 <= float(value) <= 1, step, name, value, "between 0 and 1")
        elif name in ("sampling_temperature", "match_weight"):
            method.require(float(value) >= 0, step, name, value, "at least 0")
        elif name == "prompt_share":
            method.require(0 < float(value) < 1, step, name, value, "above 0 and below 1")
        elif name in ("piece", "top_k", "temperature"):
            least = {"piece": 1, "top_k": 0, "temperature": 0}[name]
            method.require(float(value) > least, step, name, value, f"above {least}")
    return dict(values)


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, a step without a text to learn from, and more top tokens than the vocabulary has."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    options = _options(step)
    if options.get("teacher") == "offline" and "top_k" in options:
        method.require(options["top_k"] <= shape.vocab_size, step, "top_k", options["top_k"], f"at most {shape.vocab_size}, the vocabulary")


def promise(step: Step, shape: ModelShape) -> Promise:  # noqa: ARG001 - one signature for all methods
    """All tensors keep their shapes, and weights their zeros; their values are learnt."""
    return method.unchanged(shape)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Train with AdamW and a cosine rate over a budget of tokens, in float32; the teacher is the base model, frozen.

    Dropout is off: over so few tokens it takes away more than it gives, and student and teacher are compared as they will run.
    Where a lesson has pieces of windows, a step takes so many more of them that it sees as many tokens.
    """
    import torch

    assert step.calibration is not None  # check() refuses a step without one
    options, seed, windows = _options(step), step.calibration.seed, context.windows(step)
    torch.manual_seed(seed)
    student = dense.load(source, dtype="float32")
    training.recompute(student)
    setting = lessons.Setting(
        student=student, base_folder=context.base_folder, cache=context.cache, windows=windows, seed=seed, options=options
    )
    lesson = lessons.BY_SCHEME[step.scheme](setting)
    budget = training.budget(step, options)
    budget = replace(budget, batch=budget.batch * (len(windows[0]) // len(lesson.windows[0])))
    training.train(
        [*student.parameters(), *(parameter for helper in lesson.helpers for parameter in helper.parameters())],
        training.batches(lesson.windows, budget.batch, seed),
        lesson.loss,
        steps=budget.steps(lesson.windows),
        learning_rate=budget.learning_rate,
        masks=training.zero_masks(student, shape_of(source)),
        additive=lesson.additive,
    )
    training.save(student, source, target)
    return Outcome(notes=(method.SAME_MACHINE,))
