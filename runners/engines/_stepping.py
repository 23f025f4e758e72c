"""What engines share that read a sequence bit by bit into a cache of their own: tokens, logits, greedy writing, timing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runners import dense
from runners.checkpoint import read_config
from runners.engines import _timing
from runners.observations import Run


class Stepping:
    """A model with the tokenizer beside it; a subclass says how a sequence begins and how it goes on.

    Tokens are those of the tokenizer in the folder, as for every other variant. Logits are float32.
    """

    defects: tuple[str, ...] = ()
    device = "cpu"
    dtype = "float32"
    modes: tuple[str, ...] = ("eager",)  # the engine's own way, whatever it prepares beforehand

    def __init__(self, folder: Path) -> None:
        """Load the tokenizer."""
        self.tokenizer = dense.tokenizer(folder)
        self._config = read_config(folder)

    def begin(self, tokens: int, batch: int = 1) -> None:
        """Forget what was read, and have room for so many tokens in each sequence of a batch."""
        raise NotImplementedError

    def read(self, rows: Sequence[Sequence[int]], *, start: int, all_logits: bool) -> Any:
        """Append to each sequence its row of tokens, all equally long, at position `start`.

        Return the logits after each token or after the last: an array (batch, tokens or at least one, vocabulary), the last token's last.
        """
        raise NotImplementedError

    @property
    def max_batch(self) -> int:
        """The most sequences that can be run together."""
        return _timing.ANY_BATCH

    @property
    def bytes_per_token(self) -> int:
        """Roughly what one token of one sequence takes in memory, in float32, with the logits that exported graphs give of each."""
        return _timing.bytes_per_token(self._config, itemsize=4, logits=True)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The token that ends a text, as the tokenizer has it."""
        return frozenset({self.tokenizer.eos_token_id} - {None})

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
        found = torch.from_numpy(self.read([ids], start=0, all_logits=True)[0].copy())  # the array may be the engine's own memory
        return found.to("cuda" if torch.cuda.is_available() else "cpu")

    def time_generation(self, ids: Sequence[int], new_tokens: int, *, batch: int = 1, mode: str = "eager") -> Run:
        """Time a pass over `ids` in each row of a batch, then the greedy writing of `new_tokens` tokens."""
        name = type(self).__module__.rpartition(".")[2]
        _timing.check(name, batch=batch, max_batch=self.max_batch, mode=mode, modes=self.modes, new_tokens=new_tokens)
        rows = _timing.rows(ids, batch)
        self.begin(len(ids) + new_tokens, batch)
        clock = _timing.Clock()
        written = [self._next(rows, 0)]
        clock.mark()
        for place in range(len(ids), len(ids) + new_tokens - 1):
            written.append(self._next([[token] for token in written[-1]], place))
            clock.mark()
        return clock.run(list(zip(*written, strict=True)))

    def forget(self) -> None:
        """Let go of what timing keeps between runs: nothing, but in an engine that says so."""

    def generate(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """Return the greedy continuation of `ids`, at most `new_tokens` long; an end-of-text token ends it."""
        self.begin(len(ids) + new_tokens)
        found = self._next([ids], 0)
        while len(found) < new_tokens and found[-1] != self.tokenizer.eos_token_id:
            found += self._next([found[-1:]], len(ids) + len(found) - 1)
        return found

    def _next(self, rows: Sequence[Sequence[int]], start: int) -> list[int]:
        """Return the most likely token after each row."""
        return [int(token) for token in self.read(rows, start=start, all_logits=False)[:, -1].argmax(-1)]
