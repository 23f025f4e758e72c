"""Perplexity per word of the protocol's tasks, as lm-eval's `word_perplexity`."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "Perplexity per word"
SUMMARY = "exp of the negative log-likelihood per word of the original text, through lm-eval by document; an interval over documents"
UNIT = "1"
HIGHER_IS_BETTER = False
PAIRED = False
TOLERANCE = 0.0


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return one estimate a task; they are of different documents, so none is a headline."""
    return [result.estimates["word_perplexity"].at(task=result.task) for result in observed.tasks if "word_perplexity" in result.estimates]
