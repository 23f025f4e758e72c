"""What may be said about measured numbers: ratios with their uncertainty, tie groups, ranks, the Pareto front.

Two numbers *can be told apart* when their 95 % intervals do not overlap. That is stricter than a test of the
difference, so a claimed order is never weaker than it looks; what cannot be told apart is never ordered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hub.domain import Measurement
from hub.history import BaseRecord, VariantRecord

QUALITY = ("perplexity", "perplexity_ratio", "kl_divergence")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with the 95 % interval around it and its direction; an exact number has `low == value == high`."""

    value: float
    low: float
    high: float
    higher_is_better: bool = False

    @classmethod
    def of(cls, measurement: Measurement) -> Estimate:
        """Take value, interval and direction from a measurement."""
        return cls(
            value=measurement.value,
            low=min(measurement.ci_low, measurement.value),
            high=max(measurement.ci_high, measurement.value),
            higher_is_better=measurement.higher_is_better,
        )

    @property
    def half_width(self) -> float:
        """The larger of the two distances from the value to the ends of the interval."""
        return max(self.high - self.value, self.value - self.low)

    @property
    def exact(self) -> bool:
        """Whether the interval has no width."""
        return self.half_width == 0


def distinguishable(first: Estimate, second: Estimate) -> bool:
    """Return whether the two intervals do not overlap; two exact numbers differ when they are not equal."""
    return first.high < second.low or second.high < first.low


def surely_better(first: Estimate, second: Estimate) -> bool:
    """Return whether `first` can be told apart from `second` and lies on the better side."""
    return first.low > second.high if first.higher_is_better else first.high < second.low


def tie_groups(estimates: Sequence[Estimate]) -> list[list[int]]:
    """Return the positions of the rows in groups, best group first; rows of one group are not ordered.

    Groups are the connected components of "cannot be told apart": a chain of overlapping intervals is one group,
    so no two rows that overlap ever stand in different groups. Inside a group positions are in the order given.
    """
    order = sorted(range(len(estimates)), key=lambda index: (estimates[index].low, estimates[index].high))
    groups: list[list[int]] = []
    reach = -math.inf
    for index in order:
        if groups and estimates[index].low <= reach:
            groups[-1].append(index)
        else:
            groups.append([index])
        reach = max(reach, estimates[index].high)
    if estimates and estimates[0].higher_is_better:
        groups.reverse()
    return [sorted(group) for group in groups]


def ranks(estimates: Sequence[Estimate]) -> list[int]:
    """Return one rank for each row, 1 for the best; rows of a tie group share theirs (1, 1, 3)."""
    result = [0] * len(estimates)
    rank = 1
    for group in tie_groups(estimates):
        for index in group:
            result[index] = rank
        rank += len(group)
    return result


def pareto_front(points: Sequence[Sequence[Estimate]]) -> list[int]:
    """Return the positions of the points that no other point beats; every point holds one estimate for each axis.

    A point is beaten when another is at least as good by value on every axis and surely better on one.
    """
    return [index for index, point in enumerate(points) if not any(_beats(other, point) for other in points)]


def _beats(other: Sequence[Estimate], point: Sequence[Estimate]) -> bool:
    pairs = list(zip(other, point, strict=True))
    no_worse = all(a.value >= b.value if a.higher_is_better else a.value <= b.value for a, b in pairs)
    return no_worse and any(surely_better(a, b) for a, b in pairs)


def ratio(measured: Measurement, reference: Measurement) -> Estimate | None:
    """Return measured / reference with its interval, both taken as independent; None where either is not positive.

    The half-widths are combined as relative errors on the logarithm (first-order error propagation).
    """
    above, below = Estimate.of(measured), Estimate.of(reference)
    if min(above.low, below.low, above.value, below.value) <= 0:
        return None
    spread = math.hypot(math.log(above.high / above.low) / 2, math.log(below.high / below.low) / 2)
    value = above.value / below.value
    return Estimate(value=value, low=value * math.exp(-spread), high=value * math.exp(spread), higher_is_better=measured.higher_is_better)


def headlines(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Return the numbers that stand for their metric: those without conditions, which are no points of a curve."""
    return [m for m in measurements if not m.conditions]


def find(measurements: Iterable[Measurement], metric: str, protocol: str | None = None) -> Measurement | None:
    """Return the newest headline number of a metric, under one protocol if it is given."""
    matching = [m for m in headlines(measurements) if m.metric == metric and protocol in (None, m.protocol)]
    return max(matching, key=lambda m: m.measured_at, default=None)


def curve(measurements: Iterable[Measurement], metric: str, protocol: str | None = None) -> list[Measurement]:
    """Return the points of a metric's curve, the newest of each, in order of their conditions; without the headline number."""
    matching = [m for m in measurements if m.conditions and m.metric == metric and protocol in (None, m.protocol)]
    newest = {_place(m): m for m in sorted(matching, key=lambda m: m.measured_at)}
    return [newest[place] for place in sorted(newest)]


def _place(measurement: Measurement) -> tuple[tuple[str, float, str], ...]:
    """A measurement's conditions as a key that sorts numbers by their value and before words."""
    return tuple(
        (name, float(value), "") if isinstance(value, int | float) else (name, math.inf, value)
        for name, value in sorted(measurement.conditions.items())
    )


def engines(measurements: Iterable[Measurement], protocol: str | None = None) -> set[str]:
    """Return the names of the engines that took headline numbers, under one protocol if it is given, without version and dtype."""
    return {m.engine.partition(" ")[0] for m in headlines(measurements) if protocol in (None, m.protocol)}


def other_engine(variant: Iterable[Measurement], base: Iterable[Measurement], protocol: str | None = None) -> tuple[str, str] | None:
    """Return the engines of variant and base where they are not the same, so that ratios of speed and memory are of engines too."""
    mine, theirs = engines(variant, protocol), engines(base, protocol)
    return (" and ".join(sorted(mine)), " and ".join(sorted(theirs))) if mine and theirs and mine != theirs else None


def shared_protocol(variant: Iterable[Measurement], base: Iterable[Measurement]) -> str | None:
    """Return the protocol under which the variant's quality and its base's were both measured; with the most samples if several."""
    variant, base = list(variant), list(base)
    candidates = {m.protocol: m.samples for m in headlines(variant) if m.metric == "kl_divergence"}
    complete = [
        name for name in candidates if all(find(variant, metric, name) for metric in QUALITY) and find(base, "perplexity", name) is not None
    ]
    return max(complete, key=lambda name: (candidates[name], name), default=None)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A variant beside its exact base under one protocol; what was not measured is None, ratios are variant / base."""

    protocol: str | None
    perplexity_ratio: Estimate | None
    kl_divergence: Estimate | None
    size: Estimate | None
    decode: Estimate | None
    prefill: Estimate | None
    memory: Estimate | None
    load: Estimate | None


def compare(variant: VariantRecord, base: BaseRecord, *, protocol: str | None = None) -> Comparison:
    """Set a variant beside its base, under one protocol if it is given, so that several variants can stand in one table.

    Quality and speed come from runs of both side by side under a shared protocol: tokens/s of two separate runs are not divided, since
    a machine drifts between them. Memory and load time are compared only when both were taken on the same hardware.
    """
    protocol = protocol or shared_protocol(variant.measurements, base.measurements)
    here, there = variant.environment_under(protocol), base.environment_under(protocol)
    same_hardware = here is not None and there is not None and (here.hardware, here.device) == (there.hardware, there.device)

    def paired(metric: str) -> Estimate | None:
        found = find(variant.measurements, metric, protocol) if protocol else None
        return Estimate.of(found) if found else None

    def relative(metric: str, *, on_hardware: bool = True) -> Estimate | None:
        if on_hardware and not same_hardware:
            return None
        mine = find(variant.measurements, metric, protocol)
        theirs = find(base.measurements, metric, protocol)
        return ratio(mine, theirs) if mine and theirs else None

    return Comparison(
        protocol=protocol,
        perplexity_ratio=paired("perplexity_ratio"),
        kl_divergence=paired("kl_divergence"),
        size=relative("disk_size", on_hardware=False),
        decode=paired("decode_speedup"),
        prefill=paired("prefill_speedup"),
        memory=relative("peak_memory"),
        load=relative("load_time"),
    )
