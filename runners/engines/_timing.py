"""What engines share to time a generation: rows of a batch, marks in time, a bound of memory."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from hub.errors import Unavailable
from runners import memory_formula
from runners.observations import Run

ANY_BATCH = 2**31
"""`Loaded.max_batch` of an engine that sets no limit itself."""


def rows(ids: Sequence[int], batch: int) -> list[list[int]]:
    """Return a batch of one prompt: the prompt, then the prompt turned by ever more places; all equally long, so nothing is padded.

    The rows differ, so that no cache of common beginnings spares work, as long as the prompt is longer than the batch.
    """
    step = max(1, len(ids) // batch)
    return [[*ids[place:], *ids[:place]] for place in (number * step % len(ids) for number in range(batch))]


def check(name: str, *, batch: int, max_batch: int, mode: str, modes: Sequence[str], new_tokens: int) -> None:
    """Raise `Unavailable` for a mode or a batch that the engine does not have, ValueError where nothing is to be written."""
    if mode not in modes:
        raise Unavailable(f"{name} has no mode {mode!r} here.", hint=f"It has: {', '.join(modes)}.")
    if batch > max_batch:
        raise Unavailable(f"{name} runs {max_batch} sequences together at most, not {batch}.", hint="Use a smaller batch.")
    if new_tokens < 1:
        raise ValueError(f"a generation writes at least one token, not {new_tokens}")


class Clock:
    """Marks in time of one run, and the seconds between neighbouring ones.

    On CUDA they are events on the current stream: the device notes the time itself and is awaited once, at the end. Else the wall clock.
    """

    def __init__(self, device: str = "cpu") -> None:
        """Wait for what was begun before, and set the first mark."""
        self._cuda = device != "cpu"
        self._marks: list[Any] = []
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        self.mark()

    def mark(self) -> None:
        """Note the time."""
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def run(self, tokens: Sequence[Sequence[int]]) -> Run:
        """Return the run whose first span is the prompt's pass and whose further ones are a token each; `tokens`: (batch, new tokens)."""
        seconds = self._seconds()
        return Run(prefill_seconds=seconds[0], token_seconds=tuple(seconds[1:]), tokens=tuple(tuple(row) for row in tokens))

    def _seconds(self) -> list[float]:
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if not self._cuda:
            return [after - before for before, after in pairs]
        self._marks[-1].synchronize()
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


def bytes_per_token(config: Mapping[str, Any], *, itemsize: int, logits: bool = False) -> int:
    """Return roughly what one token of a prompt takes in memory: its keys and values, one layer's activations, its logits where kept.

    `config`: that of config.json; `itemsize`: bytes of a key or value.
    """
    cache = memory_formula.cache_bytes(config, 1, itemsize) or 0
    return cache + memory_formula.first_guess(config, 1, scores=False, all_logits=logits)
