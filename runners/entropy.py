"""Huffman coding of a checkpoint's weights, as in Deep Compression: what its tensors take when coded, and an archive that gives them back.

A tensor is cut into chunks, a chunk into planes (the first bytes of all its elements, then the second ones, …: exponents are alike, the
last bits of mantissas are not), and each plane goes through zlib with `Z_HUFFMAN_ONLY`: Huffman codes made for it, no matching of
repeated strings. Memory is a few chunks, whatever the size of the model. Paper: https://arxiv.org/abs/1510.00149.

An archive of one safetensors file is: `MAGIC`; the original's length (8 bytes, little-endian); its header, then each plane, each coded and
led by the code's length (4 bytes); the original's SHA-256.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from hub.errors import BadCheckpoint
from runners.checkpoint import beside, disk_errors
from runners.headers import BITS, MAX_HEADER, Stored, read_header, stored_tensors, weight_files

MAGIC = b"MPHUFF01"
CHUNK = 2**20
"""Elements that are coded together."""

_MOST_GAIN = 8
"""A Huffman code spends at least a bit on a byte, so an archive that promises more than this times its own size is none of ours."""


def coded_bytes(folder: Path) -> int:
    """Return the bytes that a checkpoint's weights take as archives: codes, their tables, headers and checksums.

    Of files of other engines (GGUF, ONNX, OpenVINO) the tensors are coded, and what lies around them counts as it is.
    """
    stored = stored_tensors(folder)
    paths = {entry.path for entry in stored.values()}
    if all(path.suffix == ".safetensors" for path in paths):
        return sum(len(part) for path in weight_files(folder) for part in _archive(path))
    around = sum(path.stat().st_size for path in paths) - sum(entry.end - entry.start for entry in stored.values())
    return around + sum(len(code) for entry in stored.values() for code in _tensor(entry))


def pack(source: Path, target: Path) -> int:
    """Write the archive of one safetensors file and return its bytes; raise `BadCheckpoint` where that file is not whole."""
    unfinished = beside(target)
    with disk_errors(target):
        try:
            with unfinished.open("wb") as out:
                for part in _archive(source):
                    out.write(part)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)
    return target.stat().st_size


def unpack(source: Path, target: Path) -> None:
    """Write the very bytes that an archive was made of; raise `BadCheckpoint` where it is damaged or was made to harm.

    Nothing that an archive says of itself is believed: it may not promise more than its own bytes can hold, each code must end where it
    says and give the bytes that the header asks for, and the result must have the checksum.
    """
    unfinished = beside(target)
    with disk_errors(target):
        try:
            with source.open("rb") as archive, unfinished.open("w+b") as out:
                _restore(archive, source, out, unfinished)
            unfinished.replace(target)
        except (zlib.error, EOFError) as error:
            raise _bad(source, str(error) or "it ends too early") from error
        finally:
            unfinished.unlink(missing_ok=True)


def _archive(source: Path) -> Iterator[bytes]:
    """Give the parts of a safetensors file's archive, in order."""
    tensors = _in_order(source)
    digest = hashlib.sha256()
    with source.open("rb") as stream:
        yield MAGIC + source.stat().st_size.to_bytes(8, "little")
        header = stream.read(_data_start(source))
        digest.update(header)
        yield _coded(header)
        for stored in tensors:
            for size, width in _chunks(stored):
                chunk = stream.read(size)
                digest.update(chunk)
                for plane in range(width):
                    yield _coded(chunk[plane::width])
    yield digest.digest()


def _tensor(stored: Stored) -> Iterator[bytes]:
    with stored.path.open("rb") as stream:
        stream.seek(stored.start)
        for size, width in _chunks(stored):
            chunk = stream.read(size)
            yield from (_coded(chunk[plane::width]) for plane in range(width))


def _restore(archive: BinaryIO, source: Path, out: BinaryIO, path: Path) -> None:
    length, most = _head(archive, source)
    header = _decoded(archive, min(MAX_HEADER + 8, most), exact=False)
    out.write(header)
    out.truncate(length)  # so that the header can be checked against the length as any other file's
    out.flush()
    tensors = _in_order(path)
    if _data_start(path) != len(header):
        raise _bad(source, "its header has another length than it says")
    digest = hashlib.sha256(header)
    for stored in tensors:
        for size, width in _chunks(stored):
            chunk = bytearray(size)
            for plane in range(width):
                chunk[plane::width] = _decoded(archive, len(range(plane, size, width)))
            digest.update(chunk)
            out.write(chunk)
    if archive.read(33) != digest.digest():
        raise _bad(source, "the checksum of what it holds is another than it says")


def _head(archive: BinaryIO, source: Path) -> tuple[int, int]:
    """Return the original's length and the most bytes that an archive of this size can hold."""
    most = _MOST_GAIN * source.stat().st_size
    if archive.read(len(MAGIC)) != MAGIC:
        raise _bad(source, "it does not begin as an archive of ModelPress")
    length = int.from_bytes(archive.read(8), "little")
    if length > most:
        raise _bad(source, f"it promises {length:,} bytes; its own {most // _MOST_GAIN:,} can hold {most:,} at most")
    return length, most


def _in_order(path: Path) -> list[Stored]:
    """Return a file's tensors as they follow one another; raise `BadCheckpoint` where they overlap or leave gaps."""
    tensors = sorted(read_header(path).values(), key=lambda stored: (stored.start, stored.end))
    place = _data_start(path)
    for stored in tensors:
        if stored.start != place:
            raise _bad(path, "its tensors overlap or leave gaps")
        place = stored.end
    return tensors


def _data_start(path: Path) -> int:
    with path.open("rb") as stream:
        return 8 + int.from_bytes(stream.read(8), "little")


def _chunks(stored: Stored) -> Iterator[tuple[int, int]]:
    """Give the bytes of each chunk of a tensor, and of one element (1 where elements are smaller than a byte)."""
    width = max(1, BITS.get(stored.tensor.dtype, 8) // 8)  # types in blocks, as llama.cpp's, have no bytes of their own kind
    for start in range(stored.start, stored.end, CHUNK * width):
        yield min(CHUNK * width, stored.end - start), width


def _coded(data: bytes) -> bytes:
    coder = zlib.compressobj(wbits=-zlib.MAX_WBITS, memLevel=zlib.DEF_MEM_LEVEL, strategy=zlib.Z_HUFFMAN_ONLY)
    code = coder.compress(data) + coder.flush()
    return len(code).to_bytes(4, "little") + code


def _decoded(archive: BinaryIO, size: int, *, exact: bool = True) -> bytes:
    """Read one code; raise `zlib.error` unless it gives `size` bytes (at most so many, where not `exact`) and then ends."""
    length = int.from_bytes(archive.read(4), "little")
    if length > size + size // 64 + 64:
        raise zlib.error(f"a code of {length:,} bytes is longer than any for {size:,} bytes")
    code = archive.read(length)
    decoder = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    data = decoder.decompress(code, size + 1)  # one more shows a code that goes on
    if len(code) != length or not decoder.eof or decoder.unused_data or len(data) > size or (exact and len(data) < size):
        raise zlib.error(f"a code does not give the {size:,} bytes that it should")
    return data


def _bad(path: Path, why: str) -> BadCheckpoint:
    return BadCheckpoint(f"{path.name} cannot be coded or unpacked: {why}.", hint="Make the archive again from the checkpoint.")
