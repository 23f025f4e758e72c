"""Which weights go: the patterns of zeros that all pruning methods share, from scores of which the least go first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from hub.errors import BadCheckpoint, UnfitModel
from runners import method
from runners.checkpoint import ModelShape
from runners.formats import ZERO_TOLERANCE
from runners.method import Promise

SCHEMES = ("unstructured", "2:4", "4:8")
"""Any share of zeros anywhere; 2 in every 4 or 4 in every 8 consecutive inputs."""
_ROWS = 512  # rows ranked together, so that ranking takes no multiple of a large layer


def group(scheme: str) -> int:
    """Return how many consecutive inputs a pattern such as 2:4 takes together, 0 for none."""
    return int(scheme.partition(":")[2]) if re.fullmatch(r"\d+:\d+", scheme) else 0


def check(step: Step, shape: ModelShape, sparsity: float) -> None:
    """Refuse a share that is none or that the pattern does not have, and widths that the pattern does not divide."""
    method.require(0 < sparsity < 1, step, "sparsity", sparsity, "between 0 and 1")
    size = group(step.scheme)
    if not size:
        return
    method.require(sparsity == 0.5, step, "sparsity", sparsity, f"0.5 for the scheme {step.scheme}")
    odd = next((linear for linear in shape.linears if linear.in_features % size), None)
    if odd:
        raise UnfitModel(
            f"{step.method}'s scheme {step.scheme} needs inputs divisible by {size}; {odd.name} has {odd.in_features}.",
            hint="Use a recipe with the scheme unstructured for this model.",
        )


def promise(shape: ModelShape, sparsity: float) -> Promise:
    """All tensors keep their shapes; each linear's weight has the given share of zeros, or what it had before if that was more."""
    return method.unchanged(shape, zeros={linear.name: max(sparsity, shape.zeros.get(linear.name, 0.0)) for linear in shape.linears})


def delivered(step: Step, shape: ModelShape, layers: Mapping[str, Mapping[str, Scalar]], sparsity: float) -> Promise:
    """The promise with the share of zeros that each linear really got; raise `BadCheckpoint` where that is too little in all."""
    sizes = {linear.name: linear.out_features * linear.in_features for linear in shape.linears}
    shares = {name: float(facts["zeros"]) for name, facts in layers.items() if "zeros" in facts and name in sizes}
    total = sum(sizes[name] for name in shares)
    found = sum(share * sizes[name] for name, share in shares.items()) / total if total else 0.0
    if found < sparsity - ZERO_TOLERANCE:
        raise BadCheckpoint(f"{step.method} left {found:.3f} zeros where {sparsity} were asked for.", hint="Press the variant again.")
    return method.unchanged(shape, zeros={**shape.zeros, **shares})


def zero_share(weight: Any) -> float:
    """Return the share of exact zeros in a weight, to six digits."""
    return round(1.0 - int(weight.count_nonzero()) / int(weight.numel()), 6)


def lowest(scores: Any, count: int) -> Any:
    """Return as booleans the `count` least scores of every row, the first ones where some are equal. Takes any size of rows."""
    import torch

    gone = torch.zeros_like(scores, dtype=torch.bool)
    for start in range(0, len(scores) if count > 0 else 0, _ROWS):
        rows = scores[start : start + _ROWS]
        least = rows.kthvalue(count, dim=-1, keepdim=True).values
        below, equal = rows < least, rows == least
        room = count - below.sum(dim=-1, keepdim=True)
        gone[start : start + _ROWS] = below | (equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= room))
    return gone


def least(scores: Any, *, sparsity: float, scheme: str, scope: str = "layer") -> Any:
    """Return which weights of a linear go, booleans shaped like `scores` (out, in): the least by the scheme's pattern.

    Without a pattern `sparsity` is the share of each row (`row`) or of the whole (`layer`).
    """
    size = group(scheme)
    if size:
        count = int(scheme.partition(":")[0])
        # Rows of four or eight are many: sorting them at once is quicker than ranking them one by one.
        places = scores.reshape(-1, size).argsort(dim=-1, stable=True)[:, :count]
        return scores.new_zeros(len(places), size).bool().scatter_(1, places, True).reshape(scores.shape)
    rows = scores if scope == "row" else scores.reshape(1, -1)
    return lowest(rows, round(rows.shape[1] * sparsity)).reshape(scores.shape)


class Cut:
    """The one threshold below which a share of the scores of all linears lies: exact, found without holding them together.

    `parts` gives the scores, none negative, tensor by tensor, and is asked twice: a float32's bits order as it does, so the upper half of
    the bits is counted first, then the lower half of those in the place where the threshold lies. Memory: 100,000 counts and one tensor.
    """

    def __init__(self, parts: Callable[[], Iterable[Any]], share: float) -> None:
        """Find the threshold."""
        import torch

        upper = sum((torch.bincount(_bits(scores) >> 16, minlength=1 << 15) for scores in parts()), torch.zeros(1 << 15, dtype=torch.long))
        left = round(int(upper.sum()) * share)
        high, left = _place(upper, left)
        lower = torch.zeros(1 << 16, dtype=torch.long)
        for scores in parts():
            bits = _bits(scores)
            lower += torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
        low, self._room = _place(lower, left)
        self._threshold = (high << 16) | low

    def gone(self, scores: Any) -> Any:
        """Return which weights of the next linear go; of scores that equal the threshold only the first, to be asked once a linear."""
        import torch

        bits = _bits(scores)
        equal = bits == self._threshold
        first = equal & (equal.cumsum(dim=0, dtype=torch.int32) <= self._room)
        self._room -= int(first.sum())
        return ((bits < self._threshold) | first).reshape(scores.shape)


def _bits(scores: Any) -> Any:
    import torch

    return scores.float().abs().contiguous().reshape(-1).view(torch.int32)


def _place(counts: Any, left: int) -> tuple[int, int]:
    """Return the first place up to which at least `left` are counted, and how many of them lie in that very place."""
    reached = counts.cumsum(dim=0)
    place = int((reached < left).sum())
    return place, left - int(reached[place] - counts[place])


def stream(source: Path, target: Path, linears: Iterable[str], gone: Callable[[str, Any], Any]) -> dict[str, dict[str, Scalar]]:
    """Write `source` into the folder `target` with those weights zero that `gone` names, a tensor at a time.

    `gone` is given a linear's name and its weight (out, in) in float32, and returns booleans of that shape. Returns by linear `zeros`, the
    share that is zero now, or `kept` where the weights hold NaN or infinity.
    """
    from runners import streaming
    from runners.architectures import architecture

    wanted = {f"{name}.weight": name for name in linears}
    conv1d = architecture(streaming.Source(source).architecture).conv1d
    told: dict[str, dict[str, Scalar]] = {}

    def change(name: str, tensor: Any) -> dict[str, Any]:
        if name not in wanted:
            return {name: tensor}
        if not tensor.isfinite().all():
            told[wanted[name]] = {"kept": "its weights hold NaN or infinity"}
            return {name: tensor}
        mask = gone(wanted[name], (tensor.t() if conv1d else tensor).float())
        pruned = tensor.masked_fill(mask.t() if conv1d else mask, 0.0)
        told[wanted[name]] = {"zeros": zero_share(pruned)}
        return {name: pruned}

    streaming.rewrite(source, target, change)
    return told
