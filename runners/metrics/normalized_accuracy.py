"""Accuracy, by length-normalized likelihood of the protocol's tasks, as lm-eval's `acc_norm`."""

from __future__ import annotations

from collections.abc import Sequence

from runners.intervals import Estimate
from runners.observations import Observed

TITLE = "Accuracy, by length-normalized likelihood"
SUMMARY = "share of documents whose right answer has the highest log-likelihood per character, lm-eval's acc_norm; Wilson over documents"
UNIT = "1"
HIGHER_IS_BETTER = True
PAIRED = False
TOLERANCE = 0.0


def estimates(observed: Observed) -> Sequence[Estimate]:
    """Return one estimate a task; they are of different documents, so none is a headline."""
    return [result.estimates["acc_norm"].at(task=result.task) for result in observed.tasks if "acc_norm" in result.estimates]
