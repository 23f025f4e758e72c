"""The tensors of an OpenVINO model: the constants that its XML file names, each a range of the file of numbers beside it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast
from xml.etree import ElementTree

from hub.errors import BadCheckpoint
from hub.names import shown
from runners.headers import MAX_DIMENSIONS, MAX_HEADER, Stored, stated
from runners.readers import OPENVINO

SMALL = re.compile(r"graph/\d+")
"""Names of a graph's own constants (axes, sizes, frequencies): no tensors of the model, and none of more than `MOST` bytes."""
MOST = 4096
_DTYPES = {
    "f32": "F32", "f16": "F16", "bf16": "BF16", "f64": "F64", "u8": "U8", "i8": "I8", "u4": "U4", "i4": "I4", "i16": "I16", "u16": "U16",
    "i32": "I32", "u32": "U32", "i64": "I64", "u64": "U64", "boolean": "BOOL", "f8e4m3": "F8_E4M3", "f8e5m2": "F8_E5M2",
}  # fmt: skip


def read(path: Path) -> dict[str, Stored]:
    """Return the model's constants by name; raise `BadCheckpoint` where a file is truncated or no OpenVINO model."""
    try:
        data = path.with_name(OPENVINO[1])
        size = data.stat().st_size if data.is_file() else 0
        if path.stat().st_size > MAX_HEADER:
            raise ValueError(f"it has more than {MAX_HEADER:,} bytes")
        found = {}
        for layer in ElementTree.parse(path).getroot().iter("layer"):  # noqa: S314 - expat itself limits what entities become
            if layer.get("type") == "Const":
                name, stored = _constant(layer, data, size)
                if name in found:
                    raise ValueError(f"two constants are called {shown(name)}")
                if not SMALL.fullmatch(name) or stored.tensor.bytes > MOST:
                    found[name] = stored
        if not found:
            raise ValueError("it names no tensors")
        return dict(sorted(found.items()))
    except (ElementTree.ParseError, ValueError, KeyError, OSError, OverflowError) as error:
        raise BadCheckpoint(
            f"{path.name} in {path.parent} is truncated, corrupt, or no OpenVINO model: {error}.", hint="Download the files again."
        ) from error


def _constant(layer: ElementTree.Element, data: Path, size: int) -> tuple[str, Stored]:
    told = layer.find("data")
    if told is None:
        raise ValueError("a constant without data")
    sizes = [int(text) for text in told.attrib["shape"].split(",", MAX_DIMENSIONS) if text.strip()]
    start, length = int(told.attrib["offset"]), int(told.attrib["size"])
    tensor, name = stated(_DTYPES[told.attrib["element_type"]], sizes), cast(str, layer.get("name", ""))
    if tensor.bytes != length or not 0 <= start <= start + length <= size:
        where = f"is said to lie at {start:,} to {start + length:,} of {size:,}"
        raise ValueError(f"the tensor {shown(name)} of {tensor.bytes:,} bytes {where}")
    return name, Stored(tensor=tensor, path=data, start=start, end=start + length)
