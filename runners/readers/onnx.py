"""The tensors of an ONNX model: its graph's initializers, in the file itself or in the data file beside it.

ONNX is a protocol buffer (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3); only the few fields that say what lies where are
looked at, and no tensor is read.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hub import names
from hub.errors import BadCheckpoint
from runners.headers import MAX_DIMENSIONS, Stored, stated

_DTYPES = {
    1: "F32", 2: "U8", 3: "I8", 4: "U16", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 12: "U32", 13: "U64", 16: "BF16",
    17: "F8_E4M3", 19: "F8_E5M2", 21: "U4", 22: "I4",
}  # fmt: skip
_GRAPH, _INITIALIZER, _TYPED_DATA = 7, 5, (4, 5, 6, 7, 10, 11)
_MOST_FIELDS = 2**18  # of one message: a graph has a few thousand nodes and tensors
_LONGEST_NUMBER = 10  # bytes

Range = tuple[int, int]


def read(path: Path) -> dict[str, Stored]:
    """Return the initializers by name; raise `BadCheckpoint` where a file is truncated or no ONNX model."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graphs = [found for field, found in _fields(data, (0, len(data))) if field == _GRAPH and isinstance(found, tuple)]
            if len(graphs) != 1:
                raise ValueError("it holds no graph")
            tensors = [found for field, found in _fields(data, graphs[0]) if field == _INITIALIZER and isinstance(found, tuple)]
            return dict(sorted(_tensor(path, data, place) for place in tensors))
    except (ValueError, KeyError, OSError, OverflowError) as error:
        raise BadCheckpoint(
            f"{path.name} in {path.parent} is truncated, corrupt, or no ONNX model: {error}.", hint="Download the files again."
        ) from error


def _tensor(path: Path, data: Any, place: Range) -> tuple[str, Stored]:
    sizes: list[int] = []
    kind, name, inside, outside = 0, "", None, {}
    for field, found in _fields(data, place):
        if field == 1:
            sizes += [found] if isinstance(found, int) else _packed(data, found)
        elif field == 2 and isinstance(found, int):
            kind = found
        elif field == 8 and isinstance(found, tuple):
            name = data[slice(*found)].decode()
        elif field == 9 and isinstance(found, tuple):
            inside = found
        elif field == 13 and isinstance(found, tuple):
            entry = {number: data[slice(*text)].decode() for number, text in _fields(data, found) if isinstance(text, tuple)}
            outside[entry[1]] = entry[2]
        elif field in _TYPED_DATA:
            raise ValueError(f"the tensor {names.shown(name)} is stored value by value")
    tensor = stated(_DTYPES[kind], sizes)
    if outside:
        inside, path = _outside(path, outside), path.with_name(outside["location"])
    start, end = inside or (0, 0)
    if end - start != tensor.bytes:
        raise ValueError(f"the tensor {names.shown(name)} of {tensor.bytes:,} bytes lies in {end - start:,}")
    return name, Stored(tensor=tensor, path=path, start=start, end=end)


def _outside(path: Path, told: dict[str, str]) -> Range:
    """Return the bytes of a tensor in the file beside, which must lie beside and be long enough."""
    name = told["location"]
    if "/" in name or names.path_fault(name):
        raise ValueError(f"it names data outside its folder: {names.shown(name)}")
    start = int(told.get("offset", 0))
    end = start + int(told["length"])
    size = path.with_name(name).stat().st_size
    if not 0 <= start <= end <= size or not path.with_name(name).is_file():
        raise ValueError(f"it looks for {end:,} bytes in {name}, which has {size:,}")
    return start, end


def _fields(data: Any, place: Range) -> Iterator[tuple[int, int | Range]]:
    """Give the fields of a message: number, and the value of a number or the place of anything longer."""
    at, end = place
    for _ in range(_MOST_FIELDS):
        if at >= end:
            return
        tag, at = _varint(data, at, end)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(data, at, end)
            yield field, value
            continue
        size, at = _varint(data, at, end) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + size > end:
            raise ValueError("it ends within a field")
        yield field, (at, at + size)
        at += size
    raise ValueError(f"a message of more than {_MOST_FIELDS:,} fields")


def _packed(data: Any, place: Range) -> list[int]:
    found, (at, end) = [], place
    if end - at > _LONGEST_NUMBER * MAX_DIMENSIONS:
        raise ValueError("a tensor of too many dimensions")
    while at < end:
        value, at = _varint(data, at, end)
        found.append(value)
    return found


def _varint(data: Any, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("it ends within a number")
