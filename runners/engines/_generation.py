"""Greedy writing by a transformers model, timed token by token, in three modes.

`eager`: the cache grows with the sequence. `static-cache`: transformers' StaticCache, as long as the whole sequence from the start.
`compiled`: torch.compile of the step that writes one token, over a static cache; the prompt's pass stays as it is, since every length
would be compiled anew (as in transformers' own `generate`). Compiling happens in a point's first run, which must not count; on a CPU it
needs a C++ compiler, on CUDA it makes a CUDA graph.

The loop is written out, not `model.generate`, so that the time is the model's and not that of stopping criteria; an end-of-text token does
not end it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hub.errors import Unavailable
from runners.engines._timing import Clock
from runners.observations import Run

EAGER, STATIC, COMPILED = "eager", "static-cache", "compiled"


def modes(model: Any) -> tuple[str, ...]:
    """Return the modes that a model offers: all, but for architectures of which transformers says that they take no static cache."""
    return (EAGER, STATIC, COMPILED) if getattr(model, "_can_compile_fullgraph", False) else (EAGER,)


@contextmanager
def _compiling() -> Iterator[None]:
    """Run compiled code: a step that would be compiled anew for every token raises `Unavailable`, where torch goes on without compiling.

    Compiled steps change tensors in place over many calls, which tensors of the inference mode allow in that mode alone: it is off.
    """
    import torch
    from torch._dynamo.exc import FailOnRecompileLimitHit

    try:
        with torch.no_grad(), torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            yield
    except FailOnRecompileLimitHit as error:
        raise Unavailable("torch would compile this model anew for every token.", hint="Time it in another mode.") from error


class Writer:
    """A model that writes; what a mode needs between runs of one shape, cache and compiled step, is kept until `forget`."""

    def __init__(self, model: Any) -> None:
        """Keep the model."""
        self._model = model
        self._shape: tuple[str, int, int] | None = None
        self._cache: Any = None
        self._step: Any = None

    def time(self, rows: Sequence[Sequence[int]], new_tokens: int, mode: str, device: str) -> Run:
        """Read rows of token ids in one pass, write `new_tokens` tokens to each, and return the times."""
        import torch

        given = torch.tensor([list(row) for row in rows], device=device)
        with _compiling() if mode == COMPILED else torch.inference_mode():
            self._prepare(mode, len(rows), given.shape[1] + new_tokens)
            clock = Clock(device)
            out = self._model(given, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
            written = [out.logits[:, -1:].argmax(-1)]
            clock.mark()
            for _ in range(new_tokens - 1):
                out = self._step(written[-1], past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
                written.append(out.logits[:, -1:].argmax(-1))
                clock.mark()
            return clock.run(torch.cat(written, dim=1).tolist())

    def forget(self) -> None:
        """Let go of cache and compiled code; torch's compiled code of all models goes, so that its few places are free for other shapes."""
        compiled = self._shape is not None and self._shape[0] == COMPILED
        self._shape = self._cache = self._step = None
        if compiled:
            import torch

            torch.compiler.reset()

    def _prepare(self, mode: str, batch: int, length: int) -> None:
        import torch
        from transformers import StaticCache

        if self._shape != (mode, batch, length):
            self.forget()
            self._shape = (mode, batch, length)
            self._cache = None if mode == EAGER else StaticCache(config=self._model.config, max_cache_len=length)
            self._step = self._model
            if mode == COMPILED:
                how = "reduce-overhead" if self._model.device.type == "cuda" else "default"
                self._step = torch.compile(self._model.forward, mode=how)  # numbers that change stay open: a sliding cache counts in one
        elif self._cache is not None:
            self._cache.reset()
