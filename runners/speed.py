"""Loads and timed runs of one checkpoint."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hub.domain import Protocol
from hub.errors import BadCheckpoint, UnfitModel
from runners import failures, memory
from runners.engines import Engine, Loaded

_MOST_LOADS = 3


@dataclass(frozen=True, kw_only=True)
class Loads:
    """The loads of a checkpoint: seconds and peak bytes of each, and the last one, still in memory."""

    loaded: Loaded
    seconds: tuple[float, ...]
    peak_bytes: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Runs:
    """Seconds of each repeat, and by pair of neighbouring runs the base's time over the model's (empty without a base)."""

    prefill_seconds: tuple[float, ...]
    decode_seconds: tuple[float, ...]
    prefill_speedups: tuple[float, ...]
    decode_speedups: tuple[float, ...]


def warm(engine: Engine, folder: Path, protocol: Protocol) -> list[int]:
    """Load and run once, so that libraries are imported and files cached, and forget the model; return the prompt's token ids.

    Raises `BadCheckpoint` for a model that loads wrongly or does not run, `UnfitModel` where its context is too short.
    """
    from runners.quality import read_text

    loaded = engine.load(folder)
    if loaded.defects:
        raise BadCheckpoint(f"{folder.name} loads, but wrongly: {'; '.join(loaded.defects)}.", hint="Press it again with another recipe.")
    longest = max(protocol.sequence_length, protocol.prompt_tokens + protocol.new_tokens)
    if loaded.context_length < longest:
        raise UnfitModel(
            f"{folder.name} takes {loaded.context_length} tokens; the protocol {protocol.name} needs {longest}.",
            hint="Measure with a protocol of a shorter sequence_length.",
        )
    prompt = loaded.encode(read_text(protocol))[: protocol.prompt_tokens]
    try:
        loaded.time_generation(prompt, 2)
    except Exception as error:  # kernels refuse shapes only when they run
        if failures.out_of_memory(error):
            raise
        raise BadCheckpoint(
            f"{folder.name} loads but does not run: {type(error).__name__}: {str(error).strip()[:300]}",
            hint="This engine's kernels do not take the model's shapes in this format; press it with another recipe.",
        ) from error
    return prompt


def load_repeatedly(engine: Engine, folder: Path, protocol: Protocol, prompt: Sequence[int]) -> Loads:
    """Load as often as the protocol repeats, three times at most, and read and write once after each load.

    The seconds are of the load alone; the peak is of load and run, above what the process held before it.
    """
    seconds: list[float] = []
    peaks: list[float] = []
    for _ in range(min(protocol.repeats, _MOST_LOADS)):
        loaded = None  # what the last turn loaded goes before the next one comes
        meter = _Meter()
        start = time.perf_counter()
        loaded = engine.load(folder)
        seconds.append(time.perf_counter() - start)
        loaded.time_generation(prompt, protocol.new_tokens)
        peaks.append(meter.growth())
    assert loaded is not None
    return Loads(loaded=loaded, seconds=tuple(seconds), peak_bytes=tuple(peaks))


def time_runs(loaded: Loaded, base: Loaded | None, protocol: Protocol, prompt: Sequence[int]) -> Runs:
    """Time the protocol's repeats after its warm-up runs; with a base beside it the two take turns, each going first as often.

    A machine drifts by tens of per cent between two processes, and hardly between two neighbouring runs.
    """
    models = [loaded] if base is None else [loaded, base]
    for _ in range(protocol.warmup):
        for model in models:
            model.time_generation(prompt, protocol.new_tokens)
    own: list[tuple[float, float]] = []
    others: list[tuple[float, float]] = []
    for turn in range(protocol.repeats):
        for model in models if turn % 2 == 0 else reversed(models):
            (own if model is loaded else others).append(model.time_generation(prompt, protocol.new_tokens))
    return Runs(
        prefill_seconds=tuple(run[0] for run in own),
        decode_seconds=tuple(run[1] for run in own),
        prefill_speedups=tuple(theirs[0] / mine[0] for mine, theirs in zip(own, others, strict=False)),
        decode_speedups=tuple(theirs[1] / mine[1] for mine, theirs in zip(own, others, strict=False)),
    )


class _Meter:
    """Peak memory above what is held when the meter is made: on the CUDA device where there is one, else resident memory."""

    def __init__(self) -> None:
        import torch

        memory.release()
        self.cuda = torch.cuda.is_available()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.before = int(torch.cuda.memory_allocated())
        else:
            memory.reset_peak()
            self.before = memory.resident()

    def growth(self) -> float:
        if self.cuda:
            import torch

            return float(torch.cuda.max_memory_allocated() - self.before)
        return float(max(0, memory.peak() - self.before))
