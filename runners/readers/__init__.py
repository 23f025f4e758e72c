"""Weights that lie in the file of another engine than transformers: which file that is, and where the tensors in it lie.

One format, one file here, named as the format, with `read(path) -> dict[str, Stored]`. They need no library that writes the format.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import cast

from hub.errors import Unavailable
from runners.headers import Stored

FORMATS = {".gguf": "gguf", ".onnx": "onnx", ".xml": "openvino"}
"""Format by the suffix of the file to open."""

OPENVINO = ("openvino_model.xml", "openvino_model.bin")
_MAGIC_OF_PICKLES = (*(bytes((0x80, protocol)) for protocol in range(2, 6)), b"PK\x03\x04", b"\x1f\x8b")  # pickle, zip (torch's), gzip


def engine_file(folder: Path) -> Path | None:
    """Return the one file of a folder that holds its model for another engine; None where there are safetensors, or no such file."""
    if any(folder.glob("*.safetensors")):
        return None
    found = sorted(path for suffix in FORMATS for path in folder.glob(f"*{suffix}") if suffix != ".xml" or path.name == OPENVINO[0])
    return found[0] if len(found) == 1 else None


def require_one(folder: Path) -> None:
    """Raise `Unavailable` for GGUF files of which none is the model's: several variants or parts of it, or one in a folder of its own."""
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf"))
    if not found or any(folder.glob("*.safetensors")) or engine_file(folder) is not None:
        return
    if len(found) == 1:
        what = f"the only GGUF file lies in a folder of its own ({found[0]}), where the engines here do not look"
        if "/" not in found[0]:
            what = f"which file is meant is not said: beside {found[0]} there is one for another engine"
    else:
        some = ", ".join(found[:3]) + (", …" if len(found) > 3 else "")
        what = f"which GGUF file is meant is not said: there are {len(found)} ({some})"
    raise Unavailable(what, hint="Put one alone into a repository or folder.")


def require_beside(folder: Path) -> None:
    """Raise `Unavailable` for a GGUF file without config.json or tokenizer: engines here take these from files beside it."""
    gone = [name for name in ("config.json", "tokenizer*") if not any(folder.glob(name))]
    if gone and format_of(folder) == "gguf":
        raise Unavailable(
            f"there is no {' and no '.join(gone)} beside the GGUF file, and the engine here does not take them from it",
            hint="Put the base model's files beside it.",
        )


def format_of(folder: Path) -> str | None:
    """Return the format of the folder's engine file, None where it has none."""
    path = engine_file(folder)
    return FORMATS[path.suffix] if path else None


def read(path: Path) -> dict[str, Stored]:
    """Return the tensors of an engine's file by name; raise `BadCheckpoint` where it is truncated or not what its name says."""
    return cast(dict[str, Stored], import_module(f"{__name__}.{FORMATS[path.suffix]}").read(path))


def weights_beside(folder: Path) -> tuple[str, ...]:
    """Return the names of all files that hold the model of an engine's format, empty where the folder has none."""
    path = engine_file(folder)
    if path is None:
        return ()
    return OPENVINO if path.name == OPENVINO[0] else tuple(name for name in (path.name, f"{path.name}_data") if (folder / name).is_file())


def harmless(path: Path) -> bool:
    """Whether a file with a suffix of pickles is the numbers of an OpenVINO model, by its name, its neighbour, its first bytes."""
    if path.name != OPENVINO[1] or not path.is_file() or format_of(path.parent) != "openvino":
        return False
    with path.open("rb") as stream:
        return not stream.read(4).startswith(_MAGIC_OF_PICKLES)
