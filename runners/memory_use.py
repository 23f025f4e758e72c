"""What a checkpoint takes in memory: its loads, and its weights, KV cache and activations apart at each context length.

A prompt of each length is read in one pass with batch 1. transformers keeps the logits of the last token alone, as generation does, so
the vocabulary adds one row to the peak; ONNX Runtime and OpenVINO give logits after every token, and those are part of it.
What a library keeps from its first pass on (workspaces, compiled kernels) is in none of the parts.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from hub.protocol import Memory
from runners import memory, memory_formula
from runners.checkpoint import read_config
from runners.engines import Engine, Loaded
from runners.intervals import Estimate, centre, exact, widened
from runners.memory_formula import Curve
from runners.memory_pass import Pass, subject
from runners.memory_sweep import Sweep
from runners.observations import MemoryPoint

_UNLIMITED = 2**31  # the context length of a model that states none


@dataclass(frozen=True, kw_only=True)
class Loads:
    """The loads of a checkpoint: seconds and peak bytes of each (none where the system tells none), and the last one, still in memory."""

    loaded: Loaded
    seconds: tuple[float, ...]
    peak_bytes: tuple[float, ...]


def load_repeatedly(engine: Engine, folder: Path, prompt_ids: Sequence[int], new_tokens: int, loads: int) -> Loads:
    """Load `loads` times, and read and write once after each load.

    The seconds are of the load alone; the peak is of load and run, above what was held before it where the model runs: not every engine
    runs on the GPU that is there.
    """
    if loads < 1:
        raise ValueError(f"a checkpoint is loaded at least once, not {loads} times")
    seconds: list[float] = []
    peaks: list[float] = []
    for _ in range(loads):
        loaded = None  # what the last turn loaded goes before the next one comes
        meters = memory.meters()
        start = time.perf_counter()
        loaded = engine.load(folder)
        seconds.append(time.perf_counter() - start)
        loaded.time_generation(prompt_ids, new_tokens)
        if (meter := meters[loaded.device]).works:
            peaks.append(meter.growth())
    assert loaded is not None
    return Loads(loaded=loaded, seconds=tuple(seconds), peak_bytes=tuple(peaks))


class Use(NamedTuple):
    """Bytes of the weights (None where nothing tells them), a point for each context by rising length, and what was not measured."""

    weights: Estimate | None
    points: tuple[MemoryPoint, ...]
    notes: tuple[str, ...]


def by_context(loaded: Loaded, folder: Path, section: Memory, ids: Sequence[int]) -> Use:
    """Return what a loaded checkpoint takes in memory, its parts by context length.

    Measured are the section's contexts that the model takes and the memory holds, or else the longest that the model takes; `ids` (any
    tokens of its vocabulary) are repeated to that length. The powers of two between and beyond them, up to the model's own context
    length, are estimated. On a CPU the bytes are of resident memory without the gaps that the C library leaves between blocks
    (`memory.tight`); the peaks of `load_repeatedly` have them.
    """
    asked = subject(loaded, folder)
    if asked is None:
        return Use(None, (), (f"Memory was not measured by context: {loaded.label} does not tell what it takes.",))
    sweep = Sweep(asked, read_config(folder), ids, loaded.context_length)
    with memory.tight():
        sweep.measure(section.contexts)
    weights, cache = asked.weights(), _Cache(sweep)
    activations = {tokens: _activations(passes, cache.at(tokens)) for tokens, passes in sweep.passes.items()}
    curve = memory_formula.curve({tokens: one.value for tokens, one in activations.items() if one is not None}, asked.degrees)
    points = [_measured(tokens, passes, cache.at(tokens), activations[tokens], weights) for tokens, passes in sweep.passes.items()]
    wanted = _unmeasured(sweep, section.contexts)
    points += [_estimated(tokens, cache.at(tokens), _by_curve(curve, tokens) if curve else None, weights) for tokens in wanted]
    if loaded.device == "cpu":
        points = [_with_grain(point) for point in points]
    notes = (*sweep.notes, _on_formula(curve, activations.values()), *_on_logits(asked.all_logits))
    return Use(weights, tuple(sorted(points, key=lambda point: point.context)), notes)


def _with_grain(point: MemoryPoint) -> MemoryPoint:
    """Return a point whose intervals hold in another process too: passes in one process agree better than processes do."""
    grain, why = memory.TIGHT_GRAIN, "the 2 MiB by which processes differ"
    activations, peak = (one and widened(one, grain, why) for one in (point.activations, point.peak))
    return replace(point, activations=activations, peak=peak)


class _Cache:
    """The KV cache at any context: as measured, by the formula where all that was measured agrees with it, else by a line through that."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._seen = {tokens: passes[0].cache for tokens, passes in sweep.passes.items() if passes[0].cache is not None}
        self._agrees = all(self._formula(tokens) == value for tokens, value in self._seen.items())
        self._line = None if self._agrees else memory_formula.curve(self._seen, (1,))

    def at(self, tokens: int) -> Estimate | None:
        """Return the bytes; None where neither measurement nor formula tells them."""
        if tokens in self._seen:
            return replace(exact(self._seen[tokens]), interval="exact, bytes of the cache's tensors")
        if self._line:
            return _by_curve(self._line, tokens)
        value = self._formula(tokens)
        if value is None or not self._agrees:
            return None
        said = f", which {len(self._seen)} measured contexts equal" if self._seen else ""
        return replace(exact(value), interval=f"formula {memory_formula.CACHE}{said}", basis="estimated")

    def _formula(self, tokens: int) -> float | None:
        found = memory_formula.cache_bytes(self._sweep.config, tokens, self._sweep.asked.cache_item)
        return None if found is None else float(found)


def _activations(passes: Sequence[Pass], cache: Estimate | None) -> Estimate | None:
    """What the passes took beside the cache; without a cache, all that they took."""
    growths = [one.growth for one in passes if one.growth is not None]
    if not growths:
        return None
    kept = cache.value if cache else 0.0
    return replace(centre([max(0.0, growth - kept) for growth in growths], of="passes"), basis=cache.basis if cache else "measured")


def _measured(
    tokens: int, passes: Sequence[Pass], cache: Estimate | None, activations: Estimate | None, weights: Estimate | None
) -> MemoryPoint:
    growths = [one.growth for one in passes if one.growth is not None]
    peak = centre([weights.value + growth for growth in growths], of="passes") if weights and growths else None
    return MemoryPoint(
        context=tokens,
        kv_cache=cache,
        activations=activations,
        peak=peak,
        reserved=_told([one.reserved for one in passes]),
        process=_told([one.process for one in passes]),
        device=_told([one.device for one in passes]),
    )


def _told(values: Sequence[float | None]) -> Estimate | None:
    told = [value for value in values if value is not None]
    return centre(told, of="passes") if told else None


def _estimated(tokens: int, cache: Estimate | None, activations: Estimate | None, weights: Estimate | None) -> MemoryPoint:
    peak = None
    if weights and activations:
        parts = [part for part in (weights, cache, activations) if part]
        peak = replace(
            activations,
            value=sum(part.value for part in parts),
            low=sum(part.low for part in parts),
            high=sum(part.high for part in parts),
            interval=f"weights, cache and activations together; activations: {activations.interval}",
        )
    return MemoryPoint(context=tokens, kv_cache=cache, activations=activations, peak=peak)


def _by_curve(curve: Curve, tokens: int) -> Estimate:
    value = curve.at(tokens)
    return Estimate(
        value=value,
        low=max(0.0, value * (1 - curve.error)),
        high=value * (1 + curve.error),
        interval=(
            f"formula {curve.words} by least squares through {curve.points} measured contexts; the interval is its error "
            f"of {curve.error:.1%} at {curve.held_out} tokens, held out"
        ),
        samples=curve.points,
        basis="estimated",
    )


def _unmeasured(sweep: Sweep, contexts: Sequence[int]) -> list[int]:
    """The section's contexts that the model takes, the powers of two from the shortest measured on, and the model's own context length."""
    if not sweep.passes:
        return []
    own = sweep.limit if sweep.limit < _UNLIMITED else max(contexts)
    powers = {1 << bit for bit in range(own.bit_length()) if min(sweep.passes) < 1 << bit < own}
    wanted = powers | {tokens for tokens in contexts if tokens <= own} | {own}
    return sorted(wanted - sweep.passes.keys())


def _on_formula(curve: Curve | None, activations: Collection[Estimate | None]) -> str:
    if activations and not any(activations):
        return "Activations and peak memory were not measured: the system does not let the peak of resident memory begin anew."
    if curve is None:
        return "Too few contexts were measured for a formula of the activations: no context is estimated."
    return (
        f"Between the measured contexts activations are {curve.words}, T the context in tokens; made without {curve.held_out} tokens, "
        f"the formula misses what was measured there by {curve.error:.1%}."
    )


def _on_logits(all_logits: bool) -> tuple[str, ...]:
    return ("The engine gives logits after every token of a prompt; they are part of the activations.",) if all_logits else ()
