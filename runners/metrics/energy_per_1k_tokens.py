"""What a thousand tokens cost in energy."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.metrics._along import along
from runners.observations import Observed, SpeedPoint

TITLE = "Energy per 1,000 tokens"
SUMMARY = (
    "median joules of a run, prompt and decoding together, for a thousand tokens read or written: of the whole GPU where the model runs "
    "on one (NVML), else of the processor's packages (RAPL), whatever else they do"
)
UNIT = "J"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.15


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the median over the metered runs of each point of the curve; nothing where no meter was found."""
    return along(observed.speed, _joules)


def _joules(point: SpeedPoint) -> list[float]:
    """Joules of a thousand tokens, by run: of each sequence its prompt, the first new token, and one more for each further step."""
    return [
        1000 * run.joules / (point.batch * (point.context + 1 + len(run.token_seconds))) for run in point.runs if run.joules is not None
    ]
