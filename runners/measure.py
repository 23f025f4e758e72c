"""Take a protocol's numbers of one checkpoint: a base model's alone, or a variant's beside its base."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from hub.domain import LayerError, Measurement, Protocol
from hub.errors import BadCheckpoint, Unavailable
from runners import engines, entropy, metrics, quality, sizes, speed
from runners.engines import Loaded
from runners.intervals import Estimate
from runners.layer_errors import layer_errors
from runners.observations import Observed
from runners.stages import Stages


def measure(
    folder: Path,
    base_folder: Path | None,
    protocol: Protocol,
    *,
    stages: Stages | None = None,
    layers: list[LayerError] | None = None,
) -> tuple[Measurement, ...]:
    """Return all measurements of a checkpoint folder, one a metric, sorted by name; a variant's layer errors are added to `layers`.

    `base_folder` is the base of a variant, loaded in the variant's dtype and run beside it window by window; None measures the folder
    for itself, without the metrics that compare. Memory is taken before the base is loaded; then the two are timed in turns.
    Raises `BadCheckpoint` when a model cannot be loaded or predicts no finite number, `UnfitModel` when the protocol does not fit it.
    """
    stages = stages or Stages()
    wanted = _wanted(paired=base_folder is not None)
    engine, transformers = engines.for_folder(folder), engines.load("transformers")
    with stages.stage("load"):
        prompt = speed.warm(engine, folder, protocol)
        loads = speed.load_repeatedly(engine, folder, protocol, prompt)
        base = transformers.load(base_folder, dtype=loads.loaded.dtype) if base_folder else None
    with stages.stage("speed"):
        runs = speed.time_runs(loads.loaded, base, protocol, prompt)
    with stages.stage("quality"):
        windows = _quality(loads.loaded, base, protocol, wanted)
    if base and layers is not None:
        with stages.stage("layers"):
            layers.extend(layer_errors(folder, loads.loaded, base))
    observed = Observed(
        prompt_tokens=len(prompt),
        new_tokens=protocol.new_tokens,
        prefill_seconds=runs.prefill_seconds,
        decode_seconds=runs.decode_seconds,
        prefill_speedups=runs.prefill_speedups,
        decode_speedups=runs.decode_speedups,
        load_seconds=loads.seconds,
        peak_bytes=loads.peak_bytes,
        disk_bytes=sizes.disk_bytes(folder),
        tensor_bytes=sizes.tensor_bytes(folder),
        coded_bytes=entropy.coded_bytes(folder),
        parameters=engine.count_parameters(folder),
        windows=windows,
    )
    at = datetime.now(UTC).isoformat(timespec="seconds")
    return tuple(_measurement(name, module, observed, protocol, loads.loaded.label, at) for name, module in wanted.items())


def _wanted(*, paired: bool) -> dict[str, ModuleType]:
    """Return the metrics that work here; a broken neighbour breaks nothing."""
    usable = [info.name for info in metrics.available() if info.available and (paired or not info.paired)]
    if not usable:
        raise Unavailable("No metric can be loaded.", hint="Restore the files in runners/metrics.")
    return {name: metrics.load(name) for name in usable}


def _quality(loaded: Loaded, base: Loaded | None, protocol: Protocol, wanted: dict[str, ModuleType]) -> dict[str, tuple[float, ...]]:
    text = quality.read_text(protocol)
    ids = loaded.encode(text)
    if base and base.encode(text) != ids:
        raise BadCheckpoint(
            "The variant's tokenizer cuts the text into other tokens than its base's.",
            hint="Press it again: the base's tokenizer belongs beside it.",
        )
    scored = {name: module for name, module in wanted.items() if hasattr(module, "per_token")}
    return quality.score(loaded, base, quality.windows(ids, protocol), scored)


def _measurement(name: str, module: ModuleType, observed: Observed, protocol: Protocol, engine: str, at: str) -> Measurement:
    try:
        found: Estimate = module.summarize(observed.windows[name]) if name in observed.windows else module.estimate(observed)
    except OverflowError:
        found = Estimate(value=math.inf, low=math.inf, high=math.inf, interval="", samples=0)
    if not all(math.isfinite(number) for number in (found.value, found.low, found.high)):
        raise BadCheckpoint(
            f"The model's {name} is {found.value}: it predicts no usable numbers.", hint="Press it again with another recipe."
        )
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
    )
