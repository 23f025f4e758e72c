"""What engines share that read a sequence bit by bit into a cache of their own: tokens, logits, greedy writing, timing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners import dense
from runners.checkpoint import read_config


class Stepping:
    """A model with the tokenizer beside it; a subclass says how a sequence begins and how it goes on.

    Tokens are those of the tokenizer in the folder, as for every other variant. Logits are float32.
    """

    defects: tuple[str, ...] = ()
    dtype = "float32"

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer."""
        self.tokenizer = dense.tokenizer(folder)
        self._config = read_config(folder)

    def begin(self, tokens: int) -> None:
        """Forget what was read, and have room for so many tokens."""
        raise NotImplementedError

    def read(self, ids: Sequence[int], *, start: int, all_logits: bool) -> Any:
        """Append tokens at position `start`; return the logits after each of them or after the last: an array (tokens, vocabulary)."""
        raise NotImplementedError

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence may have; 2**31 where config.json states no limit."""
        found = (self._config.get(key) for key in ("max_position_embeddings", "n_positions"))
        return next((length for length in found if isinstance(length, int)), 2**31)

    def encode(self, text: str) -> list[int]:
        """Return the text's token ids, with the special tokens that the tokenizer adds by itself."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return str(self.tokenizer.decode(list(ids)))

    def logits(self, ids: Sequence[int]) -> Any:
        """Return the logits after each token: a tensor (tokens, vocabulary), float32, where a base beside it has its own."""
        import torch

        self.begin(len(ids))
        found = torch.from_numpy(self.read(ids, start=0, all_logits=True).copy())  # the array may be the engine's own memory
        return found.to("cuda" if torch.cuda.is_available() else "cpu")

    def time_generation(self, ids: Sequence[int], new_tokens: int) -> tuple[float, float]:
        """Return the seconds of one pass over `ids`, and those of then writing `new_tokens` tokens greedily."""
        self.begin(len(ids) + new_tokens)
        start = time.perf_counter()
        token = self._next(ids, 0)
        read = time.perf_counter()
        for place in range(len(ids), len(ids) + new_tokens):
            token = self._next([token], place)
        return read - start, time.perf_counter() - read

    def generate(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """Return the greedy continuation of `ids`, at most `new_tokens` long; an end-of-text token ends it."""
        self.begin(len(ids) + new_tokens)
        found = [self._next(ids, 0)]
        while len(found) < new_tokens and found[-1] != self.tokenizer.eos_token_id:
            found.append(self._next(found[-1:], len(ids) + len(found) - 1))
        return found

    def _next(self, ids: Sequence[int], start: int) -> int:
        return int(self.read(ids, start=start, all_logits=False)[-1].argmax())
