"""What a compression method is made of: the words its file shares with the press, and the checks that all methods need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from hub.domain import Scalar, Step
from hub.errors import UnfitModel, UsageError
from runners.architectures import architecture
from runners.checkpoint import ModelShape
from runners.headers import Tensor

INSTALL = "pip install 'modelpress[press]'"


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """A line of the listing: what a method is, and whether it can be used here, why not, and what installs it."""

    name: str
    family: str
    summary: str
    paper: str
    schemes: tuple[str, ...]
    available: bool
    reason: str
    install: str


@dataclass(frozen=True, kw_only=True)
class PressContext:
    """What every step of a press may look at: the base model's folder (tokenizer, teacher) and a folder for passing things."""

    base_folder: Path
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a step will leave on disk.

    `tensors` is the whole checkpoint by name; `changed` maps each linear layer that is to be changed to the tensors that show it;
    `zeros` is the share of zeros promised in each changed weight; `shape` is what a next step finds; `elastic` names tensors whose
    length the library varies by a few bytes.
    """

    shape: ModelShape
    tensors: Mapping[str, Tensor]
    changed: Mapping[str, tuple[str, ...]]
    zeros: float = 0.0
    elastic: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        """Expected size of all tensors: Σ bits / 8, scales, zero points, indices and the dense remainder included."""
        return sum(tensor.bytes for tensor in self.tensors.values())


class Method(Protocol):
    """A method's module: constants for the listing, a check and a promise from shapes alone, and the work itself.

    `FORMAT` is how what it leaves lies on disk: `dense`, which a next step can go on with, or a packed one, which ends a recipe.
    """

    FAMILY: str
    SUMMARY: str
    PAPER: str
    SCHEMES: tuple[str, ...]
    FORMAT: str
    NEEDS: tuple[str, ...]

    def check(self, step: Step, shape: ModelShape) -> None:
        """Raise `UnfitModel` or `UsageError` where the step cannot be applied."""

    def promise(self, step: Step, shape: ModelShape) -> Promise:
        """Say what the step will leave on disk."""

    def apply(self, step: Step, source: Path, target: Path, context: PressContext) -> None:
        """Read the dense checkpoint in `source`, write the changed one into the empty folder `target`."""


def options(step: Step, **defaults: Scalar) -> dict[str, Scalar]:
    """Return the step's parameters over the defaults; raise `UsageError` for an unknown name or a value of another type."""
    for name, value in step.params.items():
        if name not in defaults:
            near = get_close_matches(name, defaults, n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise UsageError(f"{step.method} has no parameter {name!r}.", hint=f"{hint}It has: {', '.join(sorted(defaults)) or 'none'}.")
        wanted = type(defaults[name])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise UsageError(f"{step.method}: {name} must be a {wanted.__name__}; got {value!r}.", hint="Correct the recipe.")
    return {**defaults, **step.params}


def require(holds: bool, step: Step, name: str, value: Scalar, expected: str) -> None:
    """Raise `UsageError` where a parameter's value is outside what is expected."""
    if not holds:
        raise UsageError(f"{step.method}: {name} must be {expected}; got {value!r}.", hint="Correct the recipe.")


def weight_bits(step: Step) -> int:
    """Return the weights' bits of a scheme such as W4A16."""
    match = re.fullmatch(r"W(\d+)A\d+", step.scheme)
    if match is None:
        raise UsageError(f"{step.method}: the scheme {step.scheme!r} is not of the form W4A16.", hint="Correct the recipe.")
    return int(match[1])


def check_common(step: Step, shape: ModelShape, schemes: tuple[str, ...], *, calibrated: bool = False) -> None:
    """Check what holds for all methods: the architecture is known, the scheme is offered, the calibration fits the context."""
    architecture(shape.architecture)
    if step.scheme not in schemes:
        raise UsageError(f"{step.method} does not offer the scheme {step.scheme!r}.", hint=f"It offers: {', '.join(schemes)}.")
    if calibrated and step.calibration is None:
        raise UsageError(f"{step.method} needs a calibration text; the step has none.", hint="Add [steps.calibration] to the recipe.")
    length = step.calibration.sequence_length if step.calibration else 0
    if shape.context and length > shape.context:
        raise UnfitModel(
            f"{step.method} is to be shown windows of {length} tokens; the model's context is {shape.context}.",
            hint="Use a recipe with a shorter calibration.sequence_length.",
        )


def check_divisible(step: Step, shape: ModelShape, group_size: int) -> None:
    """Raise `UnfitModel` naming the first linear layer whose inputs are not divisible by the group size, and a size that fits all."""
    bad = next((linear for linear in shape.linears if linear.in_features % group_size), None)
    if bad is None:
        return
    fitting = [size for size in (128, 64, 32, 16) if all(linear.in_features % size == 0 for linear in shape.linears)]
    advice = f"Use a recipe with a group size of {' or '.join(map(str, fitting))}." if fitting else "Use a recipe without groups."
    raise UnfitModel(
        f"{step.method} needs widths divisible by the group size of {group_size}; {bad.name} has {bad.in_features} inputs.", hint=advice
    )


def check_plain_linear(step: Step, shape: ModelShape, library: str) -> None:
    """Raise `UnfitModel` for GPT-2's Conv1D, which libraries that quantize nn.Linear alone would silently leave dense."""
    if shape.conv1d:
        raise UnfitModel(
            f"{step.method} quantizes nn.Linear layers through {library}; {shape.architecture} has Conv1D layers instead.",
            hint="Use a bitsandbytes recipe for this model.",
        )


def replaced(shape: ModelShape, tensors_of: Mapping[str, Mapping[str, Tensor]]) -> Promise:
    """Return the promise in which each named linear's weight gives way to the given tensors, all else staying as it is."""
    gone = {f"{name}.weight" for name in tensors_of}
    tensors = {name: tensor for name, tensor in shape.tensors.items() if name not in gone}
    for new in tensors_of.values():
        tensors.update(new)
    return Promise(shape=shape, tensors=tensors, changed={name: tuple(new) for name, new in tensors_of.items()})


def reshaped(shape: ModelShape, tensors: Mapping[str, Tensor], layers: int) -> ModelShape:
    """Return the shape with other tensors and number of layers."""
    return replace(shape, tensors=tensors, layers=layers)


def unchanged(shape: ModelShape, *, zeros: float = 0.0) -> Promise:
    """Return the promise of a step that keeps all tensors' shapes and changes the values of every linear layer."""
    changed = {linear.name: (f"{linear.name}.weight",) for linear in shape.linears}
    return Promise(shape=shape, tensors=shape.tensors, changed=changed, zeros=zeros)
