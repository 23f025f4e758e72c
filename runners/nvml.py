"""NVIDIA's management library (nvidia-ml-py): what the driver tells about the GPU that this process uses.

Every answer is asked for by itself: a driver, a virtual GPU or a container that refuses one still gives the others.
"""

from __future__ import annotations

import os
import sys
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1)
def device() -> Any:
    """Return NVML's handle of the GPU that torch's `cuda:0` is, or None without library, driver or GPU; NVML stays open afterwards.

    CUDA numbers the visible GPUs, NVML all of them: torch's own word for the GPU, or else CUDA_VISIBLE_DEVICES, says which it is.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid, index = _place()
        return pynvml.nvmlDeviceGetHandleByUUID(uuid) if uuid else pynvml.nvmlDeviceGetHandleByIndex(index)
    except pynvml.NVMLError:
        return None


def ask(function: str, *arguments: Any) -> Any:
    """Return what one of NVML's functions answers, by its name; None where there is no such function or it is refused."""
    import pynvml

    try:
        return getattr(pynvml, function)(*arguments)
    except (pynvml.NVMLError, AttributeError):
        return None


def constant(name: str) -> int:
    """Return one of NVML's constants by its name."""
    import pynvml

    return int(getattr(pynvml, name))


def throttle_reasons(handle: Any) -> tuple[str, ...]:
    """Return why the GPU's clocks are below their maximum now, in NVML's words (`SwPowerCap`, `HwThermalSlowdown`); empty: they are not."""
    import pynvml

    prefix = "nvmlClocksEventReason"
    found = ask("nvmlDeviceGetCurrentClocksEventReasons", handle) or 0
    names = {name for name in vars(pynvml) if name.startswith(prefix)} - {
        f"{prefix}{word}" for word in ("None", "All", "UserDefinedClocks")
    }
    return tuple(sorted(name.removeprefix(prefix) for name in names if found & getattr(pynvml, name)))


def _place() -> tuple[str, int]:
    """Return the GPU's UUID, or an empty string and its number."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        uuid = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
        if uuid:
            return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}", 0
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        return first, 0
    return "", int(first) if first.isdigit() else 0
