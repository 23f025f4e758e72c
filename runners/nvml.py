"""NVIDIA's management library (nvidia-ml-py): what the driver tells about the GPU that this process uses.

Every answer is asked for by itself: a driver, a virtual GPU or a container that refuses one still gives the others.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import cache
from typing import Any

_PREFIXES = ("GPU-", "MIG-")


def device() -> Any:
    """Return NVML's handle of the GPU that torch's `cuda:0` is, or None without library, driver or GPU; NVML stays open afterwards.

    CUDA numbers the visible GPUs, NVML all of them: torch's own word for the GPU, once it is imported, or else CUDA_VISIBLE_DEVICES, says
    which it is.
    """
    place = _place()
    return None if place is None else _handle(place)


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


def throttle_reasons(handle: Any) -> tuple[str, ...] | None:
    """Return why the GPU's clocks are below their maximum now, in NVML's words (`SwPowerCap`, `HwThermalSlowdown`); empty: they are not.

    None where the driver does not tell.
    """
    import pynvml

    prefix = "nvmlClocksEventReason"
    found = ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if found is None:
        return None
    names = {name for name in vars(pynvml) if name.startswith(prefix)} - {
        f"{prefix}{word}" for word in ("None", "All", "UserDefinedClocks")
    }
    return tuple(sorted(name.removeprefix(prefix) for name in names if found & getattr(pynvml, name)))


@cache
def _handle(place: str | int) -> Any:
    """Return the handle of a GPU, or of a part of one (MIG), by its UUID with or without prefix, or by its number."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        if isinstance(place, int):
            return pynvml.nvmlDeviceGetHandleByIndex(place)
    except pynvml.NVMLError:
        return None
    for prefix in ("",) if place.startswith(_PREFIXES) else _PREFIXES:
        with suppress(pynvml.NVMLError):
            return pynvml.nvmlDeviceGetHandleByUUID(prefix + place)
    return None


def _place() -> str | int | None:
    """Return the GPU's UUID, or its number; None where CUDA shows none."""
    torch = sys.modules.get("torch")
    if torch is not None:
        if not torch.cuda.is_available():
            return None
        if uuid := str(getattr(torch.cuda.get_device_properties(0), "uuid", "")):
            return uuid
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = (visible or "").split(",")[0].strip()
    if visible is not None and first in ("", "-1"):
        return None
    if first.startswith(_PREFIXES):
        return first
    return int(first) if first.isdigit() else 0
