"""Low-rank factors of linear layers: finding them, choosing ranks, and how they lie on disk.

A weight W (out, in) becomes two: `<linear>.factor_out.weight` (out, rank) and `<linear>.factor_in.weight` (rank, in), both applied as
`torch.nn.Linear` does, in GPT-2 too; its bias becomes `<linear>.factor_out.bias`. config.json lists the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runners.checkpoint import Linear
from runners.headers import Tensor

FORMAT = "low-rank"
FULL = "at the rank that it needs, two factors take as many parameters as the weight itself"
_TRIES = 4


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The leading factors of a weight: `left` (out, rank), `values` (rank,) falling, `right` (rank, in): W = left · diag(values) · right.

    `energies` are the squares of *all* singular values; where inputs were given, Σ over the cut ones is the squared error of the layer's
    output on them. `damp` is the damping that it took, relative to the inputs' mean square.
    """

    left: Any
    values: Any
    right: Any
    energies: tuple[float, ...]
    damp: float = 0.0

    def split(self, rank: int) -> tuple[Any, Any]:
        """Return the two matrices of a rank, (out, rank) and (rank, in), with the singular values shared evenly between them."""
        root = self.values[:rank].sqrt()
        return self.left[:, :rank] * root, root[:, None] * self.right[:rank]


def most(linear: Linear) -> int:
    """Return the highest rank at which two factors take fewer parameters than the weight itself; 0 where there is none."""
    return (linear.out_features * linear.in_features - 1) // (linear.out_features + linear.in_features)


def decompose(weight: Any, rank: int, gram: Any = None, damp: float = 0.01) -> Factors:
    """Return the leading factors of a weight (out, in) up to a rank.

    With `gram` = Σ x xᵀ of its inputs (in, in) those that keep the layer's *output* best (SVD-LLM, https://arxiv.org/abs/2403.07378): the
    SVD of W·L, L the Cholesky factor of the Gram matrix, whose right factors L⁻¹ brings back. Where the Gram matrix is not positive
    definite the damping grows tenfold, a few times. Raises `ArithmeticError` where that does not help or the SVD does not converge.
    """
    import torch

    weight = weight.float()
    lower, damp = _cholesky(gram, damp) if gram is not None else (None, 0.0)
    try:
        left, values, right = torch.linalg.svd(weight if lower is None else weight @ lower, full_matrices=False)
    except torch.linalg.LinAlgError as error:
        raise ArithmeticError("the singular value decomposition did not converge") from error
    energies = tuple(float(value) for value in values.double().square())
    left, values, right = left[:, :rank], values[:rank], right[:rank]
    if lower is not None:
        right = torch.linalg.solve_triangular(lower, right, upper=False, left=False)
    return Factors(left=left.contiguous(), values=values.contiguous(), right=right.contiguous(), energies=energies, damp=damp)


def _cholesky(gram: Any, damp: float) -> tuple[Any, float]:
    """Return the lower factor, float32, and the damping that it took; in float64, for a Gram matrix is ill-conditioned."""
    import torch

    mean = gram.diagonal().double().mean()
    for power in range(_TRIES):
        tried = damp * 10**power
        damped = gram.to(torch.float64, copy=True)  # the one copy: a Gram matrix may be larger than its layer
        damped.diagonal().add_(tried * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed) and lower.isfinite().all():
            return lower.float(), tried
    raise ArithmeticError(f"the Gram matrix of its inputs has no Cholesky factor, up to a damping of {tried:g}")


def uniform(linears: Sequence[Linear], share: float, multiple: int) -> dict[str, int]:
    """Return ranks that keep the same share of each layer's parameters; 0 stands for a layer that stays dense."""
    wanted = {item.name: int(share * item.out_features * item.in_features / (item.out_features + item.in_features)) for item in linears}
    return {item.name: _fitting(item, wanted[item.name], multiple) for item in linears}


def by_energy(linears: Sequence[Linear], energies: Mapping[str, Sequence[float]], energy: float, multiple: int) -> dict[str, int]:
    """Return the least ranks that keep a share of each layer's squared singular values; 0 stands for a layer that stays dense."""
    ranks = {}
    for item in linears:
        values, kept, rank = energies[item.name], 0.0, 0
        goal = energy * sum(values)
        while kept < goal and rank < len(values):
            kept += values[rank]
            rank += 1
        rank = -(-max(rank, 1) // multiple) * multiple
        ranks[item.name] = rank if rank <= most(item) else 0
    return ranks


def least(linears: Sequence[Linear], multiple: int) -> dict[str, int]:
    """Return the ranks from which a budget over all layers begins: every layer keeps something. 0 stands for one that stays dense."""
    return {item.name: min(multiple, most(item)) for item in linears}


def over_all(linears: Sequence[Linear], energies: Mapping[str, Sequence[float]], share: float, multiple: int) -> dict[str, int]:
    """Return ranks within a share of all layers' parameters that lose the least of their energies, each relative to its layer's whole.

    Singular values are taken in the order of what they keep for a parameter, as long as there is room; that is the best there is up to
    the last one, since each layer's gains fall. 0 stands for a layer that stays dense.
    """
    room = share * sum(item.out_features * item.in_features for item in linears)
    gains = []
    for item in linears:
        total = sum(energies[item.name]) or 1.0
        for place in range(0, len(energies[item.name]), multiple):
            block = energies[item.name][place : place + multiple]
            gains.append((-sum(block) / total / ((item.out_features + item.in_features) * len(block)), item.name, place + len(block)))
    by_name = {item.name: item for item in linears}
    ranks = least(linears, multiple)
    spent = parameters(linears, ranks)
    for _, name, rank in sorted(gains):
        more = _parameters(by_name[name], rank) - _parameters(by_name[name], ranks[name])
        if rank > ranks[name] > 0 and spent + more <= room:
            ranks[name] = rank if rank <= most(by_name[name]) else 0
            spent += more
    return ranks


def _fitting(linear: Linear, rank: int, multiple: int) -> int:
    rank = min(rank, most(linear))
    return rank // multiple * multiple or rank


def _parameters(linear: Linear, rank: int) -> int:
    """Return the parameters of a layer at a rank; at 0, or one above the highest useful, those of the dense weight."""
    dense = linear.out_features * linear.in_features
    return rank * (linear.out_features + linear.in_features) if 0 < rank <= most(linear) else dense


def parameters(linears: Sequence[Linear], ranks: Mapping[str, int]) -> int:
    """Return the parameters that the layers take at given ranks, dense ones (0) included, biases not."""
    return sum(_parameters(item, ranks[item.name]) for item in linears)


def layout(linear: Linear, rank: int, dtype: str, bias: Tensor | None) -> dict[str, Tensor]:
    """Return the tensors of a factorized layer."""
    tensors = {
        f"{linear.name}.factor_out.weight": Tensor(dtype=dtype, shape=(linear.out_features, rank)),
        f"{linear.name}.factor_in.weight": Tensor(dtype=dtype, shape=(rank, linear.in_features)),
    }
    return tensors if bias is None else {**tensors, f"{linear.name}.factor_out.bias": bias}
