"""Files that could run code when they are opened or called: told by their suffix, and by their first bytes whatever they are called."""

from __future__ import annotations

import re
from pathlib import Path

from runners import readers

SUFFIXES = frozenset((
    ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz", ".h5", ".hdf5", ".keras", ".msgpack",
    ".pb", ".ot", ".mar", ".nemo", ".engine", ".plan", ".t7", ".py", ".pyc", ".pyo", ".pyd", ".pyw", ".pyz", ".ipynb", ".sh", ".bash",
    ".bat", ".cmd", ".ps1", ".vbs", ".js", ".mjs", ".lua", ".pl", ".rb", ".php", ".so", ".dll", ".dylib", ".exe", ".com", ".msi",
    ".o", ".a", ".ko", ".cubin", ".wasm", ".jar", ".class", ".whl", ".egg", ".deb", ".rpm", ".zip", ".tar", ".gz", ".tgz", ".bz2",
    ".xz", ".7z", ".rar", ".zst", ".lz4",
))  # fmt: skip
"""Pickles and what wraps them, programs, and archives, in which either may lie."""

_HEAD = 4096
# Long enough that the numbers of weights, with which some files begin, look so by chance a few times in a million files, or less often.
_MAGIC = (
    re.compile(rb"\x80[\x02-\x05][\x95cCXUTK}\](l)\x8a\x8cN]"),  # a pickle of protocol 2 to 5: its mark, and what can come first in one
    re.compile(
        rb"PK(?:\x03\x04|\x05\x06)|\x1f\x8b\x08|BZh[1-9]1AY|\xfd7zXZ\0|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07"
    ),  # archives; torch's files are zip
    re.compile(rb"\x7fELF|\0asm|\xca\xfe\xba\xbe|[\xce\xcf]\xfa\xed\xfe"),  # programs and libraries of Linux, the web, Java and macOS
    re.compile(rb"MZ(?=[\s\S]{58}[\s\S]*PE\0\0)"),  # and of Windows
    re.compile(rb"(?:\xef\xbb\xbf)?#!\s*/"),  # a script
    re.compile(rb"\x89HDF\r\n\x1a\n|\x93NUMPY"),
)


def could_run(path: Path) -> bool:
    """Return whether a file is a pickle, a program, or an archive in which such may lie; the numbers of an OpenVINO model (.bin) are none.

    Of any file the first 4,096 bytes are read; `OSError` where that cannot be done. A pickle of protocol 0 or 1, which has no mark, is
    known by its suffix alone.
    """
    if path.suffix.lower() in SUFFIXES:
        return not readers.harmless(path)
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if path.suffix == ".safetensors" and head[8:9] == b"{":  # the length of its header may look like anything
        return False
    return any(magic.match(head) for magic in _MAGIC)
