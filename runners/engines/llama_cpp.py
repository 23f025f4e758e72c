"""llama.cpp: runs GGUF files, on a CPU.

It computes in float32 with the weights as they are stored, and keeps its cache in float16, as it does for everybody; threads as torch has
them, so that it is timed fairly beside its base. Tokens are those of the tokenizer beside the file, as for every other variant.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners import dense, llamacpp
from runners.readers import engine_file

TITLE = "llama.cpp (llama-cpp-python)"
REQUIRES = ("llama_cpp", "numpy", "torch", "transformers")
INSTALL = 'pip install "modelpress[export]"'
FORMATS = ("gguf",)

_STEP = 512  # contexts grow by this many tokens


@dataclass(kw_only=True)
class Loaded:
    """A GGUF file in memory with the tokenizer beside it."""

    model: llamacpp.Model
    tokenizer: Any
    version: str
    dtype: str = "float32"
    defects: tuple[str, ...] = ()
    _context: llamacpp.Context | None = None

    @property
    def label(self) -> str:
        """Engine, version and dtype."""
        return f"llama-cpp-python {self.version} {self.dtype}"

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence may have."""
        return self.model.context_length

    def encode(self, text: str) -> list[int]:
        """Return the text's token ids, with the special tokens that the tokenizer adds by itself."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return str(self.tokenizer.decode(list(ids)))

    def logits(self, ids: Sequence[int]) -> Any:
        """Return the logits after each token: shape (tokens, vocabulary), float32, where the base beside it has its own."""
        import torch

        found = torch.from_numpy(self._ready(len(ids)).read(ids, start=0, all_logits=True).copy())
        return found.to("cuda" if torch.cuda.is_available() else "cpu")

    def time_generation(self, ids: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """Return the seconds of one pass over `ids`, and those of then writing `new_tokens` tokens greedily."""
        context = self._ready(len(ids) + new_tokens)
        start = time.perf_counter()
        token = int(context.read(ids, start=0, all_logits=False)[0].argmax())
        read = time.perf_counter()
        for place in range(len(ids), len(ids) + new_tokens):
            token = int(context.read([token], start=place, all_logits=False)[0].argmax())
        return read - start, time.perf_counter() - read

    def generate(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """Return the greedy continuation of `ids`, at most `new_tokens` long; an end-of-text token ends it."""
        context = self._ready(len(ids) + new_tokens)
        found = [int(context.read(ids, start=0, all_logits=False)[0].argmax())]
        while len(found) < new_tokens and found[-1] != self.tokenizer.eos_token_id:
            found.append(int(context.read(found[-1:], start=len(ids) + len(found) - 1, all_logits=False)[0].argmax()))
        return found

    def _ready(self, tokens: int) -> llamacpp.Context:
        """Return an empty context of room for so many tokens."""
        import torch

        if self._context is None or self._context.size < tokens:
            self._context = None  # the old one goes before the new one comes
            self._context = llamacpp.Context(self.model, -(-tokens // _STEP) * _STEP, torch.get_num_threads())
        self._context.forget()
        return self._context


def dtype_of(folder: Path) -> str:  # noqa: ARG001 - one signature for all engines
    """Return float32: what llama.cpp computes in, whatever the weights are stored as."""
    return "float32"


def load(folder: Path, *, dtype: str | None = None) -> Loaded:  # noqa: ARG001 - one signature for all engines
    """Open the folder's GGUF file; raise `BadCheckpoint` where llama.cpp refuses it."""
    import llama_cpp

    path = engine_file(folder)
    assert path is not None  # `engines.for_folder` found the format by it
    return Loaded(model=llamacpp.Model(path), tokenizer=dense.tokenizer(folder), version=llama_cpp.__version__)


def count_parameters(folder: Path) -> int:
    """Return how many weights the file holds, tied ones once."""
    from runners.headers import stored_tensors

    return sum(stored.tensor.numel for stored in stored_tensors(folder).values())
