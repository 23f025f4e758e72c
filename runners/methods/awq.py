"""AWQ: weights that meet large inputs are scaled up before they are rounded, and the layer before gives its outputs scaled down.

Own code. llm-compressor's search pins memory, which needs an accelerator, and writes another format; auto-round's holds the whole model,
casts it to bfloat16, and takes several times as long, for it runs a block forward for every scale that it tries. Here a layer's inputs
are summed up once in a matrix, X Xᵀ, and the error of any rounding, ‖(Q(W) - W) X‖², follows from it: the paper's equation 4 to the
letter. Scales and clipping are otherwise the reference implementation's, the inputs' root mean square standing for their mean magnitude.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from hub.errors import UnfitModel, Unstable
from runners import dense, gptq_files, layerwise, method, scaling
from runners.architectures import architecture
from runners.checkpoint import Linear, ModelShape
from runners.headers import Tensor
from runners.layerwise import KeptError, Layer
from runners.method import Outcome, PressContext, Promise
from runners.streaming import Source, Writer
from runners.unfinished import Made

FAMILY = "quantization"
SUMMARY = "Rounds weights to 4 bits in groups, those that meet large inputs scaled up first; written in autoawq's format."
PAPER = "https://arxiv.org/abs/2306.00978"
SCHEMES = ("W4A16",)
FORMAT = "awq"
NEEDS = ("gptqmodel", "accelerate", "transformers", "torch")
WORKS = "layerwise"
RESUMES = "layers"
SPARES = True

BITS = 4
TOP = 2**BITS - 1
WORD = 32 // BITS
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""In which order eight weights of neighbouring outputs lie in a word, lowest bits first."""

GRID = 20
"""Exponents tried are 0, 1/20, … 19/20, as in the reference implementation; clipping goes down by as much."""
SHRINK = tuple(1 - step / GRID for step in range(GRID // 2))
"""Shares of a group's range that are tried as its clipped range."""
PAIRS = (
    scaling.NORMS[0],
    ("self_attn.v_proj", ("self_attn.o_proj",)),
    scaling.NORMS[1],
    ("mlp.up_proj", ("mlp.down_proj",)),
)
"""Which module's outputs are scaled down for which linears' inputs."""
UNCLIPPED = ("q_proj", "k_proj")
"""Their outputs are multiplied with each other, so an error of one says little of the scores."""


def _group_size(step: Step) -> int:
    group = int(method.options(step, group_size=128)["group_size"])
    method.require(group in (32, 64, 128), step, "group_size", group, "32, 64 or 128")
    return group


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models, decoder layers of other parts, and widths that groups or words do not divide."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    group = _group_size(step)
    method.check_plain_linear(step, shape, "gptqmodel")
    first = f"{architecture(shape.architecture).layers}.0"
    missing = next((name for _, after in PAIRS for name in after if f"{first}.{name}.weight" not in shape.tensors), None)
    if missing:
        raise UnfitModel(f"awq knows decoder layers with {missing}; this model's have none.", hint="Use a gptq recipe for this model.")
    method.check_divisible(step, shape, group)
    for linear in shape.linears:
        if linear.out_features % WORD:
            raise UnfitModel(
                f"awq needs outputs divisible by {WORD}, to pack into words; {linear.name} has {linear.out_features}.",
                hint="Use a w8a8 recipe for this model.",
            )


def layout(linear: Linear, group_size: int) -> dict[str, Tensor]:
    """autoawq's GEMM layout: words of 32 bits along the outputs, scales in half precision."""
    words, groups = linear.out_features // WORD, linear.in_features // group_size
    return {
        f"{linear.name}.qweight": Tensor(dtype="I32", shape=(linear.in_features, words)),
        f"{linear.name}.qzeros": Tensor(dtype="I32", shape=(groups, words)),
        f"{linear.name}.scales": Tensor(dtype="F16", shape=(groups, linear.out_features)),
    }


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed; norms change their values, embeddings and the head stay as they are."""
    return method.replaced(shape, {linear.name: layout(linear, _group_size(step)) for linear in shape.linears})


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Scale, clip, round and pack a decoder layer at a time, each seeing what the rounded ones before it make of the text.

    Raises `Unstable` where not one layer can be quantized.
    """
    group = _group_size(step)
    given = Source(source)
    with Writer(target, given) as out:
        made = layerwise.each(source, context.windows(step), lambda layer: _press(layer, group, given), about=step, gram=True)
        told = layerwise.write(made, out)
        out.copy_rest()
    kept = sorted(name for name, facts in told.items() if "kept" in facts)
    if len(kept) == len(told):
        raise Unstable(f"Not one linear can be quantized: {told[kept[0]]['kept']}.", hint="Choose another base model.")
    config = {
        "quant_method": "awq", "bits": BITS, "group_size": group, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["lm_head", *kept], **({"dynamic": gptq_files.dynamic(kept)} if kept else {}),
    }  # fmt: skip  # gptqmodel reads `dynamic`, the others the list
    dense.edit_config(target, quantization_config=config)
    dense.settle(target, source)
    return Outcome(layers=dict(sorted(told.items())), notes=(method.SAME_MACHINE,))


def _press(layer: Layer, group: int, given: Source) -> Made:
    """Change one decoder layer; return its tensors and what there is to say of its linears."""
    grams = {name: inputs.gram / inputs.tokens for name, inputs in layer.inputs.items()}
    faults = {name: fault for name in grams if (fault := _fault(layer, name))}
    told: dict[str, dict[str, Scalar]] = {name: {"kept": fault} for name, fault in faults.items()}
    stored: dict[str, dict[str, Any]] = {}
    exponents: dict[str, float] = {}
    for before, after in PAIRS:
        exponents.update(_smooth(layer, before, after, group, grams, faults, given))
    for name, gram in grams.items():
        weight = layer.weight(name)
        if name not in faults:
            try:
                shrink = None if name.endswith(UNCLIPPED) else clipping(weight, gram, group)
                levels, scales, zeros = rounded(weight, group, shrink)
                new = restored(levels, scales, zeros)
                told[name] = {"exponent": exponents.get(name, 0.0), "weight_error": _error(weight, new)}
                stored[f"{name}.weight"] = {f"{name}.{key}": value for key, value in packed(levels, scales, zeros).items()}
                layer.set_weight(name, new)
                continue
            except KeptError as kept:
                told[name] = {"kept": str(kept)}
        stored[f"{name}.weight"] = {f"{name}.weight": weight.to(given.dtype(f"{name}.weight"))}
    linears = {f"{name}.weight" for name in grams}
    for name, tensor in scaling.stored(layer, given):
        if name not in linears:  # norms and biases, some of them scaled
            stored[name] = {name: tensor}
    return Made(tensors=stored, told=told)


def _fault(layer: Layer, name: str) -> str:
    if not layer.weight(name).isfinite().all():
        return "its weights hold NaN or infinity"
    return "" if layer.inputs[name].finite else "its inputs on the calibration text hold NaN or infinity, or are too large to be squared"


def _smooth(
    layer: Layer, before: str, after: tuple[str, ...], group: int, grams: dict[str, Any], faults: Mapping[str, str], given: Source
) -> dict[str, float]:
    """Scale the inputs of the linears `after` by what serves their rounding best, and the outputs of `before` by the inverse.

    Returns the exponent found for each linear; none where the widths do not match (shared key-value heads) or one of them is at fault.
    """
    names = [f"{layer.name}.{name}" for name in after]
    first = layer.module.get_submodule(before)
    if len(first.weight) != len(grams[names[0]]) or faults.keys() & {*names, f"{layer.name}.{before}"}:
        return {}
    exponent, scale = best_scale([layer.weight(name) for name in names], grams[names[0]], group)
    scale = scaling.move(layer, before, names, scale, given)
    for name in names:
        grams[name] = grams[name] / scale / scale[:, None]
    return dict.fromkeys(names, exponent)


def best_scale(weights: list[Any], gram: Any, group: int) -> tuple[float, Any]:
    """Return the exponent, and the scale a column, that make the rounding of `weights` (out, in) change their outputs least.

    `gram` is the mean of x xᵀ over the inputs, (in, in). Exponent 0, a scale of 1, is among what is tried.
    """
    magnitude = gram.diagonal().sqrt()
    best = (float("inf"), 0.0, magnitude.new_ones(len(magnitude)))
    for step in range(GRID):
        scale = magnitude.pow(step / GRID).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        if not (scale.isfinite().all() and (scale > 0).all()):
            break
        error = sum(_lost(restored(*rounded(weight * scale, group)) / scale - weight, gram) for weight in weights)
        if error < best[0]:
            best = (error, step / GRID, scale)
    return best[1], best[2]


def _lost(difference: Any, gram: Any) -> float:
    return float(((difference @ gram) * difference).sum())


def clipping(weight: Any, gram: Any, group: int) -> Any:
    """Return by row and group, (out, groups, 1), the share of the range whose rounding changes the group's part of the output least."""
    import torch

    grouped = weight.reshape(len(weight), -1, group)
    blocks = torch.stack([block[:, place * group : (place + 1) * group] for place, block in enumerate(gram.split(group))])
    errors = []
    for share in SHRINK:
        difference = restored(*rounded(weight, group, share)).reshape(grouped.shape) - grouped
        errors.append((torch.einsum("rgi,gij->rgj", difference, blocks) * difference).sum(dim=-1))
    best = torch.stack(errors).nan_to_num(float("inf")).argmin(dim=0)
    return torch.tensor(SHRINK)[best][..., None]


def rounded(weight: Any, group: int, shrink: Any = None) -> tuple[Any, Any, Any]:
    """Return levels 0 to 15 (out, groups, group), scales as stored in half precision, and zero points, both (out, groups, 1).

    A group's range always has zero in it, so that zeros stay zeros. `shrink` is the share of the range that is kept.
    """
    grouped = weight.reshape(len(weight), -1, group)
    share = 1.0 if shrink is None else shrink
    low = grouped.amin(dim=-1, keepdim=True).clamp(max=0) * share
    high = grouped.amax(dim=-1, keepdim=True).clamp(min=0) * share
    scales = ((high - low) / TOP).half().float()
    scales = scales.where(scales != 0, scales.new_ones(()))
    zeros = (-low / scales).round().clamp(0, TOP)
    return ((grouped / scales).round() + zeros).clamp(0, TOP), scales, zeros


def restored(levels: Any, scales: Any, zeros: Any) -> Any:
    """Return the weights (out, in) that levels, scales and zero points stand for."""
    return ((levels - zeros) * scales).flatten(1)


def _error(weight: Any, new: Any) -> float:
    """Return ‖W - Q(W)‖ / ‖W‖, 0 for weights that are all zero; raise `KeptError` where nothing is left of the weights."""
    error = float((weight - new).norm() / weight.norm()) if weight.any() else 0.0
    if not error < 1:
        raise KeptError("its scales leave float16")
    return float(f"{error:.4g}")


def packed(levels: Any, scales: Any, zeros: Any) -> dict[str, Any]:
    """Return the tensors of autoawq's GEMM layout."""
    return {
        "qweight": _words(levels.flatten(1).t()),
        "qzeros": _words(zeros.squeeze(-1).t()),
        "scales": scales.squeeze(-1).t().half().contiguous(),
    }


def _words(levels: Any) -> Any:
    """Pack levels (rows, outputs) into words of eight neighbouring outputs, (rows, outputs / 8), int32."""
    import torch

    values = levels.to(torch.int64).reshape(len(levels), -1, WORD)
    words = sum(values[..., place] << (BITS * number) for number, place in enumerate(ORDER))
    return words.to(torch.int32).contiguous()  # a word past 2**31 wraps around, as it is to
