"""`modelpress doctor`: what this machine can do."""

from __future__ import annotations

import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import typer

from leaderboard.text import size
from modelpress.options import AsJson, emit

if TYPE_CHECKING:
    from runners.engines import EngineInfo
    from runners.method import MethodInfo

# By the extra that brings them; the empty one stands for what is always there.
LIBRARIES = {
    "": ("huggingface_hub", "sqlalchemy"),
    "press": (
        "torch", "transformers", "gptqmodel", "llmcompressor", "compressed-tensors", "bitsandbytes", "auto-round", "torchao", "peft",
        "optimum", "lm-eval", "scipy", "pyarrow", "nvidia-ml-py",
    ),
    "export": ("gguf", "llama-cpp-python", "onnx", "onnxruntime", "openvino", "nncf"),
}  # fmt: skip


def doctor(ctx: typer.Context, as_json: AsJson = False) -> None:
    """Say what this machine can do: GPU, memory, disk, token (never its value), methods and engines, and why others are missing."""
    report = examine(ctx)
    if as_json:
        emit(report)
        return
    for name, value in report["machine"].items():
        typer.echo(f"{name:<10} {value}")
    for title in ("libraries", "methods", "engines"):
        typer.echo(f"\n{title}: {sum(row['available'] for row in report[title])} of {len(report[title])} available")
        family = ""
        for row in sorted(report[title], key=lambda row: row.get("family", "")):
            if row.get("family", "") != family:
                family = row["family"]
                typer.echo(f"  {family}")
            mark = "yes" if row["available"] else "NO "
            note = row.get("version") or row.get("summary") or ""
            typer.echo(f"  {mark} {row['name']:<20} {note if row['available'] else row['reason']}")
            if not row["available"] and row["install"]:
                typer.echo(f"      install: {row['install']}")


def examine(ctx: typer.Context) -> dict[str, Any]:
    """Return the report as plain data."""
    import psutil

    from runners import energy, engines, environment, methods

    settings = ctx.obj.settings()
    folder = settings.press.work_dir
    total = environment.memory_bytes()
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    return {
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}, Python {sys.version.split()[0]}",
            "processor": f"{environment.cpu()}, {environment.cores()} cores",
            "gpu": "; ".join(gpus()) or "none seen (CUDA methods and VRAM figures are not available)",
            "clocks": environment.cpu_clocks() or "not told by this system",
            "energy": energy.why_not() or "measured",
            "memory": f"{size(total)}, {size(min(total, psutil.virtual_memory().available))} free",
            "disk": f"{size(shutil.disk_usage(existing).free)} free under {existing}",
            "hub": settings.hub.endpoint if settings.hub.endpoint != "local" else f"embedded, port {settings.hub.port}",
            "token": "set"
            if settings.hub.token
            else "none" + (" (the embedded hub makes its own)" if settings.hub.endpoint == "local" else ""),
            "write token": "set, for the publisher alone" if settings.hub.write_token else "none",
        },
        "libraries": [library(name, extra) for extra, names in LIBRARIES.items() for name in names],
        "methods": [{**row(info, info.summary), "family": info.family, "schemes": info.schemes} for info in methods.available()],
        "engines": [row(info, f"runs {', '.join(info.formats)}") for info in engines.available()],
    }


def row(info: MethodInfo | EngineInfo, summary: str) -> dict[str, Any]:
    """Return a method's or engine's line."""
    return {"name": info.name, "available": info.available, "reason": info.reason, "install": info.install, "summary": summary}


def library(name: str, extra: str) -> dict[str, Any]:
    """Return whether a package is installed, without importing it, and else what installs it."""
    try:
        return {"name": name, "available": True, "version": version(name), "reason": "", "install": ""}
    except PackageNotFoundError:
        install = f"pip install 'modelpress[{extra}]'" if extra else "pip install modelpress"
        return {"name": name, "available": False, "version": "", "reason": "not installed", "install": install}


def gpus() -> list[str]:
    """Return the NVIDIA GPUs that the driver shows, through NVML; empty without driver or library."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            found.append(f"{pynvml.nvmlDeviceGetName(handle)}, {size(pynvml.nvmlDeviceGetMemoryInfo(handle).total)}")
        return found
    finally:
        pynvml.nvmlShutdown()
