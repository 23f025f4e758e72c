"""Time from a folder to a model that is ready."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate, centre
from runners.observations import Observed

TITLE = "Load time"
SUMMARY = "median seconds to load tokenizer and weights, with the libraries imported and the files in the system's cache"
UNIT = "s"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.5


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return the median of the loads; nothing where none was taken."""
    return [centre(observed.load_seconds, of="loads")] if observed.load_seconds else []
