"""How much memory this process takes and took (Linux: /proc; elsewhere what getrusage tells)."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from contextlib import suppress
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_highest = 0  # of the peaks that were read before a reset; the kernel forgets them then


def resident() -> int:
    """Return the resident memory now, in bytes (0 where the system does not tell)."""
    return _field("VmRSS")


def peak() -> int:
    """Return the highest resident memory since the last reset, in bytes."""
    return _field("VmHWM") or _rusage()


def reset_peak() -> bool:
    """Let the peak start anew from what is resident now; False where the system has no such thing."""
    global _highest
    _highest = max(_highest, peak())
    with suppress(OSError):
        _CLEAR.write_text("5")
        return True
    return False


def process_peak() -> int:
    """Return the highest resident memory of the whole life of this process, whatever was reset."""
    return max(_highest, peak())


def release() -> None:
    """Give freed memory back to the system, so that the next growth is seen whole."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _field(name: str) -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _rusage() -> int:
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value if sys.platform == "darwin" else value * 1024
