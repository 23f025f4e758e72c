"""A sample of a measurement, taken again: fewer windows of the same text, and what the first measurement says of exactly those windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hub.domain import Measurement, Scores
from hub.errors import ModelPressError
from hub.history import MeasuredJob
from hub.protocol import Protocol
from runners import metrics
from runners.observations import Windows
from runners.quality import SOURCE

MOST_WINDOWS = 16
_LEAST = 2


@dataclass(frozen=True, kw_only=True)
class SpotCheck:
    """A protocol of quality alone, and the numbers that it should give again."""

    protocol: Protocol
    expected: tuple[Measurement, ...]

    @property
    def windows(self) -> int:
        """How many windows are measured."""
        return max(one.samples for one in self.expected)


def spot_check(done: MeasuredJob, scores: Sequence[Scores], *, most: int = MOST_WINDOWS) -> SpotCheck | None:
    """Return a smaller measurement of what was measured on a text, with the numbers expected of it; None where no text was measured on.

    Windows lie at even distances, so every k-th of n is just what a protocol of n / k windows takes. Where no values by window were kept,
    or n has no such divisor, all windows are measured again.
    """
    protocol = done.job.protocol
    of_text = [one for one in done.measurements if _is_of_text(one)]
    if protocol is None or protocol.quality is None or not of_text:
        return None
    alone = replace(protocol, tasks=None, speed=None, memory=None)
    kept = next((one for one in scores if one.source == SOURCE), None)
    windows = kept.samples if kept else 0
    count = max((n for n in range(_LEAST, most + 1) if windows % n == 0), default=windows)
    if kept is None or count == windows:
        return SpotCheck(protocol=alone, expected=tuple(of_text))
    name = f"{protocol.name}[{count} of {windows} windows]"
    sample = replace(alone, name=name, quality=replace(protocol.quality, windows=count))
    expected = tuple(_of_sample(one, kept, windows // count, name) for one in of_text if one.metric in kept.values)
    return SpotCheck(protocol=sample, expected=expected) if expected else None


def _is_of_text(one: Measurement) -> bool:
    """Whether a number is a headline of the text's windows; of a metric that is there no more nobody can tell."""
    try:
        return hasattr(metrics.load(one.metric), "per_token") and not one.conditions
    except ModelPressError:
        return False


def _of_sample(whole: Measurement, scores: Scores, every: int, protocol: str) -> Measurement:
    """Return what the first measurement gives for every so many-th window, found as the metric finds it for all."""
    import numpy as np

    means, sizes = scores.values[whole.metric][::every], scores.sizes
    # Values of single tokens are not kept; percentiles, which alone need them, are left out.
    tokens = tuple(np.array([mean]) for mean in means)
    seen = Windows(means=means, scored=sizes["tokens"][::every], bytes=sizes.get("bytes", ())[::every], tokens=tokens)
    found = metrics.load(whole.metric).summarize(seen)[0]
    return replace(
        whole,
        value=found.value,
        ci_low=found.low,
        ci_high=found.high,
        interval=found.interval,
        samples=found.samples,
        protocol=protocol,
        percentiles=found.percentiles,
    )
