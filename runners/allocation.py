"""Which bits for which layer: the multiple-choice knapsack, solved exactly by dynamic programming, and what engines ask of the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, gcd, inf
from typing import Any

from runners.checkpoint import Linear

GRID = 2**15
"""Sizes are told apart as far as this many steps go. Where all differences of sizes have a coarse enough common divisor, as those of
layers of a few shapes do, the answer is exact; else each size is rounded up to the grid, which never breaks a budget."""

FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linears that engines run as one, so that they must be of one format: vLLM loads others, and then answers wrongly or not at all."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One choice for an item: what it is called, its bytes, and what it loses (any unit that adds up)."""

    key: int
    bytes: int
    loss: float


def together(linears: Sequence[Linear]) -> list[tuple[Linear, ...]]:
    """Return the linears in order, those together that engines fuse."""
    sets: dict[tuple[str, str], list[Linear]] = {}
    for linear in linears:
        parent, _, name = linear.name.rpartition(".")
        first = next((names[0] for names in FUSED if name in names), name)
        sets.setdefault((parent, first), []).append(linear)
    return [tuple(found) for found in sets.values()]


def least_loss(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """Return the key of one option for each item so that their bytes are within the budget and their losses least; None if none fits."""
    table = _Table(items, budget)
    return table.keys(int(table.losses.argmin())) if table.fits else None


def least_bytes(items: Sequence[Sequence[Option]], loss: float) -> list[int] | None:
    """Return the key of one option for each item so that their losses are within `loss` and their bytes least; None if none fits."""
    table = _Table(items, sum(max(option.bytes for option in options) for options in items))
    within = (table.losses <= loss * (1 + 1e-12)).nonzero()[0]
    return table.keys(int(within[0])) if len(within) else None


class _Table:
    """Least losses by size above the smallest possible one: `losses[n]` for exactly n steps of the grid."""

    def __init__(self, items: Sequence[Sequence[Option]], budget: int) -> None:
        import numpy as np

        self._options = [_useful(options) for options in items]
        least = [options[0].bytes for options in self._options]
        above = [[option.bytes - small for option in options] for options, small in zip(self._options, least, strict=True)]
        room = min(budget - sum(least), sum(max(sizes) for sizes in above))
        self.fits = room >= 0
        step = max(gcd(*(size for sizes in above for size in sizes)), ceil(max(room, 0) / GRID), 1)
        self._steps = [[ceil(size / step) for size in sizes] for sizes in above]
        self.losses: Any = np.full(max(room, 0) // step + 1, inf)
        self.losses[0] = 0.0
        self._chosen = []
        for options, steps in zip(self._options, self._steps, strict=True):
            tried = np.full((len(options), len(self.losses)), inf)
            for row, option, size in zip(tried, options, steps, strict=True):
                if size < len(row):
                    row[size:] = self.losses[: len(row) - size] + option.loss
            self._chosen.append(tried.argmin(axis=0).astype(np.uint8))
            self.losses = tried.min(axis=0)

    def keys(self, place: int) -> list[int]:
        """Return the options that lead to a size, by walking back."""
        found = []
        for options, steps, chosen in zip(reversed(self._options), reversed(self._steps), reversed(self._chosen), strict=True):
            number = int(chosen[place])
            found.append(options[number].key)
            place -= steps[number]
        return found[::-1]


def _useful(options: Sequence[Option]) -> list[Option]:
    """Return the options by size, without those that lose no less than a smaller one."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.loss)):
        if not kept or option.loss < kept[-1].loss:
            kept.append(option)
    return kept


def spread(items: Sequence[Mapping[int, int]], budget: int) -> list[int]:
    """Return a key for each item, of bytes by key: the smallest, raised step by step in order while the budget lasts; losses unknown."""
    chosen = [min(sizes, key=lambda key: sizes[key]) for sizes in items]
    left = budget - sum(sizes[key] for sizes, key in zip(items, chosen, strict=True))
    for key in sorted({key for sizes in items for key in sizes}):
        for number, sizes in enumerate(items):
            more = sizes.get(key, 0) - sizes[chosen[number]]
            if 0 < more <= left:
                chosen[number], left = key, left - more
    return chosen
