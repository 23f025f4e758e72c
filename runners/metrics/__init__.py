"""Metrics: one file each. A file states what its number means and turns observations into a value with its interval.

A metric file has `TITLE`, `SUMMARY` (how it is found), `UNIT`, `HIGHER_IS_BETTER`, `PAIRED` (needs the base beside the variant), and either

- `per_token(chunk: Chunk) -> Tensor` (float64, one value a scored position, or k columns; they are averaged within each window) with
  `summarize(windows: Windows) -> Sequence[Estimate]`, and `KEEPS_TOKENS = True` where single positions are needed too, or
- `estimates(observed: Observed) -> Sequence[Estimate]`, empty where the protocol did not ask for it or the machine does not tell.

The first estimate without conditions is the headline; further ones carry `conditions`. `TOLERANCE` is by how much, relative to the value,
a repeat on the same machine may differ (0: not at all) where its interval does not already allow for it.

It imports nothing heavy: a tensor's own methods are enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

from hub.errors import Unavailable
from runners import plugins


@dataclass(frozen=True, kw_only=True)
class MetricInfo:
    """A metric as listed: what its number means, or why it cannot be used (`available` False with the reason)."""

    name: str
    title: str
    summary: str
    unit: str
    higher_is_better: bool
    paired: bool
    available: bool = True
    reason: str = ""


def names() -> list[str]:
    """Return the names of all metrics, sorted."""
    return plugins.names(__name__)


def load(name: str) -> ModuleType:
    """Return a metric's module; raise `UnknownName` or, for a broken file, `Unavailable`."""
    return plugins.load(__name__, name, "metric")


def available() -> list[MetricInfo]:
    """List all metrics; a broken one is listed with its reason."""
    return [_info(name) for name in names()]


def _info(name: str) -> MetricInfo:
    try:
        module = load(name)
        return MetricInfo(
            name=name,
            title=module.TITLE,
            summary=module.SUMMARY,
            unit=module.UNIT,
            higher_is_better=module.HIGHER_IS_BETTER,
            paired=module.PAIRED,
        )
    except (Unavailable, AttributeError) as error:
        return MetricInfo(
            name=name, title=name, summary="", unit="", higher_is_better=False, paired=False, available=False, reason=str(error)
        )
