"""The card's tables: each metric beside the base's, speed and memory by protocol and hardware, and how the intervals were found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from hub.domain import Measurement
from hub.history import BaseRecord, VariantRecord
from hub.protocol import Protocol
from leaderboard import overtaking, points, stats, text, words
from leaderboard.stats import Comparison, Estimate
from leaderboard.text import Markdown

NAMES = {
    "perplexity": "Perplexity",
    "perplexity_ratio": "Perplexity ratio to the base",
    "delta_perplexity": "Perplexity less the base's",
    "kl_divergence": "KL divergence from the base",
    "same_top_token": "Same most likely token as the base",
    "rms_delta_probability": "Change of the true token's probability (RMS)",
    "bits_per_byte": "Bits per byte of text",
    "prefill_tokens_per_second": "Prefill",
    "decode_tokens_per_second": "Decode",
    "load_time": "Load time",
    "prefill_speedup": "Prefill, variant / base",
    "decode_speedup": "Decode, variant / base",
    "energy_per_1k_tokens": "Energy per 1,000 tokens",
    "weight_memory": "Weights in memory",
    "peak_memory": "Peak memory above that before loading",
    "disk_size": "Size on disk",
    "bits_per_weight": "Bits per weight",
}
QUALITY = ("perplexity", "delta_perplexity", "kl_divergence", "same_top_token", "rms_delta_probability", "bits_per_byte")
_SPEED = ("prefill_tokens_per_second", "decode_tokens_per_second", "load_time", "energy_per_1k_tokens")
_MEMORY = ("weight_memory", "peak_memory")
Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Speed and memory under one protocol on one machine; `points` and `contexts` are rows of the curves.

    `place` says at which batch and context the numbers of `speed` were taken, `overtaken` at which batch the base is faster, `engine` and
    `base_engine` what ran (the base's only where it is another).
    """

    protocol: str | None
    hardware: str | None
    base_hardware: str | None
    engine: str
    base_engine: str
    place: str
    speed: list[Row]
    points: list[Row]
    overtaken: list[Markdown]
    in_turns: bool
    memory: list[Row]
    contexts: list[Row]
    words: list[str]


def benches(record: VariantRecord, base: BaseRecord, first: str | None, known: Mapping[str, Protocol]) -> list[Bench]:
    """Return what was measured of speed and memory: under the card's protocol first, then under each other one that timed the variant."""
    timed = {one.protocol for one in record.measurements if one.metric in (*points.SPEED, "peak_memory", "kv_cache_memory")}
    return [_bench(record, base, protocol, known, first) for protocol in (first, *sorted(timed - {first or ""}))]


def _bench(record: VariantRecord, base: BaseRecord, protocol: str | None, known: Mapping[str, Protocol], first: str | None) -> Bench:
    beside = stats.compare(record, base, protocol=protocol)
    definition = known.get(protocol or "")
    same = words.same_work(record.recipe, stats.compare(record, base).size)
    mine, theirs = (words.hardware(one.environment_under(protocol)) for one in (record, base))
    speed = definition.speed if definition else None
    own, other = (_engines(found.measurements, protocol) for found in (record, base))
    return Bench(
        protocol=protocol,
        hardware=mine,
        base_hardware=theirs if other and theirs != mine else None,
        engine=own,
        base_engine=other if stats.other_engine(record.measurements, base.measurements, protocol) else "",
        place=f"Batch {speed.batches[0]}, prompt of {speed.contexts[0]:,} tokens" if speed else "",
        speed=rows(record, base, beside, _SPEED),
        points=points.speed_rows(record.measurements, protocol),
        overtaken=[] if same else overtaking.sentences(record.measurements, protocol, speed),
        in_turns=beside.decode is not None or beside.prefill is not None,
        memory=rows(record, base, beside, ("disk_size", *_MEMORY, "bits_per_weight") if protocol == first else _MEMORY),
        contexts=points.memory_rows(record.measurements, base.measurements, protocol),
        words=[] if protocol == first else words.protocol_words(definition, protocol),
    )


def _engines(measurements: Sequence[Measurement], protocol: str | None) -> str:
    return ", ".join(sorted({one.engine for one in measurements if protocol in (None, one.protocol)}))


def rows(record: VariantRecord, base: BaseRecord, beside: Comparison, metrics: Sequence[str]) -> list[Row]:
    """Return name, the variant's number, the base's and their ratio for each of the metrics that the variant has."""
    ratios = {
        "perplexity": beside.perplexity_ratio,
        "disk_size": beside.size,
        "decode_tokens_per_second": beside.decode,
        "prefill_tokens_per_second": beside.prefill,
        "peak_memory": beside.memory,
        "load_time": beside.load,
    }
    found: list[Row] = []
    for metric in metrics:
        if mine := stats.find(record.measurements, metric, beside.protocol):
            theirs = stats.find(base.measurements, metric, beside.protocol)
            against = shown(ratios[metric], text.times, "not compared") if metric in ratios else "–"
            found.append((NAMES[metric], value(mine), value(theirs) if theirs else "–", against))
    return found


def shown(estimate: Estimate | None, say: Callable[[Estimate], str], missing: str = "not measured") -> str:
    """Return an estimate in words, or that there is none."""
    return say(estimate) if estimate else missing


def value(measurement: Measurement) -> str:
    """Return a measured number with its uncertainty and unit; a share as per cent."""
    if measurement.metric == "same_top_token":
        return f"{text.uncertain(Estimate.of(measurement), scale=100)} %"
    return text.quantity(Estimate.of(measurement), measurement.unit)


def intervals(record: VariantRecord, protocol: str | None) -> list[str]:
    """Return how the intervals were found and their level, each way once with the metrics that it holds for."""
    ways: dict[str, list[str]] = {}
    for metric, name in NAMES.items():
        found = stats.find(record.measurements, metric, protocol)
        if found and found.ci_low != found.ci_high:
            ways.setdefault(found.interval, []).append(name)
    for one in record.measurements:
        if one.metric in points.TASKS and "task" in one.conditions:
            way = one.interval.partition(";")[0]  # lm-eval's own standard error, one for each number, stands in the data
            ways.setdefault(way, []).append(f"{one.conditions['task']}, {points.TASKS[one.metric]}")
    return [f"{way}: {'; '.join(dict.fromkeys(held))}" for way, held in ways.items()]
