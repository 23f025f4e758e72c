"""A checkpoint's tensors, whatever its format: safetensors headers are read by `hub.headers`, other engines' files by `runners.readers`."""

from __future__ import annotations

from pathlib import Path

from hub.headers import BITS, BLOCKS, INDEX, MAX_DIMENSIONS, MAX_HEADER, Stored, Tensor, read_header, stated, weight_files

__all__ = [
    "BITS", "BLOCKS", "INDEX", "MAX_DIMENSIONS", "MAX_HEADER", "Stored", "Tensor", "read_header", "stated", "stored_tensors",
    "weight_files",
]  # fmt: skip


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Return all tensors of a checkpoint folder by name, in the order of their names, whatever its format."""
    from runners import readers

    if engine_file := readers.engine_file(folder):
        return readers.read(engine_file)
    found: dict[str, Stored] = {}
    for path in weight_files(folder):
        found.update(read_header(path))
    return dict(sorted(found.items()))
