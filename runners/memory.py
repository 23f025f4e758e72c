"""How much memory this process takes and took (Linux: /proc; elsewhere what getrusage tells)."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from runners import environment

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_SMALL, _LARGE = 128 * 1024, 32 * 1024 * 1024  # where glibc's own thresholds begin and end
GRAIN, TIGHT_GRAIN = 4 * 2**20, 2 * 2**20
"""Bytes by which resident memory differs between two processes that do the same (seen: up to 5 MB, `tight` up to 2.5), on a CPU."""
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


@contextmanager
def settled() -> Iterator[None]:
    """Have collections inside look at what is made inside alone: among all that libraries hold, each one would take a quarter of a second.

    Where a part of the memory is settled already, as in a child of the warm parent, nothing changes.
    """
    if gc.get_freeze_count():
        yield
        return
    release()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def tight() -> Iterator[None]:
    """Let the C library hand each large block back as soon as it is freed: resident memory is then what is in use.

    That is what torch calls allocated on CUDA. Left to itself glibc keeps blocks of up to 32 MiB for the next time, and the gaps between
    them come and go. Afterwards it is as in a process that has freed such a block once. Without glibc nothing happens.
    """
    _malloc(_SMALL, _SMALL)
    try:
        yield
    finally:
        _malloc(_LARGE, 2 * _LARGE)


def _malloc(mmap_threshold: int, trim_threshold: int) -> None:
    with suppress(OSError, AttributeError):  # glibc only
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, mmap_threshold)
        library.mallopt(_M_TRIM_THRESHOLD, trim_threshold)


def available() -> int:
    """Return how many bytes more this process may take: what is free, and what is left of a container's limit."""
    return min(int(psutil.virtual_memory().available), environment.memory_bytes() - resident())


class Meter:
    """The peak of memory above what is held when the meter is made: allocated on the CUDA device, else resident memory.

    `works` is False where the system does not let the peak start anew: then growth is above the highest that ever was.
    """

    def __init__(self, *, cuda: bool) -> None:
        """Give back what is free and begin."""
        release()
        self.cuda = cuda
        self.works = True
        if self.cuda:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = int(torch.cuda.memory_allocated())
        else:
            self.works = reset_peak()
            self.before = resident()

    def growth(self) -> float:
        """Return the peak since the beginning, in bytes above what was held then."""
        if self.cuda:
            import torch

            return float(torch.cuda.max_memory_allocated() - self.before)
        return float(max(0, peak() - self.before))


def meters() -> dict[str, Meter]:
    """Return a meter for each device where a model may run: `cpu`, and `cuda` where torch has it."""
    import torch

    return {"cpu": Meter(cuda=False)} | ({"cuda": Meter(cuda=True)} if torch.cuda.is_available() else {})


def _field(name: str) -> int:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


def _rusage() -> int:
    value = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return value if sys.platform == "darwin" else value * 1024
