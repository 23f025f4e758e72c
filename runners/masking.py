"""Pruning while training: what methods that learn with part of the weights at zero have in common.

A mask holds by weight which of its entries live (booleans of the weight's shape). Embeddings, norms, biases and the head have none: they
are trained and never pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from runners import dense, masks, method, training
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext

SCHEMES = ("unstructured",)
NEEDS = ("transformers", "torch")
DEFAULTS: dict[str, Scalar] = {"sparsity": 0.5, "objective": "teacher", "tokens": 65_536, "batch": 1, "learning_rate": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all of these methods are told; `rest` holds what only one of them knows."""

    sparsity: float
    objective: str
    budget: training.Budget
    rest: Mapping[str, Scalar]


def options(step: Step, **rest: Scalar) -> Options:
    """Return the step's options; raise `UsageError` where one is unknown or senseless. `rest` are a method's own, with their defaults."""
    values = method.options(step, **{**DEFAULTS, **rest})
    sparsity, objective = float(values["sparsity"]), str(values["objective"])
    method.require(0 < sparsity < 1, step, "sparsity", sparsity, "between 0 and 1")
    method.require(objective in training.OBJECTIVES, step, "objective", objective, " or ".join(training.OBJECTIVES))
    return Options(sparsity=sparsity, objective=objective, budget=training.budget(step, values), rest={name: values[name] for name in rest})


def alive(score: Any, share: float) -> Any:
    """Return a mask without the `share` of least scores, exactly round(share × entries) of them; of equal scores the earlier go first."""
    return ~masks.least(score, sparsity=share, scheme="unstructured")


def cubic(number: int, steps: int, *, share: float, ramp: float) -> float:
    """Return the share of zeros due after a step, counted from 0: fast at first, `share` from the `ramp`-th part of the steps on.

    share × (1 - (1 - t)³), t from 0 to 1 over the ramp; Zhu and Gupta 2017, equation 1, from dense weights on.
    """
    progress = min(1.0, (number + 1) / max(1, int(steps * ramp)))
    return float(share * (1 - (1 - progress) ** 3))


class Learner:
    """A model in float32 with its linears' weights, their masks, its loss and its order of windows.

    Dropout is off, so that what is pruned is judged, and learns, as it will run.
    """

    def __init__(self, step: Step, asked: Options, source: Path, context: PressContext) -> None:
        """Load the model, and the base as its teacher; exact zeros that the weights come with are masked from the start."""
        import torch

        assert step.calibration is not None  # check() refuses a step without one
        self._source = source
        self._seed = step.calibration.seed
        self._asked = asked
        torch.manual_seed(self._seed)
        shape = shape_of(source)
        self.model = dense.load(source, dtype="float32")
        training.recompute(self.model)
        self.weights = [self.model.get_submodule(linear.name).weight for linear in shape.linears]
        self.masks: dict[Any, Any] = {weight: weight.detach() != 0 for weight in self.weights}
        self._windows = context.windows(step)
        teacher = dense.load(context.base_folder, dtype="float32") if asked.objective == "teacher" else None
        self._loss = training.objective(asked.objective, self.model, teacher)

    def steps(self, share: float = 1.0) -> int:
        """Return how many steps a share of the budget gives; at least one."""
        return max(1, int(self._asked.budget.steps(self._windows) * share))

    def train(self, steps: int, *, round_number: int = 0, **hooks: Any) -> None:
        """Train all weights that live; another round sees the windows in another order. `hooks` are those of `training.train`."""
        budget = self._asked.budget
        training.train(
            self.model.parameters(),
            training.batches(self._windows, budget.batch, self._seed + round_number),
            self._loss,
            steps=steps,
            learning_rate=budget.learning_rate,
            masks=self.masks,
            additive=True,
            **hooks,
        )

    def mask(self, weight: Any, score: Any, share: float) -> None:
        """Let the least scores of a weight go, for good: a score of what went before must be among the least."""
        import torch

        self.masks[weight] &= alive(score, share)
        with torch.no_grad():
            weight.mul_(self.masks[weight])

    def save(self, target: Path) -> Outcome:
        """Write the checkpoint in the dtype of the source."""
        training.save(self.model, self._source, target)
        return Outcome(notes=(method.SAME_MACHINE,))
