"""Sentences about the steps and layers of a variant: what was decided, what stayed as it was, how far each layer is from the base's."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from hub.domain import LayerError, Scalar, StepRecord
from hub.history import VariantRecord
from leaderboard import text
from leaderboard.text import Markdown, code, markdown

_WORST = 3
_NAMED = 8
_VALUES = 6


def kept(record: VariantRecord) -> dict[str, str]:
    """Return the layers that the last step left in the base's precision, each with its reason."""
    steps = record.artifact.steps if record.artifact else ()
    return steps[-1].kept if steps else {}


def kept_words(record: VariantRecord) -> list[Markdown]:
    """Return a sentence for each step that left layers as they were: how many, which, and why."""
    told = []
    for step in record.artifact.steps if record.artifact else ():
        reasons: dict[str, list[str]] = {}
        for name, reason in step.kept.items():
            reasons.setdefault(reason, []).append(name)
        for reason, names in reasons.items():
            shown = ", ".join(code(name) for name in names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
            stayed = (
                "1 layer in the base's precision, as it came"
                if len(names) == 1
                else f"{len(names)} layers in the base's precision, as they came"
            )
            told.append(Markdown(f"{markdown(step.method)} left {stayed}: {shown}. Reason: {markdown(_ended(reason))}"))
    return told


def _ended(sentence: str) -> str:
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def single(errors: Sequence[LayerError]) -> tuple[str, list[LayerError]]:
    """Return what the errors are of (`linear layers`, or `decoder layers` where no linear layer could be compared), and those errors."""
    linear = [found for found in errors if not found.layer.rpartition(".")[2].isdigit()]
    return ("linear layers", linear) if linear else ("decoder layers", list(errors))


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """The layer errors of a variant in short: what they are of, how many, their median, and the worst ones."""

    kind: str
    count: int
    median: float
    worst: tuple[LayerError, ...]
    tokens: int
    protocol: str


def layer_summary(errors: Sequence[LayerError]) -> LayerSummary | None:
    """Sum up layer errors; None where there are none."""
    kind, found = single(errors)
    if not found:
        return None
    return LayerSummary(
        kind=kind,
        count=len(found),
        median=statistics.median(error.error for error in found),
        worst=tuple(sorted(found, key=lambda error: -error.error)[:_WORST]),
        tokens=found[0].tokens,
        protocol=found[0].protocol,
    )


def error_words(errors: Sequence[LayerError]) -> Markdown:
    """Return a sentence with the median and the worst of the layer errors; nothing where there are none."""
    found = layer_summary(errors)
    if found is None:
        return Markdown("")
    named = ", ".join(f"{code(error.layer)} {percent(error.error)}" for error in found.worst)
    against = "the base's output" if found.kind == "linear layers" else "what the base's layer adds to it"
    return Markdown(
        f"Error of single layers, given the base's own input (norm of the difference over that of {against}, {found.tokens:,} "
        f"tokens of {markdown(found.protocol)}): median {percent(found.median)} over {found.count} {found.kind}; largest: {named}."
    )


def percent(share: float) -> str:
    """Return a share in per cent, two digits."""
    return f"{text.number(share * 100, 2)} %" if share >= 1e-6 else "0 %"


def shown_words(step: StepRecord) -> Markdown:
    """Return what the step was calibrated on, by hash; nothing for a step without calibration."""
    if not step.samples_sha256:
        return Markdown("")
    return Markdown(
        f"{markdown(step.method)} was shown token windows of SHA-256 {code(step.samples_sha256)}, from a text of {code(step.text_sha256)}."
    )


def decided_words(step: StepRecord) -> Markdown:
    """Return what the step decided or found layer by layer, summed up; nothing where it told nothing but kept layers."""
    facts: dict[str, list[Scalar]] = {}
    for layer in step.layers.values():
        for key, value in layer.items():
            if key != "kept":
                facts.setdefault(key, []).append(value)
    parts = [f"{markdown(key.replace('_', ' '))} {_spread(values)}" for key, values in sorted(facts.items())]
    return Markdown(f"{markdown(step.method)}, layer by layer: {'; '.join(parts)}.") if parts else Markdown("")


def _spread(values: Sequence[Scalar]) -> Markdown:
    """Return few values with their counts, many numbers as their range and median."""
    counts = Counter(values)
    if len(counts) <= _VALUES:
        listed = (f"{_value(value)} ({count})" if len(counts) > 1 else _value(value) for value, count in sorted(counts.items(), key=str))
        return Markdown(", ".join(listed))
    numbers = sorted(value for value in values if isinstance(value, int | float))
    if len(numbers) < len(values):
        return Markdown(f"{len(counts)} different values")
    return Markdown(f"{_value(numbers[0])} to {_value(numbers[-1])}, median {_value(statistics.median(numbers))}")


def _value(value: Scalar) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return text.number(value) if isinstance(value, float) else str(value) if isinstance(value, int) else markdown(value)
