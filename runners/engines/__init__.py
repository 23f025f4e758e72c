"""Inference engines: one file each, which loads a checkpoint folder and runs it.

An engine file has `TITLE`, `REQUIRES` (importable modules it needs), `INSTALL` (the command that brings them), `FORMATS` (what it reads),
`dtype_of(folder) -> str`, `load(folder, *, dtype=None) -> Loaded` and `count_parameters(folder) -> int`. Heavy imports happen inside
those functions only. An engine without logits says `TIMES_ONLY = True`: it is timed beside a format's engine, never in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from hub import packing
from hub.errors import BadCheckpoint, Unavailable, Unstable
from hub.names import shown
from runners import checkpoint, plugins, readers
from runners.observations import Run


class Loaded(Protocol):
    """A checkpoint in memory, ready to run."""

    @property
    def label(self) -> str:
        """Engine, version and dtype, as stored with each number: `transformers 5.17.0 bfloat16`."""

    @property
    def dtype(self) -> str:
        """The dtype's name, as `load` takes it."""

    @property
    def device(self) -> str:
        """Where it computes: `cpu` or `cuda`."""

    @property
    def defects(self) -> tuple[str, ...]:
        """What is wrong with the loaded model although it loaded: weights left random, a quantization method skipped."""

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence may have."""

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways in which the engine can be timed; the first is its plain one."""

    @property
    def max_batch(self) -> int:
        """The most sequences that can be run together; 1 where the engine knows no batches."""

    @property
    def bytes_per_token(self) -> int:
        """Roughly what one token of one sequence takes in memory while a prompt is read; 0 where the engine sees to it itself."""

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a text."""

    def encode(self, text: str) -> list[int]:
        """Return the text's token ids, with the special tokens that the tokenizer adds by itself."""

    def logits(self, ids: Sequence[int]) -> Any:
        """Return the logits after each token: a tensor of shape (tokens, vocabulary) in the model's dtype."""

    def time_generation(self, ids: Sequence[int], new_tokens: int, *, batch: int = 1, mode: str = "eager") -> Run:
        """Time a pass over `ids`, which gives the first token, then each further one of `new_tokens` tokens written greedily.

        With a batch, its other rows are `ids` turned by some places. Raises `Unavailable` for a mode or a batch that the engine lacks.
        """

    def forget(self) -> None:
        """Let go of what timing keeps between runs of one shape: caches, compiled code."""

    def generate(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """Return the greedy continuation of `ids`, at most `new_tokens` long."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""


class Engine(Protocol):
    """What an engine's file offers."""

    TITLE: str
    REQUIRES: tuple[str, ...]
    INSTALL: str
    FORMATS: tuple[str, ...]

    def dtype_of(self, folder: Path) -> str:
        """Return the name of the dtype in which the engine runs this checkpoint."""

    def load(self, folder: Path, *, dtype: str | None = None) -> Loaded:
        """Load a checkpoint folder; raise `BadCheckpoint` or `Unavailable`."""

    def count_parameters(self, folder: Path) -> int:
        """Return how many weights a checkpoint stands for, tied ones once, whatever they are packed into."""


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """An engine as listed: what it reads, and if it is not available the reason and the command that installs it."""

    name: str
    title: str
    formats: tuple[str, ...]
    available: bool
    reason: str
    install: str
    times_only: bool = False


def names() -> list[str]:
    """Return the names of all engines, sorted."""
    return plugins.names(__name__)


def load(name: str) -> Engine:
    """Return an engine; raise `UnknownName`, or `Unavailable` with what installs it."""
    module = cast(Engine, plugins.load(__name__, name, "engine"))
    if gone := plugins.missing(module.REQUIRES):
        raise Unavailable(f"The engine {name} needs {', '.join(gone)}, which this Python does not have.", hint=f"Run: {module.INSTALL}")
    return module


def for_folder(folder: Path) -> Engine:
    """Return the engine that runs a checkpoint's format: transformers where it can, else the first that can.

    Raises `Unavailable` with what installs it, or for a format that no engine here reads: that is no fault of the checkpoint's.
    """
    wanted = checkpoint.format_of(folder)
    if wanted == "dense" and not readers.engine_file(folder):
        wanted = packing.scheme(checkpoint.read_config(folder)).method  # mlx's names no method
    fitting = [info.name for info in available() if wanted in info.formats and not info.times_only]
    if not fitting:
        raise Unavailable(
            f"The checkpoint is of the format {shown(wanted)}, which no engine here reads.", hint="Press it with another recipe."
        )
    return load("transformers" if "transformers" in fitting else fitting[0])


def require_sound(loaded: Loaded, folder: Path) -> None:
    """Raise `BadCheckpoint` for a model that loaded wrongly: its numbers would be those of random weights."""
    if loaded.defects:
        raise BadCheckpoint(
            f"{folder.name} loads, but wrongly: {'; '.join(loaded.defects)}.",
            hint="Press it again with another recipe; if it is a base, download it again.",
        )


def require_numbers(loaded: Loaded, ids: Sequence[int], folder: Path) -> None:
    """Raise `Unstable` for a model whose logits on a few tokens hold NaN or infinity: nothing can be told of it, however long it runs.

    Minus infinity is let pass, as some models forbid tokens by it.
    """
    logits = loaded.logits(ids)
    if logits.isnan().any() or logits.isposinf().any():
        raise Unstable(
            f"{folder.name} predicts NaN or infinity in place of numbers.",
            hint="Press it again with another recipe; if it is a base, choose another one.",
        )


def timing_only(folder: Path) -> list[str]:
    """Return the names of the engines, among those that work here, that time a checkpoint's format and do nothing else."""
    wanted = checkpoint.format_of(folder)
    return [info.name for info in available() if info.times_only and info.available and wanted in info.formats]


def available() -> list[EngineInfo]:
    """List all engines, those that cannot run here with the reason."""
    return [_info(name) for name in names()]


def _info(name: str) -> EngineInfo:
    try:
        module = cast(Engine, plugins.load(__name__, name, "engine"))
        gone = plugins.missing(module.REQUIRES)
        reason = f"not installed: {', '.join(gone)}" if gone else ""
        return EngineInfo(
            name=name,
            title=module.TITLE,
            formats=module.FORMATS,
            available=not gone,
            reason=reason,
            install=module.INSTALL,
            times_only=getattr(module, "TIMES_ONLY", False),
        )
    except (Unavailable, AttributeError) as error:
        return EngineInfo(name=name, title=name, formats=(), available=False, reason=str(error), install="")
