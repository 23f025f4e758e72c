"""What a compression method is made of: the words its file shares with the press, and the checks that all methods need."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from hub.domain import Calibration, Scalar, Step
from hub.errors import UnfitModel, UsageError
from runners import texts
from runners.architectures import architecture
from runners.checkpoint import ModelShape
from runners.headers import Tensor

Works = Literal["streaming", "layerwise", "whole", "gradients", "training"]
Resumes = Literal["layers", "no"]
INSTALL = "pip install 'modelpress[press]'"


@dataclass(frozen=True, kw_only=True)
class MethodInfo:
    """A line of the listing: what a method is, and whether it can be used here, why not, and what installs it.

    `resumes`: a killed press goes on from its last finished layer; `spares`: it can take less memory for more time (see `Method`).
    """

    name: str
    family: str
    summary: str
    paper: str
    schemes: tuple[str, ...]
    available: bool
    reason: str
    install: str
    resumes: bool = False
    spares: bool = False


class PressContext:
    """What every step of a press may look at: the base model's folder, its tokenizer, calibration windows, and two folders.

    `base_folder` is the base model's checkpoint (tokenizer, teacher), `scratch` a folder for this press alone, `cache` one that outlives
    it, for what is dear to find and the same for every recipe.
    """

    def __init__(self, *, base_folder: Path, scratch: Path, cache: Path) -> None:
        """Keep the folders; nothing is read yet."""
        self.base_folder = base_folder
        self.scratch = scratch
        self.cache = cache
        self._windows: dict[Calibration, list[list[int]]] = {}

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer; raises `BadCheckpoint` where there is none that transformers reads."""
        from runners import dense

        return dense.tokenizer(self.base_folder)

    def windows(self, step: Step) -> list[list[int]]:
        """Return the step's calibration windows, `samples` lists of `sequence_length` token ids."""
        if step.calibration is None:
            raise UsageError(f"{step.method} needs a calibration text; the step has none.", hint="Add [steps.calibration] to the recipe.")
        if step.calibration not in self._windows:
            self._windows[step.calibration] = texts.windows(step.calibration, self.tokenizer)
        return self._windows[step.calibration]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished step tells: decisions and findings by linear layer, and sentences on the whole (see `hub.domain.StepRecord`)."""

    layers: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


SAME_MACHINE = "Pressed again on the same machine with as many threads, the bytes are the same; other hardware sums in another order."


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a step will leave on disk.

    `tensors` is the whole checkpoint by name; `changed` maps each linear layer that is to be changed to the tensors that show it;
    `shape` is what a next step finds, the zeros promised in its weights included; `elastic` names tensors whose length the library
    varies by a few bytes.
    """

    shape: ModelShape
    tensors: Mapping[str, Tensor]
    changed: Mapping[str, tuple[str, ...]]
    elastic: frozenset[str] = frozenset()

    @property
    def bytes(self) -> int:
        """Expected size of all tensors: Σ bits / 8, scales, zero points, indices and the dense remainder included."""
        return sum(tensor.bytes for tensor in self.tensors.values())


class Method(Protocol):
    """A method's module: constants for the listing, a check and a promise from shapes alone, and the work itself.

    `FORMAT` is how what it leaves lies on disk: `dense`, which a next step can go on with, or a packed one, which ends a recipe.
    `WORKS` says what it holds in memory: a few tensors (`streaming`), a decoder layer (`layerwise`), the model (`whole`), the model with
    the gradients of one window (`gradients`), or the model with gradients, an optimizer's state and a teacher (`training`). One that
    holds more has `COPIES`: of the whole model in float32, the teacher left aside.
    `RESUMES` says from where a killed press goes on: from the last finished decoder layer (`layers`: own walk, or that part of the work
    that walks), or from the beginning of its step (`no`: a library does the whole, or it takes seconds). `SPARES` says whether a job that
    is to be sparing (`runners.economy`) takes less memory.

    A method that chooses by itself what each layer becomes has a fourth function, `delivered(step, shape, layers) -> Promise`: the exact
    promise, given what `Outcome.layers` said; it raises `BadCheckpoint` where that breaks the recipe.
    """

    FAMILY: str
    SUMMARY: str
    PAPER: str
    SCHEMES: tuple[str, ...]
    FORMAT: str
    NEEDS: tuple[str, ...]
    WORKS: Works
    RESUMES: Resumes
    SPARES: bool

    def check(self, step: Step, shape: ModelShape) -> None:
        """Raise `UnfitModel` or `UsageError` where the step cannot be applied."""

    def promise(self, step: Step, shape: ModelShape) -> Promise:
        """Say what the step will leave on disk."""

    def apply(self, step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
        """Read the dense checkpoint in `source`, write the changed one into the empty folder `target`, and tell what was done."""


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
    return Promise(shape=replace(shape, zeros={}), tensors=tensors, changed={name: tuple(new) for name, new in tensors_of.items()})


def reshaped(shape: ModelShape, tensors: Mapping[str, Tensor], layers: int) -> ModelShape:
    """Return the shape with other tensors and number of layers."""
    return replace(shape, tensors=tensors, layers=layers)


def unchanged(shape: ModelShape, *, zeros: float | Mapping[str, float] | None = None) -> Promise:
    """Return the promise of a step that keeps all tensors' shapes and changes the values of every linear layer.

    `zeros` is the share of zeros promised in each weight: one for all, or by layer; None keeps what was promised before.
    """
    changed = {linear.name: (f"{linear.name}.weight",) for linear in shape.linears}
    by_layer = shape.zeros if zeros is None else dict.fromkeys(changed, zeros) if isinstance(zeros, float) else zeros
    return Promise(shape=replace(shape, zeros=by_layer), tensors=shape.tensors, changed=changed)
