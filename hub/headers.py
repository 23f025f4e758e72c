"""The tensors of safetensors files, read and checked from the headers alone: names, dtypes, shapes, places, and whether a file is whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from hub import names
from hub.errors import BadCheckpoint

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "F4": 4, "C64": 64, "I4": 4, "U4": 4,
}  # fmt: skip
BLOCKS = {
    "Q4_0": (32, 18), "Q4_1": (32, 20), "Q5_0": (32, 22), "Q5_1": (32, 24), "Q8_0": (32, 34),
    "Q2_K": (256, 84), "Q3_K": (256, 110), "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210),
    "IQ1_S": (256, 50), "IQ1_M": (256, 56), "IQ2_XXS": (256, 66), "IQ2_XS": (256, 74), "IQ2_S": (256, 82), "IQ3_XXS": (256, 98),
    "IQ3_S": (256, 110), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136), "TQ1_0": (256, 54), "TQ2_0": (256, 66), "MXFP4": (32, 17),
}  # fmt: skip
"""llama.cpp's types: how many weights of a row lie together, and in how many bytes, scales included."""
MAX_HEADER = 100_000_000
MAX_DIMENSIONS, MAX_SIZE = 8, 2**48
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor as its file's header states it; dtype by its name in safetensors (BF16, I32, …) or in llama.cpp (Q4_K)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the data."""
        weights, size = BLOCKS.get(self.dtype) or (8, BITS[self.dtype])
        return -(-self.numel * size // weights)


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor with its place: file and byte range."""

    tensor: Tensor
    path: Path
    start: int
    end: int


def stated(dtype: str, sizes: Sequence[Any]) -> Tensor:
    """Return a tensor as a file states it; raise `ValueError` for sizes that no tensor has.

    Nothing is multiplied before: the product of a million large sizes would take hours.
    """
    if len(sizes) > MAX_DIMENSIONS or not all(type(size) is int and 0 <= size <= MAX_SIZE for size in sizes):
        raise ValueError(f"{names.shown(str(sizes[:MAX_DIMENSIONS]))} are no sizes of a tensor")
    return Tensor(dtype=dtype, shape=tuple(sizes))


def read_header(path: Path) -> dict[str, Stored]:
    """Return the tensors of one safetensors file; raise `BadCheckpoint` where it is truncated or not safetensors."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= min(MAX_HEADER, size - 8):
            raise _broken(path, f"the file of {size:,} bytes does not begin with a safetensors header")
        try:
            header = json.loads(stream.read(length))
            stored = {name: _stored(path, 8 + length, entry) for name, entry in header.items() if name != "__metadata__"}
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise _broken(path, "its safetensors header is not valid") from error
    needed = 8 + length
    for tensor in sorted(stored.values(), key=lambda tensor: (tensor.start, tensor.end)):
        if tensor.start != needed:
            raise _broken(path, "its tensors overlap or leave gaps")
        needed = tensor.end
    if needed != size:
        raise _broken(path, f"its header promises {needed:,} bytes, the file has {size:,}")
    return stored


def _stored(path: Path, offset: int, entry: dict[str, Any]) -> Stored:
    begin, end = entry["data_offsets"]
    tensor = stated(entry["dtype"], entry["shape"])
    if type(begin) is not int or type(end) is not int or begin < 0 or tensor.bytes != end - begin:
        raise ValueError(f"a tensor of {tensor.bytes} bytes lies in {end - begin}")
    return Stored(tensor=tensor, path=path, start=offset + begin, end=offset + end)


def _broken(path: Path, why: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path.name} in {path.parent} is truncated or corrupt: {why}.", hint="Download the checkpoint again, or remove the folder."
    )


def weight_files(folder: Path) -> tuple[Path, ...]:
    """Return the safetensors files of a checkpoint in order; raise `BadCheckpoint` where there is none or a shard is missing.

    As transformers does: `model.safetensors` if it is there, else the shards that the index names, else whatever lies there.
    """
    index, single = folder / INDEX, folder / "model.safetensors"
    if single.is_file():
        return (single,)
    if index.is_file():
        try:
            found = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            strange = next((name for name in found if "/" in name or names.path_fault(name)), None)
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise BadCheckpoint(f"{INDEX} in {folder} is not a valid index.", hint="Download the checkpoint again.") from error
        if strange is not None:
            raise BadCheckpoint(
                f"{INDEX} in {folder} names files outside the folder, or such as none is called: {names.shown(strange)}.",
                hint="Do not use this checkpoint.",
            )
        files = tuple(folder / name for name in found)
    else:
        files = tuple(sorted(folder.glob("*.safetensors")))
    missing = [path.name for path in files if not path.is_file()]
    if not files or missing:
        what = f"lacks {', '.join(missing)}" if missing else "holds no *.safetensors file"
        raise BadCheckpoint(
            f"The checkpoint {folder} {what}.", hint="ModelPress reads safetensors only; convert or download the weights again."
        )
    return files


def outlines(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of every tensor of a folder's safetensors files by name; none where it holds no such file.

    Raises `BadCheckpoint` as `weight_files` and `read_header` do.
    """
    if not any(folder.glob("*.safetensors")):
        return {}
    found = {name: stored.tensor for path in weight_files(folder) for name, stored in read_header(path).items()}
    return {name: (tensor.dtype, tensor.shape) for name, tensor in sorted(found.items())}
