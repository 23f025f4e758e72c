"""The tensors of a GGUF file, from its header alone (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from hub.errors import BadCheckpoint, Unavailable
from hub.names import shown
from runners.headers import Stored, stated

MAGIC = b"GGUF"
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_DTYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16",
}  # fmt: skip
_MOST = 2**24  # bytes of a string, numbers of an array: more is no model
_MOST_ENTRIES = 2**20  # tensors, keys, or strings of an array: a vocabulary of 262,144 tokens has half a million merges
_MOST_DIMENSIONS = 4


def read(path: Path) -> dict[str, Stored]:
    """Return the tensors of one file, rows first; raise `BadCheckpoint` where it is truncated, of another version, or not GGUF.

    `Unavailable` for types of tensors that are not known here.
    """
    try:
        with path.open("rb") as stream:
            return _read(path, stream)
    except (ValueError, KeyError, OSError, struct.error, OverflowError, RecursionError) as error:
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> BadCheckpoint:
    return BadCheckpoint(f"{path.name} in {path.parent} is truncated, corrupt, or no GGUF file: {error}.", hint="Download the file again.")


def keys(path: Path) -> tuple[str, ...]:
    """Return the names of a file's metadata, in its order; raise `BadCheckpoint` as `read` does."""
    try:
        with path.open("rb") as stream:
            return tuple(_metadata(stream)[0])
    except (ValueError, KeyError, OSError, struct.error, OverflowError) as error:
        raise BadCheckpoint(
            f"{path.name} in {path.parent} is truncated or no GGUF file: {error}.", hint="Download the file again."
        ) from error


def _metadata(stream: BinaryIO) -> tuple[list[str], int, int]:
    """Read up to the list of tensors; return the keys, how many tensors follow, and the alignment of their data."""
    if stream.read(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, count, entries = struct.unpack("<IQQ", _take(stream, 20))
    if version not in (2, 3) or count > _MOST_ENTRIES or entries > _MOST_ENTRIES:
        raise ValueError(f"version {version}, {count} tensors and {entries} keys")
    alignment, found = 32, []
    for _ in range(entries):
        key = _string(stream)
        found.append(key.decode())
        kind = _number(stream, "<I")
        if key == b"general.alignment" and kind == _UINT32:
            alignment = _number(stream, "<I") or 32
        else:
            _skip(stream, kind)
    return found, count, alignment


def _read(path: Path, stream: BinaryIO) -> dict[str, Stored]:
    _, count, alignment = _metadata(stream)
    placed = {}
    for _ in range(count):
        name = _string(stream).decode()
        dimensions = _number(stream, "<I")
        if name in placed or dimensions > _MOST_DIMENSIONS:
            raise ValueError(f"the tensor {shown(name)} comes twice or has {dimensions} dimensions")
        size = struct.unpack(f"<{dimensions}Q", _take(stream, 8 * dimensions))
        kind, offset = struct.unpack("<IQ", _take(stream, 12))
        if kind not in _DTYPES:
            raise Unavailable(
                f"{path.name} has tensors of llama.cpp's type {kind}, which is not known here.", hint="Use a newer modelpress."
            )
        placed[name] = (stated(_DTYPES[kind], size[::-1]), offset)
    start = -(-stream.tell() // alignment) * alignment
    found = {
        name: Stored(tensor=tensor, path=path, start=start + offset, end=start + offset + tensor.bytes)
        for name, (tensor, offset) in sorted(placed.items())
    }
    needed, there = max((entry.end for entry in found.values()), default=0), path.stat().st_size
    if needed > there:
        raise ValueError(f"its header promises {needed:,} bytes, the file has {there:,}")
    return found


def _take(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count) if 0 <= count <= _MOST else b""
    if len(data) != count:
        raise ValueError("it ends within its header")
    return data


def _number(stream: BinaryIO, kind: str) -> int:
    return int(struct.unpack(kind, _take(stream, struct.calcsize(kind)))[0])


def _string(stream: BinaryIO) -> bytes:
    return _take(stream, _number(stream, "<Q"))


def _skip(stream: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        _string(stream)
    elif kind == _ARRAY:
        inner, count = _number(stream, "<I"), _number(stream, "<Q")
        if count > (_MOST if inner in _SCALARS else _MOST_ENTRIES):
            raise ValueError(f"an array of {count} entries")
        if inner in _SCALARS:
            stream.seek(_SCALARS[inner] * count, 1)
        else:
            for _ in range(count):
                _skip(stream, inner)
    else:
        stream.seek(_SCALARS[kind], 1)
