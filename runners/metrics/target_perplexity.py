"""Perplexity of the answer of the protocol's tasks, as lm-eval's `perplexity`."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "Perplexity of the answer"
SUMMARY = "exp of the mean negative log-likelihood of a whole answer, lm-eval's perplexity of a cloze task; an interval over documents"
UNIT = "1"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.0


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return one estimate a task; they are of different documents, so none is a headline."""
    return [result.estimates["perplexity"].at(task=result.task) for result in observed.tasks if "perplexity" in result.estimates]
