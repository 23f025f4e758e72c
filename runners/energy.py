"""Joules: of the GPU by NVIDIA's driver, else of the processor's packages by Linux's RAPL counters; else nothing, with the reason.

Neither counter is of this process alone: it is all that the GPU, or the packages, used. RAPL tells nothing of memory modules, disks and
fans. Sources: NVML's nvmlDeviceGetTotalEnergyConsumption; Documentation/power/powercap/powercap.rst of Linux.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runners import nvml

POWERCAP = Path("/sys/class/powercap")
_PACKAGE = re.compile(r"intel-rapl:\d+")  # AMD's processors have the same names; intel-rapl:0:0 is a part of intel-rapl:0
_MILLI, _MICRO = 1e-3, 1e-6
_GPU_SHORTEST, _PACKAGE_SHORTEST = 1.0, 0.02  # a GPU's counter steps about ten times a second, RAPL's a thousand times


class Meter:
    """Energy since the meter was made; `source` says whose: `GPU (NVML)` or `processor packages (RAPL)`.

    A RAPL counter begins anew after some hundred kilojoules, minutes of full load: read the meter at least as often. `shortest` is the
    seconds of work from which on a difference means something: ten to twenty of the counters' steps.
    """

    def __init__(
        self, source: str, counters: Mapping[str, Callable[[], float | None]], ranges: Mapping[str, float], shortest: float
    ) -> None:
        """Begin; `counters` give joules by name (None where they refuse), and start from zero again after those of `ranges`."""
        self.source = source
        self.shortest = shortest
        self._counters = counters
        self._ranges = ranges
        self._last = {name: read() for name, read in counters.items()}
        self._sum = 0.0

    def joules(self) -> float | None:
        """Return the joules since the meter was made; None where a counter does not answer."""
        for name, read in self._counters.items():
            now, last = read(), self._last[name]
            if now is None:
                return None
            used = 0.0 if last is None else now - last
            self._sum += used if used >= 0 else max(0.0, used + self._ranges.get(name, 0.0))
            self._last[name] = now
        return self._sum


def meter(device: str = "", *, powercap: Path = POWERCAP) -> Meter | None:
    """Return a meter, or None where there is none that can be read.

    `device`: `cuda` for the GPU's, `cpu` for the packages'; empty: the GPU's where the driver shows one, else the packages'.
    """
    if device != "cpu" and (found := _gpu()) is not None:
        return found
    return None if device == "cuda" else _packages(powercap)


def why_not(device: str = "", *, powercap: Path = POWERCAP) -> str:
    """Return in a sentence why there is no meter; empty where there is one."""
    if meter(device, powercap=powercap) is not None:
        return ""
    if device == "cuda" or (not device and nvml.device() is not None):
        return "Energy was not measured: the driver (NVML) tells no energy of this GPU."
    domains = _domains(powercap)
    if not domains:
        return "Energy was not measured: no NVIDIA GPU, and no RAPL counters of the processor's packages (Linux: powercap) are here."
    return "Energy was not measured: RAPL counters of the processor are there, but cannot be read; Linux lets only root read energy_uj."


def _gpu() -> Meter | None:
    handle = nvml.device()
    if handle is None or _gpu_joules(handle) is None:
        return None
    return Meter("GPU (NVML)", {"gpu": lambda: _gpu_joules(handle)}, {}, _GPU_SHORTEST)


def _gpu_joules(handle: Any) -> float | None:
    found = nvml.ask("nvmlDeviceGetTotalEnergyConsumption", handle)
    return None if found is None else int(found) * _MILLI


def _packages(powercap: Path) -> Meter | None:
    domains = _domains(powercap)
    try:
        ranges = {path.name: int((path / "max_energy_range_uj").read_text()) * _MICRO for path in domains}
        counters = {path.name: _reader(_counter(path)) for path in domains}
        return Meter("processor packages (RAPL)", counters, ranges, _PACKAGE_SHORTEST) if domains else None
    except (OSError, ValueError):
        return None


def _domains(powercap: Path) -> list[Path]:
    """The packages' folders: not `psys`, which has them in it, nor what a package has in itself."""
    if not powercap.is_dir():
        return []
    found = (path for path in sorted(powercap.iterdir()) if _PACKAGE.fullmatch(path.name))
    return [path for path in found if _name(path).startswith("package")]


def _name(domain: Path) -> str:
    try:
        return (domain / "name").read_text().strip()
    except OSError:
        return ""


def _counter(domain: Path) -> Path:
    return domain / "energy_uj"


def _reader(path: Path) -> Callable[[], float | None]:
    return lambda: int(path.read_text()) * _MICRO
