"""Any two models compared as pairs, window by window and document by document, from the scores that were kept when each was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hub import sampling
from hub.domain import Scores
from hub.errors import BadDocument, Unavailable, UsageError

Kind = Literal["ratio", "difference"]

# Scores that are losses in nats, so that their difference is the logarithm of a ratio, and what a window's mean is weighted with.
_LOSSES = {"perplexity": "tokens", "word_perplexity": "words", "byte_perplexity": "bytes", "target_perplexity": ""}
_SHARES = ("same_top_token", "accuracy", "normalized_accuracy")
_OF_ITSELF = {"kl_divergence": 0.0, "same_top_token": 1.0}
_COMPARED = (*_LOSSES, "kl_divergence", *_SHARES)
_LEAST = 2


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a model scored in one measurement.

    `identity` tells its weights from others (a variant's id, a commit, a folder's hash), `reference` is the identity of the base from
    which its divergences are; that of a base model, or of what was measured for itself, is its own.
    """

    name: str
    identity: str
    reference: str
    protocol: str
    scores: tuple[Scores, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One metric of two models over the same `samples` windows or documents of `source`: first / second, or first - second.

    The interval is 95 %, by Student's t over windows or documents, of losses on the log scale. `p_value`: two-sided, of no difference.
    """

    metric: str
    source: str
    protocols: tuple[str, str]
    kind: Kind
    value: float
    low: float
    high: float
    p_value: float
    samples: int
    higher_is_better: bool

    @property
    def told_apart(self) -> bool:
        """Whether the interval leaves out what no difference would be: 1 of a ratio, 0 of a difference."""
        same = 1.0 if self.kind == "ratio" else 0.0
        return not self.low <= same <= self.high

    @property
    def first_is_better(self) -> bool | None:
        """Whether the first model is the better one; None where the two cannot be told apart."""
        if not self.told_apart:
            return None
        return (self.value > (1.0 if self.kind == "ratio" else 0.0)) == self.higher_is_better


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """All that can be compared of two models, and sentences on what cannot."""

    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()


def compare(first: Sequence[Scored], second: Sequence[Scored]) -> Pairs:
    """Compare two models on all that both scored; of several measurements the earlier in the list counts, so give the newest first.

    Raises `BadDocument` when either has no scores or they are no numbers, `UsageError` when the two did not score the same.
    """
    for side in (first, second):
        _demand_scores(side)
    notes: list[str] = []
    pairs: list[Pair] = []
    for one, mine, other, theirs in _matches(first, second):
        if mine.samples < _LEAST:
            notes.append(f"{mine.source}: {mine.samples} window or document is too few for an interval")
            continue
        pairs += _pairs(one, mine, other, theirs)
        if one.reference != other.reference and "kl_divergence" in mine.values and "kl_divergence" in theirs.values:
            notes.append(f"{mine.source}: the divergences of the two are from different bases, so they are not compared")
    unpaired = sorted({s.source for side in (first, second) for one in side for s in one.scores} - {pair.source for pair in pairs})
    notes += [f"{source}: not the same windows or documents were scored, or by one of the two alone" for source in unpaired]
    if not pairs:
        raise UsageError(
            f"{first[0].name} and {second[0].name} did not score the same windows or documents: {_told(first)}; {_told(second)}.",
            hint="Measure both under one protocol; windows can be paired where both models have the same tokenizer.",
        )
    return Pairs(pairs=tuple(pairs), notes=tuple(dict.fromkeys(notes)))


def mean_difference(
    first: Sequence[float], second: Sequence[float], weights: Sequence[float] | None = None, *, in_order: bool = False
) -> tuple[float, float, float]:
    """Return the mean of `first - second`, half the width of its 95 % interval, and the p-value of no difference.

    Student's t over the pairs; those of windows stand `in_order`, and neighbours that go together count for less. With weights (tokens of
    a window) the mean is that over all tokens, a ratio of sums, and its error is found from the residuals by linearization (Cochran,
    Sampling Techniques, 6.4); with equal weights that is the plain paired t.
    """
    try:
        from scipy.special import stdtr
    except ModuleNotFoundError as error:
        raise Unavailable("Comparing needs SciPy, which is not installed here.", hint="pip install scipy") from error
    count = len(first)
    sizes = [float(size) for size in weights] if weights else [1.0] * count
    total = math.fsum(sizes)
    differences = [a - b for a, b in zip(first, second, strict=True)]
    centre = math.fsum(size * one for size, one in zip(sizes, differences, strict=True)) / total
    residuals = [size * count / total * (one - centre) for size, one in zip(sizes, differences, strict=True)]
    free = sampling.independent(residuals) if in_order else count
    error_of_mean = math.sqrt(math.fsum(one * one for one in residuals) / (count - 1) / free)
    if error_of_mean == 0:
        return centre, 0.0, 0.0 if centre else 1.0
    freedom = max(1.0, free - 1)
    return centre, sampling.student_t(freedom) * error_of_mean, float(2 * stdtr(freedom, -abs(centre) / error_of_mean))


def _demand_scores(side: Sequence[Scored]) -> None:
    name = side[0].name if side else "a model"
    if not any(one.scores for one in side):
        raise BadDocument(
            f"No scores by window or document were kept of {name}.",
            hint="Measure it again: `modelpress run` keeps them in the database, `modelpress measure --json` in its output.",
        )
    for scores in (scores for one in side for scores in one.scores):
        columns = [*scores.values.values(), *scores.sizes.values()]
        if any(len(column) != scores.samples for column in columns) or not all(math.isfinite(v) for column in columns for v in column):
            raise BadDocument(
                f"The scores of {name} on {scores.source} are not one finite number for each window or document.",
                hint="Measure it again.",
            )


def _matches(first: Sequence[Scored], second: Sequence[Scored]) -> Iterator[tuple[Scored, Scores, Scored, Scores]]:
    """Yield what both scored, each source and fingerprint once."""
    theirs: dict[tuple[str, str], tuple[Scored, Scores]] = {}
    for other in second:
        for scores in other.scores:
            theirs.setdefault((scores.source, scores.fingerprint), (other, scores))
    for one in first:
        for scores in one.scores:
            if match := theirs.pop((scores.source, scores.fingerprint), None):
                yield one, scores, *match


def _pairs(one: Scored, mine: Scores, other: Scored, theirs: Scores) -> Iterator[Pair]:
    if mine.samples != theirs.samples:
        raise BadDocument(
            f"{one.name} and {other.name} have one fingerprint on {mine.source}, but {mine.samples} and {theirs.samples} scores.",
            hint="Measure both again.",
        )
    ours, beside = _completed(one, mine, other), _completed(other, theirs, one)
    for metric in _COMPARED:
        of_base = metric in _OF_ITSELF
        if metric not in ours or metric not in beside or (of_base and one.reference != other.reference):
            continue
        weights = mine.sizes.get(_LOSSES.get(metric, ""))
        in_order = mine.source == "windows"
        centre, half, p_value = mean_difference(ours[metric], beside[metric], weights, in_order=in_order)
        pair = Pair(
            metric=metric,
            source=mine.source,
            protocols=(one.protocol, other.protocol),
            kind="difference",
            value=centre,
            low=centre - half,
            high=centre + half,
            p_value=p_value,
            samples=mine.samples,
            higher_is_better=metric in _SHARES,
        )
        yield _as_ratio(pair) if metric in _LOSSES else pair


def _completed(side: Scored, scores: Scores, other: Scored) -> Mapping[str, Sequence[float]]:
    """Return a model's values; a base beside one of its variants gets those that it has by definition: no divergence from itself."""
    if side.identity != side.reference or other.reference != side.identity or other.identity == side.identity:
        return scores.values
    return {**{metric: (value,) * scores.samples for metric, value in _OF_ITSELF.items()}, **scores.values}


def _as_ratio(pair: Pair) -> Pair:
    try:
        value, low, high = (math.exp(number) for number in (pair.value, pair.low, pair.high))
    except OverflowError:
        raise BadDocument(f"{pair.metric} of the two on {pair.source} differs by {pair.value} nats, beyond any number.") from None
    return replace(pair, kind="ratio", value=value, low=low, high=high)


def _told(side: Sequence[Scored]) -> str:
    parts = (f"{s.source} {s.fingerprint[:8]} ({s.samples}, {one.protocol})" for one in side for s in one.scores)
    return f"{side[0].name}: {', '.join(parts)}"
