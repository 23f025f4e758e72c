"""Hardware, settings and library versions under which a result is made, and what the machine does meanwhile."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil

from hub.domain import Environment, Scalar
from runners import nvml

LIBRARIES = (
    "accelerate", "auto-round", "bitsandbytes", "compressed-tensors", "gguf", "gptqmodel", "huggingface_hub", "llama-cpp-python",
    "llmcompressor", "lm_eval", "modelpress", "nncf", "numpy", "nvidia-ml-py", "onnx", "onnxruntime", "onnxscript", "openvino", "optimum",
    "peft", "safetensors", "scipy", "tokenizers", "torch", "torchao", "transformers", "vllm",
)  # fmt: skip
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_CPUS = Path("/sys/devices/system/cpu")
_PACKAGE = Path(__file__).resolve().parent
_COUNTERS = ("clock_seconds", "cpu_seconds", "own_cpu_seconds")  # of a state: they tell something only by how much they grew


def current() -> Environment:
    """Return this machine's environment; asks torch, where it is installed, for a CUDA device."""
    gpu = _gpu()
    device: Literal["cpu", "cuda"] = "cuda" if gpu else "cpu"
    return Environment(
        hardware=gpu or f"{cpu()}, {cores()} cores",
        device=device,
        cores=cores(),
        memory_bytes=memory_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        libraries=libraries(),
        cpu=cpu(),
        driver=_driver() if gpu else "",
        clocks=_gpu_clocks() if gpu else cpu_clocks(),
        threads=_threads(),
    )


def state() -> dict[str, Scalar]:
    """Return what the machine does now: load average, clock rates in MHz, the GPU's temperature (°C), power (W) and throttle reasons.

    Seconds since some beginning are in it too, of the clock, of all work on the cores that this process may use, and of its own work:
    `between` makes of them what others did. What the system does not tell is left out. Never imports torch.
    """
    found: dict[str, Scalar] = {"clock_seconds": time.monotonic(), "cpu_seconds": _busy_seconds(), "own_cpu_seconds": _own_seconds()}
    with suppress(OSError, AttributeError):
        found["load_average"] = round(os.getloadavg()[0], 2)
    with suppress(OSError, NotImplementedError, AttributeError):  # psutil gives None, or raises, where there is no clock to read
        found["cpu_mhz"] = round(psutil.cpu_freq().current)
    return found | _gpu_state()


def between(before: Mapping[str, Scalar], after: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return two states as one, `load_average_before`, `load_average_after` and so on, with `other_cores`.

    `other_cores` is how many cores other processes, or other machines on the same host, kept busy from one to the other, on average.
    """
    found: dict[str, Scalar] = {}
    for name in (before.keys() | after.keys()) - set(_COUNTERS):
        found |= {f"{name}_{when}": state[name] for when, state in (("before", before), ("after", after)) if name in state}
    clock, everything, own = (float(after.get(name, 0.0)) - float(before.get(name, 0.0)) for name in _COUNTERS)
    if clock > 0:
        found["other_cores"] = round(max(0.0, everything - own) / clock, 2)
    return dict(sorted(found.items()))


def busy(state: Mapping[str, Scalar], cores: int) -> str | None:
    """Return a sentence where other work ran beside this process, so that times may be too long; None where it did not.

    `state` is that of `between`, else of a moment, whose load average counts this process too: only what exceeds `cores` is told.
    A tenth of the cores, and a quarter of one, are taken for the system's own.
    """
    if "other_cores" in state:
        others = float(state["other_cores"])
        if others <= max(0.25, 0.1 * cores):
            return None
        return f"Other work kept {others:.1f} of {cores} cores busy meanwhile: times may be too long, and vary more than they would."
    load = float(state.get("load_average", 0.0))
    return f"The load average was {load:.1f} on {cores} cores: times may be too long." if load > cores + 0.5 else None


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


def own_version(package: Path = _PACKAGE) -> str:
    """Return ModelPress's version with the commit that it was installed from or runs from, such as `0.1.0+g3b0e708c1d2e`.

    `.dirty` at the end: tracked files differ from the commit. Only the version where no commit can be told, nothing where ModelPress is not
    installed. The commit stands in a manifest alone: numbers of two commits are of one environment.
    """
    try:
        installed = distribution("modelpress")
    except PackageNotFoundError:
        return ""
    commit = _commit_installed(installed.read_text("direct_url.json") or "{}") or _commit_of(package.parent)
    return f"{installed.version}+g{commit}" if commit else installed.version


def _commit_installed(direct_url: str) -> str:
    """Return the commit that pip noted for an installation from a repository (PEP 610), in 12 digits."""
    with suppress(ValueError, AttributeError, TypeError):
        return str(json.loads(direct_url).get("vcs_info", {}).get("commit_id", ""))[:12]
    return ""


def _commit_of(folder: Path) -> str:
    """Return the commit of a work tree whose root is the folder, and whether it was changed since; empty where there is none, or no git."""
    if not (folder / ".git").exists():
        return ""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of another repository, inside a hook
    with suppress(OSError, subprocess.SubprocessError):
        told = ["git", "-C", str(folder), "describe", "--always", "--dirty=.dirty", "--exclude=*", "--abbrev=12"]
        done = subprocess.run(told, env=plain, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()
    return ""


def cpu_clocks(tree: Path = _CPUS) -> str:
    """Return what holds the processor's clock: governor, highest rate, turbo; empty where the system does not tell (virtual machines)."""
    parts = []
    if governor := _line(tree / "cpu0" / "cpufreq" / "scaling_governor"):
        parts.append(f"governor {governor}")
    if (highest := _line(tree / "cpu0" / "cpufreq" / "cpuinfo_max_freq")).isdigit():
        parts.append(f"at most {int(highest) / 1000:.0f} MHz")
    turbo = _line(tree / "cpufreq" / "boost") or {"0": "1", "1": "0"}.get(_line(tree / "intel_pstate" / "no_turbo"), "")
    if turbo in ("0", "1"):
        parts.append(f"turbo {'on' if turbo == '1' else 'off'}")
    return ", ".join(parts)


def _line(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""


def _busy_seconds() -> float:
    """Seconds of work on the cores that this process may use; what a hypervisor took from them counts."""
    cores = psutil.cpu_times(percpu=True)
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
    ours = [cores[index] for index in allowed if index < len(cores)]
    waiting = ("idle", "iowait", "guest", "guest_nice")  # a guest's time is in `user` already
    return float(sum(value for core in ours for name, value in core._asdict().items() if name not in waiting))


def _own_seconds() -> float:
    """Seconds of work of this process and of all that it started."""
    own = psutil.Process()
    total = sum(own.cpu_times()[:4])
    for child in own.children(recursive=True):
        with suppress(psutil.Error):
            total += sum(child.cpu_times()[:4])
    return float(total)


def _threads() -> int:
    torch = sys.modules.get("torch")
    return int(torch.get_num_threads()) if torch is not None else 0


def _driver() -> str:
    """The GPU's driver, and the newest CUDA that it runs."""
    if nvml.device() is None:
        return ""
    version, cuda = nvml.ask("nvmlSystemGetDriverVersion"), nvml.ask("nvmlSystemGetCudaDriverVersion")
    return ", ".join(([f"NVIDIA {version}"] if version else []) + ([f"CUDA {cuda // 1000}.{cuda % 1000 // 10}"] if cuda else []))


def _gpu_clocks() -> str:
    """The GPU's clock and power limits. NVML tells which clocks applications are given; that a range was locked it does not."""
    if (handle := nvml.device()) is None:
        return ""
    parts = []
    for title, kind in (("SM", "NVML_CLOCK_SM"), ("memory", "NVML_CLOCK_MEM")):
        highest = nvml.ask("nvmlDeviceGetMaxClockInfo", handle, nvml.constant(kind))
        given = nvml.ask("nvmlDeviceGetApplicationsClock", handle, nvml.constant(kind))
        if highest:
            parts.append(f"{title} at most {highest} MHz{f' (set to {given})' if given and given < highest else ''}")
    if watts := nvml.ask("nvmlDeviceGetEnforcedPowerLimit", handle):
        parts.append(f"power limit {watts / 1000:.0f} W")
    return ", ".join(parts)


def _gpu_state() -> dict[str, Scalar]:
    if (handle := nvml.device()) is None:
        return {}
    power = nvml.ask("nvmlDeviceGetPowerUsage", handle)
    throttle = nvml.throttle_reasons(handle)
    told = {
        "gpu_sm_mhz": nvml.ask("nvmlDeviceGetClockInfo", handle, nvml.constant("NVML_CLOCK_SM")),
        "gpu_memory_mhz": nvml.ask("nvmlDeviceGetClockInfo", handle, nvml.constant("NVML_CLOCK_MEM")),
        "gpu_temperature_c": nvml.ask("nvmlDeviceGetTemperature", handle, nvml.constant("NVML_TEMPERATURE_GPU")),
        "gpu_power_w": None if power is None else power / 1000,
        "gpu_throttle": None if throttle is None else ", ".join(throttle) or "none",
    }
    return {name: value for name, value in told.items() if value is not None}


def _gpu() -> str:
    if find_spec("torch") is None:
        return ""
    import torch

    if not torch.cuda.is_available():
        return ""
    count = torch.cuda.device_count()
    return f"{torch.cuda.get_device_name(0)}{f' × {count}' if count > 1 else ''}"


def cpu() -> str:
    """Return the processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or platform.machine()
