"""Which context lengths of a model are run for its memory: as many as it takes, as fit, and as patience allows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from hub.errors import BadCheckpoint
from runners import failures, memory_formula
from runners.memory_pass import Pass, Subject

_PASSES = 6  # the fewest that give the median a 95 % interval
_SECONDS = 10.0  # after which two passes are enough
_LONGEST = 300.0  # seconds that one pass may be expected to take, and after which a single one is enough
_SHORTEST = 16  # tokens
_SHARE = 0.9  # of what is free
_GIB = 2**30


class Sweep:
    """The passes of one model by context length, and notes on why others were left out.

    `limit` is the longest context that the model takes; `ids`, tokens of its vocabulary, are repeated to the length of a context.
    """

    def __init__(self, asked: Subject, config: Mapping[str, Any], ids: Sequence[int], limit: int) -> None:
        """Keep what is given; nothing is run yet."""
        self.asked = asked
        self.config = config
        self.limit = limit
        self.passes: dict[int, tuple[Pass, ...]] = {}
        self.notes: list[str] = []
        self._ids = ids

    def measure(self, contexts: Sequence[int]) -> None:
        """Run the contexts from the shortest on until one does not fit, then shorter ones where those are too few for a formula."""
        takes = sorted({tokens for tokens in contexts if tokens <= self.limit}) or [self.limit]
        for tokens in sorted(set(contexts) - set(takes)):
            self.notes.append(f"A context of {tokens} tokens was not run: the model takes {self.limit}.")
        first = min(takes[0], _SHORTEST)
        if not self._fits(first):
            return
        self.asked.run(self._prompt(first))  # libraries get ready in the first pass
        for place, tokens in enumerate(takes):
            if not self._run(tokens):
                self.notes += [f"A context of {longer} tokens was not run: a shorter one was not." for longer in takes[place + 1 :]]
                break
        while self.passes and len(self.passes) < max(self.asked.degrees) + 2 and (shorter := min(self.passes) // 2) >= _SHORTEST:
            if not self._run(shorter):
                break

    def _run(self, tokens: int) -> bool:
        if not self._fits(tokens):
            return False
        done: list[Pass] = []
        start = time.monotonic()
        try:
            while not done or (len(done) < _PASSES and time.monotonic() - start < (_SECONDS if len(done) > 1 else _LONGEST)):
                done.append(self.asked.run(self._prompt(tokens)))
        except Exception as error:  # a GPU's memory is in pieces, and an engine may refuse a length
            if not failures.out_of_memory(error) and not isinstance(error, BadCheckpoint):
                raise
            self.notes.append(f"A context of {tokens} tokens did not run: {failures.one_line(error)}")
            return False
        self.passes[tokens] = tuple(done)
        return True

    def _fits(self, tokens: int) -> bool:
        """Whether memory and patience last for a context, going by shorter ones; where they do not, a note says so."""
        need, free = self._need(tokens), self.asked.free()
        if need > _SHARE * free:
            self.notes.append(
                f"A context of {tokens} tokens was not run: it may take {need / _GIB:.2f} GiB beside the loaded model, "
                f"{free / _GIB:.2f} GiB are free."
            )
            return False
        seconds = self._seconds(tokens)
        if seconds > _LONGEST:
            self.notes.append(
                f"A context of {tokens} tokens was not run: one pass may take {seconds:.0f} s, {_LONGEST:.0f} s are given at most."
            )
        return seconds <= _LONGEST

    def _need(self, tokens: int) -> float:
        """Bytes that a pass may take: what the next shorter context took, grown as attention may; before the first, a generous guess."""
        scores = max(self.asked.degrees) == 2
        shorter = self._shorter(tokens)
        growths = [one.growth for one in self.passes.get(shorter, ()) if one.growth is not None]
        if growths:
            return self.asked.extra + max(growths) * (tokens / shorter) ** (2 if scores else 1)
        guess = memory_formula.first_guess(self.config, tokens, scores=scores, all_logits=self.asked.all_logits)
        return self.asked.extra + guess + (memory_formula.cache_bytes(self.config, tokens, self.asked.cache_item) or 0)

    def _seconds(self, tokens: int) -> float:
        """Seconds that a pass may take: attention grows with the square of the tokens."""
        shorter = self._shorter(tokens)
        return max((one.seconds for one in self.passes.get(shorter, ())), default=0.0) * (tokens / max(1, shorter)) ** 2

    def _shorter(self, tokens: int) -> int:
        return max((one for one in self.passes if one < tokens), default=0)

    def _prompt(self, tokens: int) -> list[int]:
        return (list(self._ids) * -(-tokens // len(self._ids)))[:tokens]
