"""Speed as a curve: timed runs of a model, and of its base in turns with it, over mode × batch × context."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

from hub.errors import BadCheckpoint, BadDocument, ModelPressError, OutOfMemory, UnfitModel, Unstable
from hub.protocol import Speed
from runners import energy, engines, failures, memory
from runners.energy import Meter
from runners.engines import Engine, Loaded
from runners.observations import Run, SpeedPoint

MOST = 50
"""No point is run more than so many times the protocol's `repeats`, however short its runs."""
PATIENCE = 600.0
"""Seconds after which a point's warm-up, and its timed turns, end with the round that they are in, however many were asked for."""
LONGEST = 300.0
"""Seconds that one run may be expected to take; beyond that a point is left out, but never the first one."""
_WORDS = 8  # tokens by which a model shows that it writes something


class Curve(NamedTuple):
    """The points that were timed, the headline first, and sentences on those that were not, or not as asked for."""

    points: tuple[SpeedPoint, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A point before it is timed; `base_mode` is the base's, which may lack the model's."""

    mode: str
    base_mode: str
    batch: int
    context: int
    headline: bool

    def __str__(self) -> str:
        return f"mode {self.mode}, batch {self.batch}, context {self.context}"


def warm(engine: Engine, folder: Path, text: str, prompt_tokens: int, longest: int) -> list[int]:
    """Load and run once, so that libraries are imported and files cached, and forget the model; return the token ids of the whole text.

    `prompt_tokens` of them are read for it, `longest` is the longest sequence that the protocol cannot do without. Raises `BadCheckpoint`
    for a model that loads wrongly, does not run, or writes nothing but ends of text; `Unstable` for one that predicts NaN; `UnfitModel`
    where its context is too short; `BadDocument` for an empty text.
    """
    loaded = engine.load(folder)
    engines.require_sound(loaded, folder)
    if loaded.context_length < longest:
        raise UnfitModel(
            f"{folder.name} takes {loaded.context_length} tokens; the protocol needs {longest}.",
            hint="Measure with a protocol of shorter sequences.",
        )
    ids = loaded.encode(text)
    if not ids:
        raise BadDocument("The text is empty: there is nothing to read.", hint="Give a text.")
    prompt = prompt_of(ids, prompt_tokens)
    try:
        engines.require_numbers(loaded, prompt, folder)
        loaded.time_generation(prompt, 2)
        written = loaded.generate(prompt, _WORDS)
    except Unstable:
        raise
    except Exception as error:  # kernels refuse shapes only when they run
        if failures.out_of_memory(error):
            raise
        raise BadCheckpoint(
            f"{folder.name} loads but does not run: {type(error).__name__}: {failures.one_line(error)}",
            hint="This engine's kernels do not take the model's shapes in this format; press it with another recipe.",
        ) from error
    if set(written) <= loaded.end_tokens:
        raise BadCheckpoint(
            f"{folder.name} generates nothing: given {len(prompt)} tokens of text it writes {'an end of text' if written else 'no token'}.",
            hint="Press it again with another recipe.",
        )
    return ids


def prompt_of(ids: Sequence[int], tokens: int) -> list[int]:
    """Return the first tokens of a text; where it has fewer, it is repeated, as the time does not depend on what is read."""
    return (list(ids) * -(-tokens // len(ids)))[:tokens]


def curve(loaded: Loaded, base: Loaded | None, section: Speed, ids: Sequence[int]) -> Curve:
    """Time each mode × batch × context of the section that fits; `ids` is the text, cut (or repeated) to each context.

    At each point the first warm-up run, of which there is at least one, finds what cannot be run. Then model and base run in turns, each
    going first as often as the other, until both the section's `repeats` and its `seconds` are reached, or `MOST` times the repeats, or
    `PATIENCE` is over. The base runs in the model's mode where its engine has it, else in its plain one. A point that fails, that is
    expected to take longer than `LONGEST` a run, or that has fewer runs than asked for is a note.

    Raises what the first point (first mode, batch, context) fails with: `UnfitModel`, `OutOfMemory` as the system says it, `BadCheckpoint`.
    """
    models = [loaded] if base is None else [loaded, base]
    meters = {model.device: energy.meter(model.device) for model in models}
    points: list[SpeedPoint] = []
    unmetered: list[_Place] = []
    left_out: dict[str, list[_Place]] = {}
    notes: list[str] = []
    for place in _places(section, base):
        reason = _unfit(place, models, section) or _slow(place, points)
        if not reason:
            try:
                points.append(_point(place, models, meters, section, prompt_of(ids, place.context)))
            except Exception as error:  # compilers and kernels raise classes of their own
                if place.headline:
                    raise _named(error, place) from error
                reason = _reason(error)
            _free(models)  # not in the except: there the error still holds on to the tensors of its frames
        if reason and place.headline:
            raise UnfitModel(f"The protocol's first point of speed ({place}) cannot be timed: {reason}.", hint="Use another protocol.")
        if reason:
            left_out.setdefault(reason, []).append(place)
            continue
        if base and place.base_mode != place.mode:
            notes.append(f"In the mode {place.mode} the base ran in its mode {place.base_mode}: it has no {place.mode}.")
        if (count := len(points[-1].runs)) < section.repeats:
            notes.append(f"Speed has {count} runs at {place}, not {section.repeats}: a point is given {PATIENCE:.0f} s.")
        if meters[loaded.device] and all(run.joules is None for run in points[-1].runs):
            unmetered.append(place)
    if base and base.device != loaded.device:
        notes.append(f"The model ran on {loaded.device}, its base on {base.device}: ratios of their speed are of two devices.")
    if unmetered:
        notes.append(f"Energy was not measured at {_together(unmetered)}: its counter is too coarse for runs this short.")
    notes += [f"Speed was not measured at {_together(places)}: {reason}." for reason, places in left_out.items()]
    return Curve(tuple(points), tuple(dict.fromkeys(notes)))


def elsewhere(folder: Path, section: Speed, ids: Sequence[int]) -> Curve:
    """Time a checkpoint in the other installed engines that only time (see `engines.timing_only`), each under the mode of its name.

    The base is not beside it, so these points have no ratio: such an engine takes for itself what memory it finds free.
    """
    points: list[SpeedPoint] = []
    notes: list[str] = []
    for name in engines.timing_only(folder):
        try:
            found = _alone(name, folder, section, ids)
        except Exception as error:  # an engine that cannot is no reason to lose the others' numbers
            notes.append(f"Speed was not measured in the engine {name}: {_reason(error)}.")
        else:
            points += [replace(point, headline=False) for point in found.points]
            notes += found.notes
        memory.release()  # the engine ends with its last reference, and what is measured next needs the GPU's memory
    return Curve(tuple(points), tuple(notes))


def _alone(name: str, folder: Path, section: Speed, ids: Sequence[int]) -> Curve:
    loaded = engines.load(name).load(folder)
    return curve(loaded, None, replace(section, modes=loaded.modes), ids)


def turns(repeats: int, seconds: float, *, step: int = 1, clock: Callable[[], float] = time.perf_counter) -> Iterator[int]:
    """Count turns from 0 until there were `repeats`, `seconds` have gone by, and the count is a multiple of `step`.

    It ends at `MOST` times the repeats or after `PATIENCE` (rounded up to a multiple of `step`, one at least) at the latest.
    """
    start = clock()
    turn = 0
    while True:
        gone = clock() - start
        enough = turn >= repeats and (gone >= seconds or turn >= MOST * repeats)
        if turn % step == 0 and (enough or (turn and gone >= PATIENCE)):
            return
        yield turn
        turn += 1


def _places(section: Speed, base: Loaded | None) -> Iterator[_Place]:
    for number, (mode, batch, context) in enumerate(product(section.modes, section.batches, section.contexts)):
        base_mode = mode if base is None or mode in base.modes else base.modes[0]
        yield _Place(mode=mode, base_mode=base_mode, batch=batch, context=context, headline=number == 0)


def _unfit(place: _Place, models: Sequence[Loaded], section: Speed) -> str:
    """Return why a point is not even tried, in words that many points share; empty where it is."""
    if place.mode not in models[0].modes:
        return f"{models[0].label} has no mode {place.mode}"
    most = min(model.max_batch for model in models)
    if place.batch > most:
        return f"the engine runs {most} sequence{'s' * (most > 1)} together at most"
    length = place.context + section.new_tokens
    longest = min(model.context_length for model in models)
    if length > longest:
        return f"with {section.new_tokens} new tokens it is longer than the model's {longest} tokens"
    # A GPU says when its memory is out; a system takes memory that it does not have, and ends the process that used it.
    if place.batch * length * sum(model.bytes_per_token for model in models if model.device == "cpu") > memory.available():
        return "this machine has not the memory"
    return ""


def _slow(place: _Place, points: Sequence[SpeedPoint]) -> str:
    """Return why a point would take too long, going by the nearest smaller one: reading takes as much longer as there are more tokens."""
    smaller = [point for point in points if point.batch <= place.batch and point.context <= place.context]
    nearest = max(smaller, key=lambda point: point.batch * point.context, default=None)
    if nearest is None:
        return ""
    more = place.batch * place.context / (nearest.batch * nearest.context)
    seconds = max(run.prefill_seconds * more + run.decode_seconds for run in (nearest.runs[-1], *nearest.base_runs[-1:]))
    return f"one run may take more than {LONGEST:.0f} s" if seconds > LONGEST else ""


def _point(
    place: _Place, models: Sequence[Loaded], meters: Mapping[str, Meter | None], section: Speed, prompt: Sequence[int]
) -> SpeedPoint:
    modes = (place.mode, place.base_mode)

    def timed(model: Loaded, mode: str) -> Run:
        meter = meters[model.device]
        before = meter.joules() if meter else None
        run = model.time_generation(prompt, section.new_tokens, batch=place.batch, mode=mode)
        after = meter.joules() if meter else None
        if meter is None or before is None or after is None or run.prefill_seconds + run.decode_seconds < meter.shortest:
            return run
        return replace(run, joules=after - before)

    for _ in turns(max(1, section.warmup), 0.0):
        for model, mode in zip(models, modes, strict=False):
            model.time_generation(prompt, section.new_tokens, batch=place.batch, mode=mode)
    runs: list[list[Run]] = [[] for _ in models]
    for turn in turns(section.repeats, section.seconds, step=len(models)):
        for number in _order(len(models), turn):
            runs[number].append(timed(models[number], modes[number]))
    own, others = (*runs, [])[:2]
    return SpeedPoint(
        mode=place.mode, batch=place.batch, context=place.context, headline=place.headline, runs=tuple(own), base_runs=tuple(others)
    )


def _order(count: int, turn: int) -> Iterable[int]:
    """Return who goes when: at every other turn the other way round."""
    return range(count) if turn % 2 == 0 else reversed(range(count))


def _named(error: Exception, place: _Place) -> Exception:
    """Return the error of the headline point as one that says what to do; what says that memory is out stays as it is."""
    if isinstance(error, ModelPressError) or failures.out_of_memory(error):
        return error
    return BadCheckpoint(
        f"The model does not run at {place}: {type(error).__name__}: {failures.one_line(error)}",
        hint="This engine's kernels do not take the model's shapes in this format; press it with another recipe.",
    )


def _reason(error: Exception) -> str:
    if failures.out_of_memory(error) or isinstance(error, OutOfMemory):
        return "memory ran out"
    return f"{type(error).__name__}: {failures.one_line(error)}".rstrip(".")


def _together(places: Sequence[_Place]) -> str:
    """Return points in words: by what they have in common where they are all of its combinations, else one by one."""
    modes, batches, contexts = (
        list(dict.fromkeys(values)) for values in zip(*((place.mode, place.batch, place.context) for place in places), strict=True)
    )
    if 1 < len(places) == len(modes) * len(batches) * len(contexts):
        named = {"mode": modes, "batch": batches, "context": contexts}
        return ", ".join(f"{name} {' or '.join(map(str, values))}" for name, values in named.items())
    return "; ".join(map(str, places))


def _free(models: Sequence[Loaded]) -> None:
    """Let go of all that the last point took, so that the next one has the memory."""
    for model in models:
        model.forget()
    memory.release()
    if any(model.device == "cuda" for model in models):
        import torch

        torch.cuda.empty_cache()
