"""Read and write a checkpoint a tensor at a time: memory holds a few tensors, never the model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from runners.checkpoint import canonical, read_config, write_atomically
from runners.headers import BITS, INDEX, Stored, read_header, weight_files

_CHUNK = 2**20
_TORCH = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "F16": "float16", "BF16": "bfloat16",
    "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
}  # fmt: skip


class Source:
    """The tensors of a dense checkpoint under the names transformers gives today, read one by one; nothing stays open or in memory."""

    def __init__(self, folder: Path) -> None:
        """Read the headers of all shards; raise `BadCheckpoint` where one is missing or broken."""
        named = read_config(folder).get("architectures")
        self.folder = folder
        self.architecture = str(named[0]) if isinstance(named, list) and named else "unknown"
        self._stored: dict[str, tuple[str, Stored]] = {}
        for path in weight_files(folder):
            for raw, stored in sorted(read_header(path).items(), key=lambda item: item[1].start):
                if (name := canonical(raw, self.architecture)) is not None:
                    self._stored[name] = (raw, stored)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors, shard by shard as they lie on disk; buffers that transformers no longer stores are left out."""
        return tuple(self._stored)

    def __contains__(self, name: str) -> bool:
        return name in self._stored

    def file(self, name: str) -> str:
        """Return the name of the shard that holds a tensor."""
        return self._stored[name][1].path.name

    def dtype(self, name: str) -> Any:
        """Return the torch dtype in which a tensor is stored."""
        import torch

        return getattr(torch, _TORCH[self._stored[name][1].tensor.dtype])

    def read(self, name: str) -> Any:
        """Return one tensor as stored. Its pages are the file's until changed: it costs memory only while it is held."""
        from safetensors import safe_open

        raw, stored = self._stored[name]
        # Opened anew for each tensor: an open file would keep every page that was ever looked at.
        with safe_open(stored.path, framework="pt") as opened:
            return opened.get_tensor(raw)


class Writer:
    """Writes what becomes of a source's tensors, shard by shard under the source's names, the index and config.json last.

    Every tensor of the source is handed over once, with what takes its place (nothing: it is dropped). A shard's data waits in a file
    beside it until the shard is whole; then it is put in safetensors' order. Memory: the tensors at hand. For shards of one dtype the
    bytes are those of `safetensors.torch.save_file`; none depends on the order in which tensors came. Use it in a `with` statement.
    """

    def __init__(self, target: Path, source: Source) -> None:
        """Write into the existing folder `target`."""
        self._target = target
        self._source = source
        self._waiting: dict[str, set[str]] = {}
        for name in source.names:
            self._waiting.setdefault(source.file(name), set()).add(name)
        self._shards: dict[str, _Shard] = {}
        self._index: dict[str, str] = {}
        self._bytes = 0

    def add(self, name: str, tensors: Mapping[str, Any]) -> None:
        """Store `tensors` in place of the source's tensor `name`; raise `ValueError` where it or a new name came before."""
        file = self._source.file(name)
        if name not in self._waiting[file]:
            raise ValueError(f"what becomes of {name} was said before")
        self._waiting[file].remove(name)
        for new, tensor in tensors.items():
            if new in self._index:
                raise ValueError(f"{new} was stored before")
            if file not in self._shards:
                self._shards[file] = _Shard(self._target / file)
            self._shards[file].add(new, tensor)
            self._index[new] = file
            self._bytes += tensor.numel() * tensor.element_size()
        if not self._waiting[file] and file in self._shards:
            self._shards.pop(file).finish()

    def copy(self, name: str) -> None:
        """Store the source's tensor `name` as it is."""
        self.add(name, {name: self._source.read(name)})

    def copy_rest(self) -> None:
        """Store every tensor of which nothing was said yet as it is."""
        for name in self._source.names:
            if name in self._waiting[self._source.file(name)]:
                self.copy(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for shard in self._shards.values():
            shard.drop()
        if kind is not None:
            return
        if forgotten := sorted(name for names in self._waiting.values() for name in names):
            raise ValueError(f"nothing was said of {', '.join(forgotten[:5])}")
        if set(self._index.values()) != {"model.safetensors"}:
            index = {"metadata": {"total_size": self._bytes}, "weight_map": dict(sorted(self._index.items()))}
            write_atomically(self._target / INDEX, json.dumps(index, indent=2) + "\n")
        shutil.copyfile(self._source.folder / "config.json", self._target / "config.json")


class _Shard:
    """One safetensors file in the making."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spool = path.with_name(f"{path.name}.spool")
        self._stream: BinaryIO = self._spool.open("wb")
        self._entries: list[tuple[str, str, tuple[int, ...], int]] = []

    def add(self, name: str, tensor: Any) -> None:
        import torch

        dtype = next((known for known, of_torch in _TORCH.items() if getattr(torch, of_torch) == tensor.dtype), None)
        if dtype is None:
            raise ValueError(f"{name} is of {tensor.dtype}, which is not written here")
        self._entries.append((name, dtype, tuple(tensor.shape), self._stream.tell()))
        self._stream.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def finish(self) -> None:
        self._stream.close()
        # Wide dtypes first, so that every tensor lies aligned: the format leaves no room for gaps.
        entries = sorted(self._entries, key=lambda entry: (-BITS[entry[1]], entry[1], entry[0]))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        place = 0
        for name, dtype, shape, _ in entries:
            size = prod(shape) * BITS[dtype] // 8
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
            place += size
        words = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        words += b" " * (-len(words) % 8)
        with self._path.open("wb") as out, self._spool.open("rb") as spooled:
            out.write(len(words).to_bytes(8, "little") + words)
            for name, _, _, start in entries:
                spooled.seek(start)
                begin, end = header[name]["data_offsets"]
                for left in range(end - begin, 0, -_CHUNK):
                    out.write(spooled.read(min(left, _CHUNK)))
        self._spool.unlink()

    def drop(self) -> None:
        self._stream.close()
        self._spool.unlink(missing_ok=True)


def rewrite(source: Path, target: Path, change: Callable[[str, Any], Mapping[str, Any]]) -> None:
    """Write into the folder `target` what `change` makes of each tensor of the dense checkpoint `source`.

    `change` is given a tensor's name, as transformers has it today, and the tensor as stored (GPT-2's linears as (in, out)); it returns
    what takes its place, by name: itself, others, or nothing. Shards keep their names; a head stored beside the embeddings that it is
    tied to is a tensor like any other, one that is not stored never comes. Memory: one tensor and what is made of it.
    """
    given = Source(source)
    with Writer(target, given) as out:
        for name in given.names:
            out.add(name, change(name, given.read(name)))
