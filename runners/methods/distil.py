"""Knowledge distillation: a pruned student learns to predict what its base predicts, token by token.

Pressed again on the same machine with as many threads, the bytes are the same; other hardware sums in another order, and the small
differences grow from step to step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.domain import Step
from runners import dense, method
from runners.checkpoint import ModelShape
from runners.method import PressContext, Promise

FAMILY = "distillation"
SUMMARY = "Trains the student on its base's own distributions: forward KL at a temperature, plus cross-entropy on the text."
PAPER = "https://arxiv.org/abs/1503.02531"
SCHEMES = ("logits",)
FORMAT = "dense"
NEEDS = ("transformers", "torch")
WARM_UP = 0.05


@dataclass(frozen=True, kw_only=True)
class _Options:
    tokens: int
    batch: int
    learning_rate: float
    temperature: float
    text_weight: float


def _options(step: Step) -> _Options:
    values = method.options(step, tokens=65_536, batch=8, learning_rate=1e-3, temperature=1.0, text_weight=0.0)
    found = _Options(
        tokens=int(values["tokens"]),
        batch=int(values["batch"]),
        learning_rate=float(values["learning_rate"]),
        temperature=float(values["temperature"]),
        text_weight=float(values["text_weight"]),
    )
    method.require(found.batch > 0, step, "batch", found.batch, "at least 1")
    method.require(found.tokens > 0, step, "tokens", found.tokens, "at least 1")
    method.require(found.learning_rate > 0, step, "learning_rate", found.learning_rate, "above 0")
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

    wanted = F.log_softmax(teacher / temperature, dim=-1)
    given = F.log_softmax(student / temperature, dim=-1)
    soft = F.kl_div(given, wanted, log_target=True, reduction="batchmean") * temperature**2
    return soft if text_weight == 0 else (1 - text_weight) * soft + text_weight * F.cross_entropy(student, labels)


def _batches(windows: list[list[int]], batch: int, seed: int) -> Iterator[Any]:
    import torch

    draw = random.Random(seed)  # noqa: S311 - a seeded order, no secret
    size = min(batch, len(windows))
    while True:
        order = draw.sample(range(len(windows)), len(windows))
        for start in range(0, len(order) - size + 1, size):
            yield torch.tensor([windows[place] for place in order[start : start + size]])


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(steps * WARM_UP))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def apply(step: Step, source: Path, target: Path, context: PressContext) -> None:
    """Train with AdamW and a cosine rate over a budget of tokens, in float32; the teacher is the base model, frozen."""
    import torch

    from runners import texts

    if step.calibration is None:
        raise AssertionError("check() refuses a step without calibration")
    options = _options(step)
    torch.manual_seed(step.calibration.seed)
    student, teacher = dense.load(source, dtype="float32").train(), dense.load(context.base_folder, dtype="float32")
    windows = texts.windows(step.calibration, dense.tokenizer(context.base_folder))
    per_step = min(options.batch, len(windows)) * step.calibration.sequence_length
    steps = max(1, options.tokens // per_step)
    optimizer = torch.optim.AdamW(student.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    stream = _batches(windows, options.batch, step.calibration.seed)
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _rate(number, steps)
        batch = next(stream)
        with torch.inference_mode():
            wanted = teacher(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        given = student(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
        value = loss(given, wanted.clone(), batch[:, 1:].flatten(), temperature=options.temperature, text_weight=options.text_weight)
        value.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    student.save_pretrained(target)
    dense.settle(target, source)
