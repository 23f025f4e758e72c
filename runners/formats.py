"""How a quantized linear layer lies on disk, format by format, and whether a checkpoint keeps what its recipe promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from math import ceil
from pathlib import Path
from typing import Any, cast

from hub.domain import Recipe, Step, StepRecord
from hub.packing import decoder_layer
from runners.checkpoint import Linear, ModelShape
from runners.headers import BLOCKS, Stored, Tensor, stored_tensors
from runners.method import Promise

ZERO_TOLERANCE = 0.01
"""A weight that was exactly zero before pruning, or a tie at the threshold, moves the share of zeros by less than this."""


def gptq(linear: Linear, *, bits: int, group_size: int) -> dict[str, Tensor]:
    """AutoGPTQ's layout, as gptqmodel writes it: words of 32 bits along the inputs, scales in half precision."""
    groups = ceil(linear.in_features / group_size) if group_size > 0 else 1
    return {
        f"{linear.name}.qweight": Tensor(dtype="I32", shape=(linear.in_features * bits // 32, linear.out_features)),
        f"{linear.name}.qzeros": Tensor(dtype="I32", shape=(groups, linear.out_features * bits // 32)),
        f"{linear.name}.scales": Tensor(dtype="F16", shape=(groups, linear.out_features)),
        f"{linear.name}.g_idx": Tensor(dtype="I32", shape=(linear.in_features,)),
    }


def bitsandbytes_4bit(linear: Linear, *, quant_type: str, double: bool) -> dict[str, Tensor]:
    """bitsandbytes' 4-bit layout: two weights a byte, a maximum for every 64 weights, itself in 8 bits where doubly quantized."""
    weights = linear.out_features * linear.in_features
    blocks = ceil(weights / 64)
    stem = f"{linear.name}.weight"
    tensors = {
        stem: Tensor(dtype="U8", shape=(ceil(weights / 2), 1)),
        f"{stem}.absmax": Tensor(dtype="U8" if double else "F32", shape=(blocks,)),
        f"{stem}.quant_map": Tensor(dtype="F32", shape=(16,)),
        f"{stem}.quant_state.bitsandbytes__{quant_type}": Tensor(dtype="U8", shape=(170 if double else 80,)),
    }
    if double:
        tensors[f"{stem}.nested_absmax"] = Tensor(dtype="F32", shape=(ceil(blocks / 256),))
        tensors[f"{stem}.nested_quant_map"] = Tensor(dtype="F32", shape=(256,))
    return tensors


@dataclass(frozen=True, kw_only=True)
class Packing:
    """What was promised of a checkpoint's linear layers and what its bytes hold; `extra` names tensors that nobody promised.

    `layers`: promised and found by decoder layer.
    """

    expected: int
    found: int
    layers: Mapping[str, tuple[int, int]]
    not_packed: tuple[str, ...]
    bytes_expected: int
    bytes_found: int
    extra: tuple[str, ...]


def promise_of(recipe: Recipe, base_shape: ModelShape, records: tuple[StepRecord, ...] = ()) -> Promise:
    """Return what the whole recipe promises: its steps' promises in order, each from the shape that the one before leaves.

    With the records of a finished press the promise is exact: bits, ranks and zeros that a method chose by layer, and layers that stayed
    in the base's precision. Raises `BadCheckpoint` where what was chosen breaks the recipe.
    """
    promise = Promise(shape=base_shape, tensors=base_shape.tensors, changed={})
    for step, record in zip_longest(recipe.steps, records[: len(recipe.steps)]):
        promise = _with_kept(_promise(step, promise.shape, record), promise.shape, record.kept if record else {})
    return promise


def _promise(step: Step, shape: ModelShape, record: StepRecord | None) -> Promise:
    from runners.methods import get

    method = get(step.method)
    delivered = getattr(method, "delivered", None)
    if record is None or delivered is None:
        return method.promise(step, shape)
    return cast(Promise, delivered(step, shape, record.layers))


def _with_kept(promise: Promise, before: ModelShape, kept: Mapping[str, str]) -> Promise:
    """Return the promise in which the layers that stayed in the base's precision lie as they did before the step."""
    kept = {name: reason for name, reason in kept.items() if name in promise.changed}
    if not kept:
        return promise
    weights = {f"{name}.weight": before.tensors[f"{name}.weight"] for name in kept}
    gone = {tensor for name in kept for tensor in promise.changed[name]}
    tensors = {name: tensor for name, tensor in promise.tensors.items() if name not in gone} | weights
    zeros = {name: before.zeros.get(name, 0.0) if name in kept else share for name, share in promise.shape.zeros.items()}
    changed = {name: found for name, found in promise.changed.items() if name not in kept}
    return replace(promise, tensors=tensors, changed=changed, shape=replace(promise.shape, zeros=zeros))


def packed(folder: Path, recipe: Recipe, base_shape: ModelShape, records: tuple[StepRecord, ...] = ()) -> Packing:
    """Compare a checkpoint's bytes with what its recipe promises on this base; `records` are those of its manifest."""
    promise = promise_of(recipe, base_shape, records)
    stored = stored_tensors(folder)
    not_packed = tuple(name for name in promise.changed if not _kept(name, promise, stored))
    promised, missing = (Counter(map(decoder_layer, names)) for names in (promise.changed, not_packed))
    return Packing(
        expected=len(promise.changed),
        found=len(promise.changed) - len(not_packed),
        layers={layer: (count, count - missing[layer]) for layer, count in promised.items()},
        not_packed=not_packed,
        bytes_expected=promise.bytes,
        bytes_found=sum(entry.tensor.bytes for entry in stored.values()),
        extra=tuple(name for name in stored if name not in promise.tensors),
    )


def _kept(linear: str, promise: Promise, stored: Mapping[str, Stored]) -> bool:
    for name in promise.changed[linear]:
        found = stored.get(name)
        wanted = promise.tensors[name]
        if found is None or found.tensor.dtype != wanted.dtype:
            return False
        if found.tensor.shape != wanted.shape and name not in promise.elastic:
            return False
    weight = f"{linear}.weight"
    if weight in stored and weight not in promise.changed[linear]:
        return False
    zeros = promise.shape.zeros.get(linear, 0.0)
    return not zeros or zero_share(stored[weight]) >= zeros - ZERO_TOLERANCE


# Bit patterns by dtype: (unsigned numpy type, mask of all but the sign, mask of the exponent).
_FLOATS = {
    "F64": ("<u8", 0x7FFF_FFFF_FFFF_FFFF, 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7FFF_FFFF, 0x7F80_0000),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F8_E5M2": ("u1", 0x7F, 0x7C),
    "F8_E4M3": ("u1", 0x7F, 0x7F),
}
_POWERS = {"F8_E8M0": ("u1", 0xFF)}  # of two, without sign or zero; the last one stands for NaN
# Where in a block of llama.cpp's lie the scales (and minima) in half precision, in bytes; what is not named here holds none that is told by
# its place (IQ1_M spreads it over the others, MXFP4's has no NaN). The layouts are those of ggml-common.h.
_HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,),
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,),
    "IQ1_S": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,),
    "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip


_CHUNK = 2**24  # words looked at together, so that a look at a large tensor takes no memory of its size


def _chunks(stored: Stored, kind: str, width: int = 1) -> Iterator[Any]:
    """Yield a tensor's words, `width` of them (a block) in a row where that is more than 1."""
    import numpy as np

    dtype: Any = np.dtype(kind)
    rows = (stored.end - stored.start) // (dtype.itemsize * width)
    words = np.memmap(stored.path, dtype=dtype, mode="r", offset=stored.start, shape=(rows, width) if width > 1 else (rows,))
    step = max(1, _CHUNK // width)
    for start in range(0, rows, step):
        yield words[start : start + step]


def zero_share(stored: Stored) -> float:
    """Return the share of exact zeros (of either sign) in a floating-point tensor."""
    import numpy as np

    if stored.tensor.dtype not in _FLOATS or not stored.tensor.numel:
        return 0.0
    kind, magnitude, _ = _FLOATS[stored.tensor.dtype]
    return 1.0 - sum(int(np.count_nonzero(words & magnitude)) for words in _chunks(stored, kind)) / stored.tensor.numel


def can_be_non_finite(dtype: str) -> bool:
    """Whether a tensor's numbers, or the scales of its blocks, can be NaN or infinite, and are looked at by `non_finite`."""
    return dtype in _FLOATS or dtype in _POWERS or dtype in _HALVES


def non_finite(folder: Path) -> tuple[str, ...]:
    """Return the names of the tensors that hold an infinity or a NaN, in their numbers or in the scales of llama.cpp's blocks."""
    return tuple(name for name, stored in stored_tensors(folder).items() if stored.tensor.numel and _holds_non_finite(stored))


def _holds_non_finite(stored: Stored) -> bool:
    dtype = stored.tensor.dtype
    if dtype in _HALVES:
        kind, _, exponent = _FLOATS["F16"]
        blocks = _chunks(stored, "u1", BLOCKS[dtype][1])
        return any(
            ((rows[:, place : place + 2].copy().view(kind) & exponent) == exponent).any() for rows in blocks for place in _HALVES[dtype]
        )
    if not can_be_non_finite(dtype):
        return False
    kind, exponent = _POWERS[dtype] if dtype in _POWERS else (_FLOATS[dtype][0], _FLOATS[dtype][2])
    return any(((words & exponent) == exponent).any() for words in _chunks(stored, kind))
