"""Low-rank factorization: each linear layer's weight becomes the product of two thinner ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from hub.errors import BadCheckpoint, UnfitModel
from runners import dense, factors, layerwise, method, streaming
from runners.checkpoint import Linear, ModelShape
from runners.checkpoint import shape as shape_of
from runners.headers import INDEX, weight_files
from runners.layerwise import Layer
from runners.method import Outcome, PressContext, Promise
from runners.unfinished import Made

FAMILY = "low-rank"
SUMMARY = "Factorizes linear layers by truncated SVD, of the weights or of their outputs on a text; loaded by a snippet on the card."
PAPER = "https://arxiv.org/abs/2403.07378"
SCHEMES = ("svd", "asvd")
FORMAT = factors.FORMAT
NEEDS = ("accelerate", "safetensors", "transformers", "torch")
WORKS = "layerwise"
RESUMES = "layers"
SPARES = True

Factored = Callable[[str, Any, Any], tuple[dict[str, Any], dict[str, Any]]]
"""From a linear's name, its weight (out, in) and its inputs' Gram matrix to its factors, if it has any, and what there is to say."""


def _options(step: Step) -> dict[str, Any]:
    """Return the parameters.

    `share`: of the linears' parameters, the most that may be left; `energy`: if above 0, the share of squared singular values that each
    layer keeps, else ranks follow from `share`, by `allocation` the same for all layers (`uniform`) or where they serve most (`global`);
    `multiple`: ranks are multiples of it, as matrix kernels like them; `damp`: of the Gram matrix, relative to its mean diagonal.
    """
    values = method.options(step, share=0.8, energy=0.0, allocation="uniform", multiple=8, damp=0.001)
    method.require(
        0 < float(values["share"]) < 1 or (values["share"] == 1 and bool(values["energy"])),
        step,
        "share",
        values["share"],
        "between 0 and 1",
    )
    method.require(0 <= float(values["energy"]) < 1, step, "energy", values["energy"], "between 0 and 1")
    method.require(values["allocation"] in ("uniform", "global"), step, "allocation", values["allocation"], "uniform or global")
    method.require(int(values["multiple"]) >= 1, step, "multiple", values["multiple"], "at least 1")
    method.require(float(values["damp"]) > 0, step, "damp", values["damp"], "above 0")
    return values


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, and budgets that no ranks keep; factors suit Conv1D and nn.Linear alike."""
    method.check_common(step, shape, SCHEMES, calibrated=step.scheme == "asvd")
    values = _options(step)
    if values["energy"]:
        return  # what that takes is known when the singular values are
    uniform = values["allocation"] == "uniform"
    multiple = int(values["multiple"])
    ranks = factors.uniform(shape.linears, float(values["share"]), multiple) if uniform else factors.least(shape.linears, multiple)
    if complaint := _complaint(step, shape.linears, ranks):
        raise UnfitModel(complaint, hint="Use a recipe that allows more parameters, or a smaller multiple.")


def promise(step: Step, shape: ModelShape) -> Promise:
    """Each layer keeps the budget's share: exactly so in a uniform allocation, else the layers together keep no more than that."""
    values = _options(step)
    return _promise(shape, factors.uniform(shape.linears, float(values["share"]), int(values["multiple"])))


def delivered(step: Step, shape: ModelShape, layers: Mapping[str, Mapping[str, Scalar]]) -> Promise:
    """The ranks as chosen; raise `BadCheckpoint` where they take more than the budget, layers that could not be factorized left aside."""
    ranks = {linear.name: int(layers.get(linear.name, {}).get("rank", 0)) for linear in shape.linears}
    if wrong := next((item.name for item in shape.linears if not 0 <= ranks[item.name] <= factors.most(item)), None):
        raise BadCheckpoint(f"The layer {wrong} has the rank {ranks[wrong]}, at which it saves nothing.", hint="Press it again.")
    failed = {name for name, facts in layers.items() if facts.get("kept", factors.FULL) != factors.FULL}
    if complaint := _complaint(step, [linear for linear in shape.linears if linear.name not in failed], ranks):
        raise BadCheckpoint(complaint, hint="Press it again.")
    return _promise(shape, ranks)


def _promise(shape: ModelShape, ranks: Mapping[str, int]) -> Promise:
    made = {}
    for linear in shape.linears:
        if rank := ranks[linear.name]:
            stored = shape.tensors[f"{linear.name}.weight"].dtype
            made[linear.name] = factors.layout(linear, rank, stored, shape.tensors.get(f"{linear.name}.bias"))
    promise = method.replaced(shape, made)
    tensors = {name: tensor for name, tensor in promise.tensors.items() if name.removesuffix(".bias") not in made}
    return Promise(shape=promise.shape, tensors=tensors, changed=promise.changed)


def _complaint(step: Step, linears: Sequence[Linear], ranks: Mapping[str, int]) -> str:
    """Return how the ranks of the layers that have factors break the recipe; empty where they keep it."""
    share = float(_options(step)["share"])
    if not any(ranks[linear.name] for linear in linears):
        return f"No rank that the recipe asks for makes any of the {len(ranks)} linear layers smaller."
    taken = factors.parameters(linears, ranks) / sum(linear.out_features * linear.in_features for linear in linears)
    return "" if taken <= share else f"The factors take {taken:.1%} of the linear layers' parameters; the recipe allows {share:.1%}."


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Decompose all layers first, since a budget over all of them needs all their singular values; then choose ranks and write.

    Inputs are those of the model as it is: ranks, and so the errors of earlier layers, are not known while they are gathered.
    """
    shape, values = shape_of(source), _options(step)
    dense.require_whole(source)
    told = _decompose(step, source, shape, context)
    energies = {name: facts.pop("energies") for name, facts in told.items() if "energies" in facts}
    linears = [linear for linear in shape.linears if linear.name in energies]
    ranks = dict.fromkeys(told, 0) | _ranks(values, linears, energies)
    if complaint := _complaint(step, linears, ranks):
        raise UnfitModel(complaint, hint="Use a recipe that keeps less energy, or one that allows more parameters.")
    _write(source, target, ranks, context.scratch)
    layers: dict[str, dict[str, Scalar]] = {}
    for name, facts in told.items():
        if rank := ranks[name]:
            kept = sum(energies[name][:rank]) / (sum(energies[name]) or 1.0)
            layers[name] = {"rank": rank, "energy": round(kept, 6), **facts}
        else:
            layers[name] = {"kept": factors.FULL, **facts}
    return Outcome(layers=layers, notes=(method.SAME_MACHINE,))


def _ranks(values: Mapping[str, Any], linears: Sequence[Linear], energies: Mapping[str, Sequence[float]]) -> dict[str, int]:
    share, multiple = float(values["share"]), int(values["multiple"])
    if values["energy"]:
        return factors.by_energy(linears, energies, float(values["energy"]), multiple)
    if values["allocation"] == "uniform":
        return factors.uniform(linears, share, multiple)
    return factors.over_all(linears, energies, share, multiple)


def _decompose(step: Step, source: Path, shape: ModelShape, context: PressContext) -> dict[str, dict[str, Any]]:
    """Leave the factors of all layers in scratch files, no larger than the layers; return their energies and what else is to be told.

    Of a layer that has none the reason is told, as `kept`.
    """
    given = streaming.Source(source)
    widths = {linear.name: linear for linear in shape.linears}
    damp = float(_options(step)["damp"])
    told: dict[str, dict[str, Any]] = {}

    def factored(name: str, weight: Any, gram: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        try:
            if not weight.isfinite().all() or (gram is not None and not gram.isfinite().all()):
                raise ArithmeticError("its weights, or its inputs on the calibration text, hold NaN or infinity")
            found = factors.decompose(weight, factors.most(widths[name]), gram, damp)
            pair = tuple(factor.to(given.dtype(f"{name}.weight")) for factor in found.split(factors.most(widths[name])))
            if not all(factor.isfinite().all() for factor in pair):
                raise ArithmeticError("its factors hold NaN or infinity")
        except ArithmeticError as error:
            return {}, {"kept": str(error)}
        damped = {"damp": found.damp} if gram is not None else {}
        return {"out": pair[0], "into": pair[1]}, {"energies": list(found.energies), **damped}

    for made in _made(step, source, shape, context, factored):
        for name, pair in made.tensors.items():
            _keep(pair, context.scratch, name)
        told.update(made.told)
    return {linear.name: told[linear.name] for linear in shape.linears}


def _made(step: Step, source: Path, shape: ModelShape, context: PressContext, factored: Factored) -> Iterator[Made]:
    """Give the factors of all linear layers, with the Gram matrix of their inputs looked at where the scheme says so."""
    if step.scheme == "svd":
        given = streaming.Source(source)
        for linear in shape.linears:
            weight = given.read(f"{linear.name}.weight").float()
            tensors, told = factored(linear.name, weight.t() if shape.conv1d else weight, None)
            yield Made(tensors={linear.name: tensors} if tensors else {}, told={linear.name: told})
    else:

        def work(layer: Layer) -> Made:
            found = {name: factored(name, layer.weight(name), inputs.gram) for name, inputs in layer.inputs.items()}
            return Made(
                tensors={name: tensors for name, (tensors, _) in found.items() if tensors},
                told={name: told for name, (_, told) in found.items()},
            )

        # All that decides the factors; ranks are chosen when all are known.
        about = ("asvd", _options(step)["damp"])
        yield from layerwise.each(source, context.windows(step), work, about=about, gram=True)


def _keep(pair: Mapping[str, Any], scratch: Path, name: str) -> None:
    from safetensors.torch import save_file

    save_file({key: factor.contiguous() for key, factor in pair.items()}, scratch / f"{name}.safetensors")


def _kept(scratch: Path, name: str, rank: int) -> tuple[Any, Any]:
    from safetensors.torch import load_file

    pair = load_file(scratch / f"{name}.safetensors")
    return pair["out"][:, :rank], pair["into"][:rank]


def _write(source: Path, target: Path, ranks: Mapping[str, int], scratch: Path) -> None:
    factorized = {name: rank for name, rank in ranks.items() if rank}

    def change(name: str, tensor: Any) -> dict[str, Any]:
        linear, _, kind = name.rpartition(".")
        if linear not in factorized:
            return {name: tensor}
        if kind == "bias":
            return {f"{linear}.factor_out.bias": tensor}
        out, into = _kept(scratch, linear, factorized[linear])
        return {f"{linear}.factor_out.weight": out, f"{linear}.factor_in.weight": into}

    streaming.rewrite(source, target, change)
    dense.edit_config(target, quantization_config={"quant_method": FORMAT, "ranks": factorized})
    _unlike_dense(target)


def _unlike_dense(target: Path) -> None:
    """Give the weights names that transformers does not look for.

    It skips a quantization method that it does not know with a warning, finds none of the factorized weights and goes on with random ones;
    under these names it finds no weights at all, and says so.
    """
    files = weight_files(target)
    (target / INDEX).unlink(missing_ok=True)
    for path in files:
        path.rename(path.with_name(f"{path.stem}.{FORMAT}{path.suffix}"))
