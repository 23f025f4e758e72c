"""llama.cpp: runs GGUF files, on a CPU.

It computes in float32 with the weights as they are stored, and keeps its cache in float16, as it does for everybody; threads as torch has
them, so that it is timed fairly beside its base.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hub.errors import BadCheckpoint
from runners import llamacpp
from runners.engines._stepping import Stepping
from runners.readers import engine_file

TITLE = "llama.cpp (llama-cpp-python)"
REQUIRES = ("llama_cpp", "numpy", "torch", "transformers")
INSTALL = 'pip install "modelpress[export]"'
FORMATS = ("gguf",)

_STEP = 512  # contexts grow by this many tokens


class Loaded(Stepping):
    """A GGUF file in memory, its context made when it is first read into."""

    def __init__(self, folder: Path, path: Path) -> None:
        """Open the file."""
        super().__init__(folder)
        self._model = llamacpp.Model(path)
        self._context: llamacpp.Context | None = None

    @property
    def label(self) -> str:
        """Engine, version and dtype."""
        import llama_cpp

        return f"llama-cpp-python {llama_cpp.__version__} {self.dtype}"

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence may have, as the file says."""
        return self._model.context_length

    @property
    def max_batch(self) -> int:
        """The most sequences that one context holds."""
        return int(llamacpp.library().llama_max_parallel_sequences())

    def begin(self, tokens: int, batch: int = 1) -> None:
        """Empty the context, or make a larger one."""
        import torch

        if self._context is None or self._context.size < tokens or self._context.batch != batch:
            self._context = None  # the old one goes before the new one comes
            self._context = llamacpp.Context(self._model, -(-tokens // _STEP) * _STEP, torch.get_num_threads(), batch)
        self._context.forget()

    def forget(self) -> None:
        """Let go of the context."""
        self._context = None

    def read(self, rows: Sequence[Sequence[int]], *, start: int, all_logits: bool) -> Any:
        """Append tokens; see `Stepping.read`."""
        assert self._context is not None  # begin() comes first
        return self._context.read(rows, start=start, all_logits=all_logits)


def dtype_of(folder: Path) -> str:  # noqa: ARG001 - one signature for all engines
    """Return float32: what llama.cpp computes in, whatever the weights are stored as."""
    return "float32"


def load(folder: Path, *, dtype: str | None = None) -> Loaded:  # noqa: ARG001 - one signature for all engines
    """Open the folder's GGUF file; raise `BadCheckpoint` where it has none or llama.cpp refuses it."""
    path = engine_file(folder)
    if path is None:
        raise BadCheckpoint(f"{folder.name} holds no GGUF file.", hint="Press it again.")
    return Loaded(folder, path)


def count_parameters(folder: Path) -> int:
    """Return how many weights the file holds, tied ones once."""
    from runners.headers import stored_tensors

    return sum(stored.tensor.numel for stored in stored_tensors(folder).values())
