"""Hardware and library versions under which a result is made."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil

from hub.domain import Environment

LIBRARIES = (
    "accelerate", "auto-round", "bitsandbytes", "compressed-tensors", "gguf", "gptqmodel", "huggingface_hub", "llama-cpp-python",
    "llmcompressor", "modelpress", "nncf", "numpy", "onnx", "onnxruntime", "onnxscript", "openvino", "optimum", "peft", "safetensors",
    "tokenizers", "torch", "torchao", "transformers",
)  # fmt: skip
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def current() -> Environment:
    """Return this machine's environment; asks torch, where it is installed, for a CUDA device."""
    gpu = _gpu()
    device: Literal["cpu", "cuda"] = "cuda" if gpu else "cpu"
    return Environment(
        hardware=gpu or f"{_cpu()}, {cores()} cores",
        device=device,
        cores=cores(),
        memory_bytes=memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        libraries=libraries(),
    )


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Return the memory that this process may use: the machine's, or the container's limit where that is less."""
    total = int(psutil.virtual_memory().total)
    with suppress(OSError, ValueError):
        return min(total, int(_CGROUP_LIMIT.read_text()))
    return total


def libraries() -> dict[str, str]:
    """Return the versions of those libraries that can change a number, of the installed ones."""
    found = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _gpu() -> str:
    if find_spec("torch") is None:
        return ""
    import torch

    if not torch.cuda.is_available():
        return ""
    count = torch.cuda.device_count()
    return f"{torch.cuda.get_device_name(0)}{f' × {count}' if count > 1 else ''}"


def _cpu() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
