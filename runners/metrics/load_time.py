"""Time from a folder to a model that is ready."""

from __future__ import annotations

from runners.intervals import Estimate, centre
from runners.observations import Observed

TITLE = "Load time"
SUMMARY = "median seconds to load tokenizer and weights, with the libraries imported and the files in the system's cache"
UNIT = "s"
HIGHER_IS_BETTER = False
PAIRED = False


def estimate(observed: Observed) -> Estimate:
    """Return the median of the loads."""
    return centre(observed.load_seconds, of="loads")
