"""Training: one small loop for every method that learns, with its order of windows, rate, masks and losses.

All of it is seeded: on the same machine with as many threads the bytes are the same; other hardware sums in another order, and the small
differences grow from step to step.

Memory, where all weights are trained in float32: 16 bytes a weight (itself, its gradient, AdamW's two moments), 4 more for a teacher, and
for each token of a batch a few times its logits (4 bytes for each entry of the vocabulary) besides the activations of all layers: about
ten times a bf16 checkpoint. A method that trains adapters alone holds the weights once, and the rest for the adapters only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from hub.errors import Unstable
from runners import economy, method, streaming
from runners.architectures import architecture
from runners.checkpoint import ModelShape
from runners.formats import ZERO_TOLERANCE

WARM_UP = 0.05
CLIP = 1.0

Loss = Callable[[Any], Any]
"""From a batch of token ids (windows, tokens) to a scalar tensor with a gradient."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long and how fast to train: tokens seen in all, windows a step, AdamW's highest learning rate."""

    tokens: int
    batch: int
    learning_rate: float

    def steps(self, windows: list[list[int]]) -> int:
        """Return how many whole steps the budget gives on these windows; at least one."""
        return max(1, self.tokens // (min(self.batch, len(windows)) * len(windows[0])))


def budget(step: Step, values: Mapping[str, Scalar]) -> Budget:
    """Return the budget among a step's values (`tokens`, `batch`, `learning_rate`); raise `UsageError` where one is senseless."""
    found = Budget(tokens=int(values["tokens"]), batch=int(values["batch"]), learning_rate=float(values["learning_rate"]))
    method.require(found.batch > 0, step, "batch", found.batch, "at least 1")
    method.require(found.tokens > 0, step, "tokens", found.tokens, "at least 1")
    method.require(found.learning_rate > 0, step, "learning_rate", found.learning_rate, "above 0")
    return found


def batches(windows: list[list[int]], batch: int, seed: int) -> Iterator[Any]:
    """Yield batches of token ids (batch, tokens) for ever: each round shows the windows once, in an order that the seed fixes."""
    import torch

    draw = random.Random(seed)  # noqa: S311 - a seeded order, no secret
    size = min(batch, len(windows))
    while True:
        order = draw.sample(range(len(windows)), len(windows))
        for start in range(0, len(order) - size + 1, size):
            yield torch.tensor([windows[place] for place in order[start : start + size]])


def rate(number: int, steps: int) -> float:
    """Return the share of the highest learning rate at a step, counted from 0: a linear warm-up, then half a cosine down to 0."""
    warm = max(1, round(steps * WARM_UP))
    return (number + 1) / warm if number < warm else 0.5 * (1 + math.cos(math.pi * (number - warm) / max(1, steps - warm)))


def train(
    parameters: Iterable[Any],
    stream: Iterator[Any],
    loss: Loss,
    *,
    steps: int,
    learning_rate: float,
    masks: Mapping[Any, Any] | None = None,
    additive: bool = False,
    before: Callable[[int], None] | None = None,
    after: Callable[[int], None] | None = None,
) -> float:
    """Train `parameters` for so many steps with AdamW, gradients clipped at norm 1, and return the last step's loss.

    `masks` holds by parameter which of its weights live (booleans of its shape): the others stay exactly what they are, zeros stay zeros.
    It is read anew at every step. `before` is called with the step's number when its gradients are known, `after` when the weights have
    changed. `additive` says that a batch's loss is the mean of its windows': a job that is to be most sparing shows them one by one.
    Raises `Unstable` where the loss or the gradients are no longer finite numbers.
    """
    import torch

    trained = [parameter for parameter in parameters if parameter.requires_grad]
    masks = {} if masks is None else masks
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    last = math.nan
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * rate(number, steps)
        batch = next(stream)
        last = 0.0
        parts = batch.split(economy.together(len(batch))) if additive else (batch,)  # all of one length
        for part in parts:
            value = loss(part) / len(parts)
            last += float(value.detach())
            if not math.isfinite(last):
                raise _diverged("the loss", last, number, steps)
            value.backward()
        if before:
            before(number)
        for parameter, alive in masks.items():
            if parameter.grad is not None:
                parameter.grad.mul_(alive)
        norm = float(torch.nn.utils.clip_grad_norm_(trained, CLIP))
        if not math.isfinite(norm):
            raise _diverged("the gradients' norm", norm, number, steps)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, alive in masks.items():
                parameter.mul_(alive)  # AdamW's moments remember gradients from before a weight was masked
        if after:
            after(number)
    return last


def _diverged(what: str, value: float, number: int, steps: int) -> Unstable:
    return Unstable(
        f"Training diverged: at step {number + 1} of {steps} {what} is {value}.",
        hint="Use a recipe with a lower learning_rate, or check that the model's own logits are finite.",
    )


def recompute(model: Any) -> None:
    """Have the decoder layers of a frugal job's model compute their activations once more for the gradients, rather than hold them all.

    The numbers are the same; about a third more time (Chen et al. 2016, 1604.06174).
    """
    from torch.utils.checkpoint import checkpoint

    if not economy.frugal():
        return
    for layer in model.get_submodule(architecture(type(model).__name__).layers):
        layer.forward = _again(layer.forward, checkpoint)


def _again(forward: Callable[..., Any], checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    import torch

    def sparing(*inputs: Any, **named: Any) -> Any:
        return checkpoint(forward, *inputs, use_reentrant=False, **named) if torch.is_grad_enabled() else forward(*inputs, **named)

    return sparing


def save(model: Any, source: Path, target: Path) -> None:
    """Write the checkpoint `source` with a trained model's weights, each in the dtype in which it was stored; all else stays."""
    weights = model.state_dict()
    streaming.rewrite(source, target, lambda name, old: {name: weights[name].to(old.dtype) if name in weights else old})


def zero_mask(weight: Any) -> Any | None:
    """Return which entries of a pruned weight are not zero; None for a dense one, where the odd exact zero is chance."""
    mask = weight.detach() != 0
    return None if mask.float().mean() >= 1 - ZERO_TOLERANCE else mask


def zero_masks(model: Any, shape: ModelShape) -> dict[Any, Any]:
    """Return the masks of the pruned linears' weights, by parameter: a pruned checkpoint stays pruned while it learns."""
    weights = [model.get_submodule(linear.name).weight for linear in shape.linears]
    return {weight: mask for weight in weights if (mask := zero_mask(weight)) is not None}


def logits(model: Any, batch: Any) -> Any:
    """Return a model's logits for all tokens but the last of each window, as (tokens, vocabulary)."""
    return model(batch, use_cache=False).logits[:, :-1].flatten(0, 1)


def targets(teacher: Any, batch: Any) -> Any:
    """Return a frozen model's logits, as `logits` does, as plain tensors that a loss may use."""
    import torch

    with torch.inference_mode():
        found = logits(teacher, batch)
    return found.clone()


def divergence(student: Any, teacher: Any, *, temperature: float = 1.0) -> Any:
    """Return T² KL(teacher ‖ student) at temperature T, mean per token in nats, of logits (tokens, vocabulary). Hinton et al. 2015."""
    import torch.nn.functional as F  # noqa: N812 - the name that everybody uses

    wanted = F.log_softmax(teacher / temperature, dim=-1)
    given = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(given, wanted, log_target=True, reduction="batchmean") * temperature**2


def cross_entropy(student: Any, batch: Any) -> Any:
    """Return the mean cross-entropy per token, in nats, of logits as `logits` gives them with the text itself."""
    import torch.nn.functional as F  # noqa: N812 - the name that everybody uses

    return F.cross_entropy(student, batch[:, 1:].flatten())


OBJECTIVES = ("teacher", "text")


def objective(name: str, model: Any, teacher: Any | None) -> Loss:
    """Return a loss by name: `teacher`, the divergence from the teacher's distributions, or `text`, the cross-entropy on the text."""
    if name == "text":
        return lambda batch: cross_entropy(logits(model, batch), batch)
    if teacher is None:
        raise AssertionError("a divergence needs a teacher")
    return lambda batch: divergence(logits(model, batch), targets(teacher, batch))
