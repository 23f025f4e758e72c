"""Mixed precision: each linear layer gets the bits that its measured sensitivity asks for, within a budget of size or of quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from hub.errors import BadCheckpoint, UnfitModel
from runners import allocation, compressed, dense, layerwise, layouts, method, rounding, sensitivity
from runners.allocation import Option
from runners.checkpoint import Linear, ModelShape
from runners.checkpoint import shape as shape_of
from runners.layerwise import Layer
from runners.method import Outcome, PressContext, Promise
from runners.sensitivity import BITS, Losses
from runners.streaming import Source, Writer
from runners.unfinished import Made

FAMILY = "quantization"
SUMMARY = "Gives each layer 2 to 8 bits, or its own 16, by how much the predictions suffer when it alone is rounded; a budget decides."
PAPER = "https://arxiv.org/abs/1911.03852"
SCHEMES = ("WxA16",)
FORMAT = "compressed-tensors"
NEEDS = compressed.NEEDS
WORKS = "whole"
RESUMES = "layers"
SPARES = True

DENSE = 16
"""What a choice of 16 bits means: the layer stays as it is, in the model's own dtype."""
CHOSEN = "of all layers, this one gains most from its full precision"
FAILED = "rounded at any width, it or a layer that engines fuse with it leaves the predictions without finite numbers"
UNSOLVED = "its Hessian could not be factorized at any damping"
_ROUNDS, _CLOSE, _AIM, _LEAP = 4, 0.9, 0.97, 4.0
"""For a budget of quality: how many choices are tried, what share of it is near enough, is aimed at, and how far one step may go."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What a step asks for; `bits` or `kl` is 0 where there is no such budget."""

    bits: float
    kl: float
    choices: tuple[int, ...]
    group_size: int
    rounding: str
    windows: int


def _plan(step: Step) -> _Plan:
    """Return the parameters.

    `bits`: the mean bits per weight of the linears, scales included, at most; `kl`: the KL divergence from the base on the calibration
    windows in nats per token, at most (then as small as that allows, and within `bits` too where both are given); `choices`: the widths to
    choose from (GPU engines serve 4, 8 and 16); `rounding`: gptq or rtn; `windows`: how many windows of the calibration the sensitivity
    is measured on.
    """
    values = method.options(step, bits=0.0, kl=0.0, choices="2,3,4,8", group_size=64, rounding="gptq", windows=4)
    given = str(values["choices"]).split(",")
    known = {str(bits): bits for bits in (*BITS, DENSE)}
    method.require(all(part in known for part in given), step, "choices", values["choices"], "widths out of 2,3,4,8,16 parted by commas")
    choices = tuple(sorted({known[part] for part in given}))
    bits, kl = float(values["bits"]), float(values["kl"])
    if not (bits or kl):
        bits = 4.25
    method.require(choices != (DENSE,), step, "choices", values["choices"], "not 16 alone")
    method.require(0 <= bits <= DENSE, step, "bits", bits, f"between 0 and {DENSE}")
    method.require(kl >= 0, step, "kl", kl, "above 0")
    method.require(int(values["group_size"]) >= 8, step, "group_size", values["group_size"], "at least 8")
    method.require(values["rounding"] in ("gptq", "rtn"), step, "rounding", values["rounding"], "gptq or rtn")
    method.require(int(values["windows"]) >= 1, step, "windows", values["windows"], "at least 1")
    return _Plan(
        bits=bits,
        kl=kl,
        choices=choices,
        group_size=int(values["group_size"]),
        rounding=str(values["rounding"]),
        windows=int(values["windows"]),
    )


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models, widths that the groups do not divide, and a budget below the narrowest choice."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    plan = _plan(step)
    method.check_plain_linear(step, shape, "compressed-tensors")
    method.check_divisible(step, shape, plan.group_size)
    least = sum(min(_sizes(linear, shape, plan).values()) for linear in shape.linears)
    if plan.bits and least > _room(shape.linears, plan.bits):
        narrowest = 8 * least / _weights(shape.linears)
        raise UnfitModel(
            f"mixed is to take {plan.bits:g} bits per weight; {plan.choices[0]}-bit weights with their scales take {narrowest:.3g} here.",
            hint="Use a recipe with more bits, narrower choices or larger groups.",
        )


def _weights(linears: Sequence[Linear]) -> int:
    return sum(linear.out_features * linear.in_features for linear in linears)


def _room(linears: Sequence[Linear], bits: float) -> int:
    """Return the bytes of a budget of mean bits per weight."""
    return int(bits * _weights(linears) / 8 + 1e-6)


def _tensors(linear: Linear, shape: ModelShape, plan: _Plan, bits: int) -> dict[str, Any]:
    """Return what a linear lies in on disk at a width."""
    if bits == DENSE:
        return {f"{linear.name}.weight": shape.tensors[f"{linear.name}.weight"]}
    return layouts.pack_quantized(linear, shape.dtype, bits=bits, group_size=plan.group_size)


def _sizes(linear: Linear, shape: ModelShape, plan: _Plan) -> dict[int, int]:
    """Return the bytes of weights and scales at each choice."""
    return {bits: _bytes(_tensors(linear, shape, plan, bits)) for bits in plan.choices}


def _bytes(tensors: Mapping[str, Any]) -> int:
    return sum(tensor.bytes for name, tensor in tensors.items() if not name.endswith(".weight_shape"))


def promise(step: Step, shape: ModelShape) -> Promise:
    """All layers packed, as large as the budget of bits allows; a budget of quality alone says no more than the widest choice."""
    plan = _plan(step)
    packed = [bits for bits in plan.choices if bits != DENSE]
    sets = allocation.together(shape.linears)
    sizes = [{bits: sum(_sizes(linear, shape, plan)[bits] for linear in linears) for bits in packed} for linears in sets]
    chosen = allocation.spread(sizes, _room(shape.linears, plan.bits)) if plan.bits else [packed[-1]] * len(sets)
    made = {linear.name: bits for linears, bits in zip(sets, chosen, strict=True) for linear in linears}
    return method.replaced(shape, {linear.name: _tensors(linear, shape, plan, made[linear.name]) for linear in shape.linears})


def delivered(step: Step, shape: ModelShape, layers: Mapping[str, Mapping[str, Scalar]]) -> Promise:
    """The bits as chosen; raise `BadCheckpoint` where they break the budget of bits, are no choice, or differ within a fused set."""
    plan = _plan(step)
    bits = {linear.name: int(layers.get(linear.name, {}).get("bits", 0)) for linear in shape.linears}
    failed = {name for name, facts in layers.items() if facts.get("kept", CHOSEN) != CHOSEN}
    for linears in allocation.together(shape.linears):
        first = linears[0].name
        if len({bits[linear.name] for linear in linears}) > 1:
            raise BadCheckpoint(f"The layers that engines fuse with {first} have other bits than it.", hint="Press it again.")
        if bits[first] not in plan.choices and first not in failed:
            raise BadCheckpoint(f"The layer {first} has {bits[first]} bits, which is no choice of the recipe.", hint="Press it again.")
    counted = [linear for linear in shape.linears if linear.name not in failed]
    taken = sum(_bytes(_tensors(linear, shape, plan, bits[linear.name])) for linear in counted)
    if plan.bits and taken > _room(counted, plan.bits):
        raise BadCheckpoint(
            f"The layers take {8 * taken / _weights(counted):.4f} bits per weight; the recipe allows {plan.bits:g}.", hint="Press it again."
        )
    packed = {linear.name: _tensors(linear, shape, plan, bits[linear.name]) for linear in counted if bits[linear.name] != DENSE}
    return method.replaced(shape, packed)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Measure or look up the sensitivity, choose, try the choice where quality is the budget, press, and compare with what was promised."""
    plan, shape = _plan(step), shape_of(source)
    dense.require_whole(source)
    windows = context.windows(step)
    shown = windows[: plan.windows]
    found = sensitivity.sensitivity(source, shown, plan.group_size, context.cache)
    trial = sensitivity.Trial(source, shown)

    def measured(bits: Mapping[str, int]) -> float:
        return trial.of_weights((name, weight) for name, weight, _, _ in _rounded(source, shape, plan, bits, windows))

    bits, predicted = _choose(plan, shape, found.losses, measured)
    roundings = _write(source, target, shape, plan, bits, windows)
    found_kl = trial.of_folder(target)
    if plan.kl and not found_kl <= plan.kl:
        raise BadCheckpoint(
            f"The pressed model's KL divergence is {found_kl:.4g} nats/token; the recipe promises {plan.kl:g} on the same text.",
            hint="Use a recipe with more bits.",
        )
    layers: dict[str, dict[str, Scalar]] = {}
    for linear in shape.linears:
        losses = found.losses[linear.name]
        layers[linear.name] = {
            "bits": bits[linear.name] or DENSE,
            **{f"kl_w{width}": losses[width] for width in BITS if losses[width] < float("inf")},
            **roundings.get(linear.name, {}),
            **({} if linear.name in roundings else {"kept": CHOSEN if bits[linear.name] else FAILED}),
        }
    delivered(step, shape, layers)
    return Outcome(layers=layers, notes=(_told(plan, shape, bits, predicted, found_kl, found.tokens), method.SAME_MACHINE))


def _told(plan: _Plan, shape: ModelShape, bits: Mapping[str, int], predicted: float, measured: float, tokens: int) -> str:
    taken = sum(_bytes(_tensors(linear, shape, plan, bits[linear.name] or DENSE)) for linear in shape.linears)
    promised = [f"at most {plan.bits:g} bits"] * bool(plan.bits) + [f"at most {plan.kl:g} nats/token"] * bool(plan.kl)
    mean = 8 * taken / _weights(shape.linears)
    return (
        f"Promised {' and '.join(promised)}; delivered {mean:.4f} bits per weight of the linear layers and a KL divergence of "
        f"{measured:.4g} nats/token on {tokens:,} tokens of the calibration text, where those of single layers, each rounded to nearest "
        f"alone, add up to {predicted:.4g}."
    )


def _choose(plan: _Plan, shape: ModelShape, losses: Losses, measured: Callable[[Mapping[str, int]], float]) -> tuple[dict[str, int], float]:
    """Return the bits of each linear (0: it cannot be rounded) and the predicted KL divergence; raise `UnfitModel` where no choice does.

    Layers' losses do not quite add up, and GPTQ loses less than plain rounding: where quality is the budget, each choice is `measured`,
    and the sum that is aimed at is moved until what comes out is just within the budget.
    """
    sets = allocation.together(shape.linears)
    items = {linears: _options(linears, shape, plan, losses) for linears in sets}
    fit = {linears: options for linears, options in items.items() if options}
    counted = [linear for linears in fit for linear in linears]

    def solved(keys: list[int] | None) -> dict[str, int] | None:
        if keys is None:
            return None
        by_set = dict(zip(fit, keys, strict=True))
        return {linear.name: by_set.get(linears, 0) for linears in sets for linear in linears}

    def predicted(bits: Mapping[str, int]) -> float:
        return sum(losses[name][width] for name, width in bits.items() if width in BITS)

    best = None
    if not plan.kl:
        best = solved(allocation.least_loss(list(fit.values()), _room(counted, plan.bits)))
    else:
        goal, smallest, tried = plan.kl, 0, []
        for _ in range(_ROUNDS):
            # Where plain rounding has no choice within the goal, the widest one may still be, as it is pressed.
            bits = solved(allocation.least_bytes(list(fit.values()), goal) or allocation.least_loss(list(fit.values()), 2**62))
            if bits is None or bits in tried:
                break
            tried.append(bits)
            loss = measured(bits)
            size = sum(_sizes(linear, shape, plan)[bits[linear.name]] for linear in counted)
            if loss <= plan.kl and (best is None or size < smallest):
                best, smallest = bits, size
            if _CLOSE * plan.kl <= loss <= plan.kl:
                break
            goal *= min(_LEAP, _AIM * plan.kl / max(loss, 1e-9))
        if best is not None and plan.bits and smallest > _room(counted, plan.bits):
            best = None
    if best is None or not set(best.values()) & set(BITS):
        budget = " and ".join([f"{plan.kl:g} nats/token"] * bool(plan.kl) + [f"{plan.bits:g} bits"] * bool(plan.bits))
        raise UnfitModel(
            f"No choice out of {', '.join(map(str, plan.choices))} bits that rounds a layer keeps the budget of {budget} here.",
            hint="Use a recipe with another budget, or other choices.",
        )
    return best, predicted(best)


def _options(linears: Sequence[Linear], shape: ModelShape, plan: _Plan, losses: Losses) -> list[Option]:
    """Return the choices of a fused set; none where it cannot be rounded at any of them."""
    found = []
    for bits in plan.choices:
        size = sum(_sizes(linear, shape, plan)[bits] for linear in linears)
        loss = 0.0 if bits == DENSE else sum(losses[linear.name][bits] for linear in linears)
        if loss < float("inf"):
            found.append(Option(key=bits, bytes=size, loss=loss))
    return found


def _write(
    source: Path, target: Path, shape: ModelShape, plan: _Plan, bits: Mapping[str, int], windows: list[list[int]]
) -> dict[str, dict[str, Scalar]]:
    """Write the checkpoint; return by packed linear how it was rounded, where that is not what was asked for."""
    import torch

    given = Source(source)
    schemes = {width: rounding.scheme(width, plan.group_size) for width in sorted(set(bits.values()) - {0, DENSE})}
    told: dict[str, dict[str, Scalar]] = {}
    with Writer(target, given) as out, torch.no_grad():
        for name, weight, scale, facts in _rounded(source, shape, plan, bits, windows):
            packed = rounding.packed(weight, scale, schemes[bits[name]], given.dtype(f"{name}.weight"))
            out.add(f"{name}.weight", {f"{name}.{key}": tensor for key, tensor in packed.items()})
            told[name] = facts
        out.copy_rest()
    groups = [
        scheme.model_copy(update={"targets": [name for name, chosen in bits.items() if chosen == width]})
        for width, scheme in schemes.items()
    ]
    compressed.describe(target, source, groups, kept=[name for name, chosen in bits.items() if chosen not in schemes])
    return told


def _rounded(
    source: Path, shape: ModelShape, plan: _Plan, bits: Mapping[str, int], windows: list[list[int]]
) -> Iterator[tuple[str, Any, Any, dict[str, Scalar]]]:
    """Give each layer's name, rounded weight and scales (float32), and what there is to say, in order."""
    given = Source(source)
    if plan.rounding == "rtn":
        for linear in shape.linears:
            if bits[linear.name] in BITS:
                weight, args = given.read(f"{linear.name}.weight").float(), rounding.arguments(bits[linear.name], plan.group_size)
                scale = rounding.scales(weight, args, given.dtype(f"{linear.name}.weight"))
                yield linear.name, rounding.nearest(weight, scale, args), scale, {}
        return

    def work(layer: Layer) -> Made:
        made: dict[str, dict[str, Any]] = {}
        told: dict[str, dict[str, Scalar]] = {}
        for name, seen in layer.inputs.items():
            if bits[name] in BITS:
                weight, args = layer.weight(name), rounding.arguments(bits[name], plan.group_size)
                scale = rounding.scales(weight, args, given.dtype(f"{name}.weight"))
                found = rounding.gptq(weight, scale, args, seen.gram, seen.tokens) if seen.finite else None
                facts: dict[str, Scalar] = {}
                if found is None:
                    facts = {"rounding": f"nearest: {UNSOLVED if seen.finite else 'its inputs on the calibration text are not finite'}"}
                elif found[1] != rounding.DAMPS[0]:
                    facts = {"damp": found[1]}
                layer.set_weight(name, rounding.nearest(weight, scale, args) if found is None else found[0])
                made[name], told[name] = {"weight": layer.weight(name), "scale": scale}, facts
        return Made(tensors=made, told=told)

    about = ("mixed", plan.group_size, dict(bits))
    for made in layerwise.each(source, windows, work, about=about, gram=True):
        for name, tensors in made.tensors.items():
            yield name, tensors["weight"], tensors["scale"], made.told[name]
