"""One pass over a prompt, and what it took of memory: through torch, or through an engine with a cache of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from runners import engines, memory, nvml
from runners.engines import Loaded
from runners.engines._stepping import Stepping
from runners.intervals import Estimate, centre, exact

_FIRST = 8  # tokens of a first read, which brings the weights into memory and hardly anything else


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One pass: its seconds, and bytes; `growth` is the peak above what was held before it, None where the system does not tell.

    `cache` is None where the engine keeps it to itself; `reserved`, `process` and `device` are those of a GPU.
    """

    seconds: float
    growth: float | None
    cache: float | None = None
    reserved: float | None = None
    process: float | None = None
    device: float | None = None


class Subject(Protocol):
    """A model that can be asked for its memory.

    `degrees`: of the polynomials that its activations may follow. `all_logits`: it gives logits after every token. `cache_item`: bytes of
    a number in its cache. `extra`: bytes that each pass takes again, beside what is loaded.
    """

    degrees: tuple[int, ...]
    all_logits: bool
    cache_item: int
    extra: int

    def run(self, ids: Sequence[int]) -> Pass:
        """Read a prompt in one pass."""

    def weights(self) -> Estimate | None:
        """Return what the weights take, after a pass; None where the system does not tell."""

    def free(self) -> int:
        """Return how many bytes more may be taken where the model is."""


def subject(loaded: Loaded, folder: Path) -> Subject | None:
    """Return what asks a loaded model for its memory; None for an engine that neither is torch nor reads step by step."""
    if hasattr(getattr(loaded, "model", None), "parameters"):
        return _InTorch(loaded)
    return _Stepwise(loaded, folder) if isinstance(loaded, Stepping) else None


class _InTorch:
    """A transformers model: its cache is measured from the cache object, and its passes leave nothing behind."""

    all_logits = False
    extra = 0

    def __init__(self, loaded: Any) -> None:
        self._model = loaded.model
        self._device = str(loaded.device)
        # Written out as a matrix of tokens × tokens, attention grows with their square; the kernels of all others never hold it whole.
        self.degrees: tuple[int, ...] = (2,) if getattr(self._model.config, "_attn_implementation", "") == "eager" else (1,)
        self.cache_item = _item(loaded.dtype)

    def run(self, ids: Sequence[int]) -> Pass:
        import torch

        batch = torch.tensor([list(ids)], device=self._device)
        meter = memory.Meter(cuda=self._cuda)
        with torch.inference_mode():
            start = time.perf_counter()
            out = self._model(batch, use_cache=True, logits_to_keep=1)
            if self._cuda:
                torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        growth = meter.growth() if meter.works else None
        cache = getattr(out, "past_key_values", None)
        return Pass(
            seconds=seconds,
            growth=growth,
            cache=None if cache is None else float(tensor_bytes(cache, whole=True)),
            reserved=float(torch.cuda.max_memory_reserved()) if self._cuda else None,
            process=_of_process() if self._cuda else None,
            device=_of_device() if self._cuda else None,
        )

    def weights(self) -> Estimate:
        return replace(exact(float(model_bytes(self._model))), interval="exact, bytes of parameters and buffers")

    def free(self) -> int:
        if not self._cuda:
            return memory.available()
        import torch

        memory.release()
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info()[0])

    @property
    def _cuda(self) -> bool:
        return self._device != "cpu"


class _Stepwise:
    """An engine with a cache of its own, on a CPU; it keeps the memory of a pass for the next, so each pass has a fresh load."""

    degrees: tuple[int, ...] = (1, 2)  # how it computes attention is its own affair

    def __init__(self, loaded: Loaded, folder: Path) -> None:
        llama_cpp = "llama" in loaded.label.split()[0]
        self.all_logits = not llama_cpp
        self.cache_item = 2 if llama_cpp else _item(loaded.dtype)
        self.extra = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        self._folder = folder
        self._loads: list[float] = []

    def run(self, ids: Sequence[int]) -> Pass:
        before = memory.Meter(cuda=False).before
        fresh: Any = engines.for_folder(self._folder).load(self._folder)
        fresh.begin(_FIRST)
        fresh.read([list(ids[:_FIRST])], start=0, all_logits=False)
        fresh.forget()  # a context or cache that stayed would be taken for weights
        meter = memory.Meter(cuda=False)
        self._loads.append(float(max(0, meter.before - before)))
        start = time.perf_counter()
        fresh.begin(len(ids))
        fresh.read([list(ids)], start=0, all_logits=False)
        return Pass(seconds=time.perf_counter() - start, growth=meter.growth() if meter.works else None)

    def weights(self) -> Estimate | None:
        if not any(self._loads):
            return None
        found = centre(self._loads, of="loads")
        return replace(found, interval=f"resident memory added by loading and reading {_FIRST} tokens, {found.interval}")

    def free(self) -> int:
        return memory.available()


def model_bytes(model: Any) -> int:
    """Return the bytes of a torch model's parameters and buffers, and of the tensors that quantized layers keep beside them."""
    found: list[Any] = []
    for module in model.modules():
        found += [value for value in vars(module).values() if isinstance(value, dict | list | tuple) or hasattr(value, "untyped_storage")]
    return tensor_bytes(*found, whole=False)


def tensor_bytes(*things: Any, whole: bool) -> int:
    """Return the bytes of all tensors within these objects, shared memory once.

    A tensor may be a view into a larger piece of memory: `whole` counts the piece, which it keeps alive; otherwise the view, which for a
    file mapped into memory is what is really read.
    """
    import torch

    seen: dict[int, Any] = {}  # the objects too: an id is free again when its object goes
    pieces: dict[tuple[Any, int], tuple[int, set[tuple[int, int]]]] = {}
    queue = list(things)
    while queue:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, torch.nn.Module | type | ModuleType):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, dict):
            queue += thing.values()
        elif isinstance(thing, list | tuple | set):
            queue += thing
        elif hasattr(thing, "__dict__"):
            queue += vars(thing).values()
        if not isinstance(thing, torch.Tensor):
            continue
        if hasattr(thing, "__tensor_flatten__"):  # a subclass that packs others has no memory of its own
            queue += [getattr(thing, name) for name in thing.__tensor_flatten__()[0]]
        elif thing.device.type != "meta" and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            views = pieces.setdefault((thing.device, storage.data_ptr()), (storage.nbytes(), set()))[1]
            views.add((thing.storage_offset(), thing.nbytes))
    return sum(size if whole else min(size, sum(view for _, view in views)) for size, views in pieces.values())


def _item(dtype: str) -> int:
    import torch

    return int(getattr(torch, dtype).itemsize)


def _of_process() -> float | None:
    """GPU memory of this process; None where the driver does not tell, or numbers processes otherwise, as outside of a container."""
    handle = nvml.device()
    running = nvml.ask("nvmlDeviceGetComputeRunningProcesses", handle) if handle is not None else None
    own = next((one for one in running or () if one.pid == os.getpid()), None)
    return float(own.usedGpuMemory) if own is not None and own.usedGpuMemory is not None else None


def _of_device() -> float | None:
    handle = nvml.device()
    info = nvml.ask("nvmlDeviceGetMemoryInfo", handle) if handle is not None else None
    return float(info.used) if info is not None else None
