"""Take a protocol's numbers of one checkpoint: a base model's alone, or a variant's beside its base."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from hub.domain import LayerError, Measurement, Scalar, Scores
from hub.errors import Unavailable, Unstable
from hub.protocol import Protocol
from runners import energy, engines, entropy, environment, harness, memory, memory_use, metrics, quality, sizes, speed, texts
from runners.engines import Engine, Loaded
from runners.intervals import Estimate
from runners.layer_errors import layer_errors
from runners.observations import Observed, SpeedPoint, Windows
from runners.stages import Stages

_WORDS = "The quick brown fox jumps over the lazy dog. "  # what a model is shown where the protocol has no text
_PROMPT, _NEW = 32, 8  # tokens read and written to see that a model runs, where the protocol times nothing


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a measurement finds and leaves things; None: there is no such folder.

    `cache` outlives it: texts and the base's states are kept there. `data` holds local copies of texts and task data, `samples` takes what
    a model answered to each document of a task.
    """

    cache: Path | None = None
    data: Path | None = None
    samples: Path | None = None

    @property
    def texts(self) -> list[Path]:
        """The folders where a text may lie."""
        return [place for place in (self.cache / "texts" if self.cache else None, self.data) if place]


NOWHERE = Places()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found; the fields are those of `hub.domain.JobResult`."""

    measurements: tuple[Measurement, ...]
    layers: tuple[LayerError, ...] = ()
    scores: tuple[Scores, ...] = ()
    notes: tuple[str, ...] = ()
    state: Mapping[str, Scalar] = field(default_factory=dict)


def measure(
    folder: Path, base_folder: Path | None, protocol: Protocol, *, places: Places = NOWHERE, stages: Stages | None = None
) -> Measured:
    """Return what a protocol asks of a checkpoint folder.

    `base_folder` is the base of a variant, loaded in the variant's dtype and run beside it; None measures the folder for itself, without
    the metrics that compare. Memory is taken before the base is loaded; then the two are timed in turns.
    Texts and task data are looked at first, so that what is missing costs no work. Raises `BadCheckpoint` when a model cannot be loaded or
    run, `Unstable` when one predicts no finite numbers, `UnfitModel` when the protocol does not fit it.
    """
    stages = stages or Stages()
    before = environment.state()
    engine = engines.for_folder(folder)
    notes: list[str] = []
    with stages.stage("load"):
        text = texts.content(protocol.text, places.texts) if protocol.text else _WORDS
        texts.check(text)
        if protocol.tasks:
            harness.check(protocol.tasks, places.data)
        ids = speed.warm(engine, folder, text, _prompt(protocol), _longest(protocol))
        if protocol.quality:
            quality.starts(len(ids), protocol.quality)
        observed, loaded = _loads(engine, folder, protocol, ids, notes)
        base = _base(base_folder, loaded.dtype) if base_folder and _compares(protocol) else None
        if base and base_folder:
            engines.require_numbers(base, speed.prompt_of(ids, _prompt(protocol)), base_folder)
    if protocol.speed:
        with stages.stage("speed"):
            observed = replace(observed, speed=_curve(folder, loaded, base, protocol, ids, notes))
    usable = _usable(notes, paired=base_folder is not None)
    windows: Mapping[str, Windows] = {}
    scores: list[Scores] = []
    layers: tuple[LayerError, ...] = ()
    if protocol.quality:
        side = quality.Side(folder=folder, loaded=loaded)
        its = quality.Side(folder=base_folder, loaded=base) if base_folder and base else None
        by_window = {name: module for name, module in usable.items() if hasattr(module, "per_token")}
        with stages.stage("quality"):
            scored = quality.score(side, its, text, protocol.quality, by_window, cache=places.cache)
        windows, scores = scored.windows, [scored.scores]
        notes += scored.notes
        if base:
            with stages.stage("layers"):
                layers = tuple(layer_errors(folder, loaded, base))
    if protocol.tasks:
        with stages.stage("tasks"):
            answered = harness.run(loaded, folder, protocol.tasks, places.data, places.samples)
            observed = replace(observed, tasks=answered.results)
            scores += answered.scores
            notes += answered.notes
    at = datetime.now(UTC).isoformat(timespec="seconds")
    measurements = tuple(_measurements(usable, windows, observed, protocol, loaded.label, at))
    notes += _untold(observed, measurements)
    state = environment.between(before, environment.state())
    if protocol.speed and (busy := environment.busy(state, environment.cores())):
        notes.append(busy)
    return Measured(
        measurements=measurements,
        layers=layers,
        scores=tuple(scores),
        notes=tuple(dict.fromkeys(notes)),
        state=state,
    )


def _prompt(protocol: Protocol) -> int:
    return protocol.speed.contexts[0] if protocol.speed else _PROMPT


def _longest(protocol: Protocol) -> int:
    """Return the longest sequence that the protocol cannot do without: other points of its curves are left out where they do not fit."""
    timed = protocol.speed.contexts[0] + protocol.speed.new_tokens if protocol.speed else _PROMPT + _NEW
    return max(timed, protocol.quality.sequence_length if protocol.quality else 0)


def _compares(protocol: Protocol) -> bool:
    return protocol.quality is not None or protocol.speed is not None


def _base(folder: Path, dtype: str) -> Loaded:
    base = engines.load("transformers").load(folder, dtype=dtype)
    engines.require_sound(base, folder)
    return base


def _loads(engine: Engine, folder: Path, protocol: Protocol, ids: list[int], notes: list[str]) -> tuple[Observed, Loaded]:
    """Load the checkpoint to stay; with a section on memory as often as it says, with all that is known of size and memory."""
    if protocol.memory is None:
        return Observed(), engine.load(folder)
    prompt = speed.prompt_of(ids, _prompt(protocol))
    new_tokens = protocol.speed.new_tokens if protocol.speed else _NEW
    loads = memory_use.load_repeatedly(engine, folder, prompt, new_tokens, protocol.memory.loads)
    used = memory_use.by_context(loads.loaded, folder, protocol.memory, ids)
    notes += used.notes
    observed = Observed(
        disk_bytes=sizes.disk_bytes(folder),
        tensor_bytes=sizes.tensor_bytes(folder),
        coded_bytes=entropy.coded_bytes(folder),
        parameters=engine.count_parameters(folder),
        load_seconds=loads.seconds,
        peak_bytes=loads.peak_bytes,
        peak_grain=memory.GRAIN if loads.loaded.device == "cpu" else 0,
        weight_bytes=used.weights,
        memory=used.points,
    )
    return observed, loads.loaded


def _curve(
    folder: Path, loaded: Loaded, base: Loaded | None, protocol: Protocol, ids: list[int], notes: list[str]
) -> tuple[SpeedPoint, ...]:
    assert protocol.speed
    own, others = speed.curve(loaded, base, protocol.speed, ids), speed.elsewhere(folder, protocol.speed, ids)
    notes += [*own.notes, *others.notes]
    if reason := energy.why_not(loaded.device):
        notes.append(reason)
    return (*own.points, *others.points)


def _usable(notes: list[str], *, paired: bool) -> dict[str, ModuleType]:
    """Return the metrics that work here; a broken neighbour breaks nothing, and is noted."""
    wanted = [info for info in metrics.available() if paired or not info.paired]
    notes += [f"{info.name} was not measured: {info.reason.rstrip('.')}." for info in wanted if not info.available]
    usable = [info.name for info in wanted if info.available]
    if not usable:
        raise Unavailable("No metric can be loaded.", hint="Restore the files in runners/metrics.")
    return {name: metrics.load(name) for name in usable}


def _measurements(
    usable: Mapping[str, ModuleType], windows: Mapping[str, Windows], observed: Observed, protocol: Protocol, engine: str, at: str
) -> Iterator[Measurement]:
    for name, module in usable.items():
        if name in windows:
            found = module.summarize(windows[name])
        else:
            found = module.estimates(observed) if hasattr(module, "estimates") else ()
        for one in found:
            yield _measurement(name, module, one, protocol, engine, at)


def _untold(observed: Observed, measurements: Sequence[Measurement]) -> list[str]:
    """Return a sentence on each task of which no metric here makes a number."""
    told = {one.conditions.get("task") for one in measurements}
    lost = [result for result in observed.tasks if result.task not in told]
    return [f"{one.task}: no metric makes a number of {', '.join(one.estimates) or 'its scores'}." for one in lost]


def _measurement(name: str, module: ModuleType, found: Estimate, protocol: Protocol, engine: str, at: str) -> Measurement:
    if not all(math.isfinite(number) for number in (found.value, found.low, found.high, *found.percentiles.values())):
        raise Unstable(f"The model's {name} is {found.value}: it predicts no usable numbers.", hint="Press it again with another recipe.")
    return Measurement(
        metric=name,
        value=found.value,
        unit=module.UNIT,
        higher_is_better=module.HIGHER_IS_BETTER,
        ci_low=found.low,
        ci_high=found.high,
        interval=found.interval,
        samples=found.samples,
        protocol=protocol.name,
        engine=engine,
        measured_at=at,
        conditions=found.conditions,
        percentiles=found.percentiles,
        basis=found.basis,
    )
