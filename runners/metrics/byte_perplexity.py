"""Perplexity per byte of the protocol's tasks, as lm-eval's `byte_perplexity`."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "Perplexity per byte"
SUMMARY = "exp of the negative log-likelihood per UTF-8 byte of the original text, through lm-eval by document; an interval over documents"
UNIT = "1"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.0


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return one estimate a task; they are of different documents, so none is a headline."""
    return [result.estimates["byte_perplexity"].at(task=result.task) for result in observed.tasks if "byte_perplexity" in result.estimates]
