"""Bytes of a checkpoint folder, read from file sizes and safetensors headers alone."""

from __future__ import annotations

from pathlib import Path

from runners.checkpoint import MANIFEST
from runners.headers import stored_tensors

_PAPERS = ("readme", "license", "licence", "notice", "use_policy", "copying", "sources")


def disk_bytes(folder: Path) -> int:
    """Return the bytes of weights, configuration and tokenizer; papers, dot files and the manifest are not counted."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and _counts(path, folder))


def tensor_bytes(folder: Path) -> int:
    """Return the bytes of all stored tensors; raise `BadCheckpoint` where there are none or a file is cut off."""
    return sum(stored.tensor.bytes for stored in stored_tensors(folder).values())


def _counts(path: Path, folder: Path) -> bool:
    name = path.name.lower()
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.name != MANIFEST and not name.startswith(_PAPERS) and not name.endswith(".md")
