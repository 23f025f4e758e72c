"""Width pruning: MLP neurons, attention heads and hidden channels of least importance go; a smaller dense checkpoint is left.

Own code. torch-pruning 1.6.1 was tried: it cuts the MLP of Llama and Qwen3, but for heads and hidden channels it ends on Qwen3 in
"shape '[3, -1]' is invalid for input of size 64" (norms on queries and keys, shared keys), it measures no activation of a text, and it
holds the model with all its gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from hub.errors import UnfitModel
from runners import dense, gates, method, streaming, widths
from runners.architectures import architecture
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise
from runners.widths import Widths

FAMILY = "pruning"
SUMMARY = "Removes MLP neurons, attention heads and hidden channels of least importance; leaves a smaller dense checkpoint."
PAPER = "https://arxiv.org/abs/2407.14679"
SCHEMES = ("width",)
FORMAT = "dense"
NEEDS = ("transformers", "torch", "safetensors")
WORKS = "whole"
RESUMES = "no"
SPARES = True
CRITERIA = (*gates.CRITERIA, "magnitude-l1", "magnitude-l2", "random")
_SHARES = ("mlp", "heads", "hidden")


@dataclass(frozen=True, kw_only=True)
class _Options:
    mlp: float
    heads: float
    hidden: float
    multiple: int
    criterion: str


def _options(step: Step) -> _Options:
    values = method.options(step, mlp=0.25, heads=0.0, hidden=0.0, multiple=32, criterion="activation")
    for name in _SHARES:
        method.require(0 <= float(values[name]) < 1, step, name, values[name], "at least 0 and below 1")
    method.require(any(float(values[name]) for name in _SHARES), step, "mlp", values["mlp"], "above 0 where heads and hidden are 0")
    method.require(int(values["multiple"]) > 0, step, "multiple", values["multiple"], "at least 1")
    method.require(values["criterion"] in CRITERIA, step, "criterion", values["criterion"], f"one of {', '.join(CRITERIA)}")
    shares = {name: float(values[name]) for name in _SHARES}
    return _Options(**shares, multiple=int(values["multiple"]), criterion=str(values["criterion"]))


def _left(what: str, size: int, share: float, multiple: int) -> int:
    """Return how many stay: the nearest multiple to what is asked, at least one, fewer than there are."""
    if not share:
        return size
    left = max(1, int(size * (1 - share) / multiple + 0.5)) * multiple
    if left >= size:
        raise UnfitModel(
            f"width_prune is to remove {share:.0%} of {size} {what}: "
            + (f"in multiples of {multiple}, none." if multiple > 1 else "less than one."),
            hint=f"Use a recipe that leaves {what} alone, or takes a larger share.",
        )
    return left


def _target(step: Step, shape: ModelShape) -> Widths:
    options, now = _options(step), widths.of(shape)
    groups = _left("groups of heads" if now.kv_heads != 1 else "group of heads", now.kv_heads, options.heads, 1)
    return replace(
        now,
        mlp=_left("neurons", now.mlp, options.mlp, options.multiple),
        heads=now.heads // now.kv_heads * groups if groups else now.heads,
        kv_heads=groups,
        hidden=_left("hidden channels", now.hidden, options.hidden, options.multiple),
    )


def check(step: Step, shape: ModelShape) -> None:
    """Refuse shares that remove nothing after rounding, and widths of which transformers makes no model."""
    options = _options(step)
    method.check_common(step, shape, SCHEMES, calibrated=options.criterion in gates.CRITERIA or options.hidden > 0)
    wanted = _target(step, shape)
    widths.check(step, shape.architecture, wanted)
    widths.resized(shape, wanted)


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every tensor is cut along the widths that shrink; zeros that an earlier step left are no longer promised."""
    return method.unchanged(widths.resized(shape, _target(step, shape)), zeros={})


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Score all structures once on the whole model, keep the best of each kind, and cut tensor by tensor.

    A norm divides by the spread of its channels. What it reads has another spread without the removed ones, so its weight is scaled by the
    ratio measured on the calibration text; where the removed channels were zero, the model's logits stay the same.
    """
    shape, options = shape_of(source), _options(step)
    wanted = _target(step, shape)
    scores = _scores(step, source, context, shape)
    neurons = {layer: _best(score, wanted.mlp) for layer, score in scores.mlp.items()}
    groups = {layer: _best(_of_groups(score, shape), wanted.kv_heads) for layer, score in scores.heads.items()}
    channels = _best(scores.hidden, wanted.hidden)
    root = f"{architecture(shape.architecture).layers}."

    def change(name: str, tensor: Any) -> Mapping[str, Any]:
        kept = {"hidden": channels}
        if name.startswith(root):
            layer = int(name.removeprefix(root).partition(".")[0])
            kept |= {"mlp": neurons[layer], **_channels_of(groups[layer], shape)}
        made = widths.cut(name, tensor, kept, shape.conv1d)
        norm = name.removesuffix(".weight")
        if options.hidden and norm in scores.energy:
            energy = scores.energy[norm]
            made = (made.double() * (energy[channels].mean() / energy.mean()).sqrt()).to(made.dtype)
        return {name: made.contiguous()}

    streaming.rewrite(source, target, change)
    dense.edit_config(target, **widths.config(shape.architecture, wanted))
    return Outcome(layers=_told(shape, scores, neurons, groups, options), notes=_notes(shape, scores, channels, options))


def _scores(step: Step, source: Path, context: PressContext, shape: ModelShape) -> gates.Scores:
    import torch

    options = _options(step)
    given = streaming.Source(source)
    scores: gates.Scores | None = None
    if options.criterion.startswith("magnitude"):
        scores = gates.magnitude(((name, given.read(name)) for name in given.names), shape, int(options.criterion[-1]))
    elif options.criterion == "random":
        draw = torch.Generator().manual_seed(step.calibration.seed if step.calibration else 0)
        sizes = {"mlp": shape.intermediate_size, "heads": shape.heads}
        drawn = {
            kind: {layer: torch.rand(size, generator=draw, dtype=torch.float64) for layer in range(shape.layers)}
            for kind, size in sizes.items()
        }
        hidden = torch.rand(shape.hidden_size, generator=draw, dtype=torch.float64)
        scores = gates.Scores(mlp=drawn["mlp"], heads=drawn["heads"], hidden=hidden)
    if scores is not None and not options.hidden:
        return scores
    model = dense.load(source, dtype="float32" if options.criterion == "taylor" else dense.own_dtype(source))
    measured = gates.measure(model, shape, context.windows(step), options.criterion)
    return replace(scores, energy=measured.energy) if scores is not None else measured


def _best(scores: Any, count: int) -> Any:
    """Return the places of the `count` highest scores in ascending order; among equals the first stay."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _of_groups(scores: Any, shape: ModelShape) -> Any:
    return scores.view(shape.kv_heads, -1).sum(dim=-1)


def _channels_of(groups: Any, shape: ModelShape) -> dict[str, Any]:
    """Return the channels of the kept groups of heads along the axes of queries, of keys and values, and of GPT-2's fused layer."""
    import torch

    def blocks(size: int) -> Any:
        return (groups[:, None] * size + torch.arange(size)).flatten()

    query = blocks(shape.heads // shape.kv_heads * shape.head_dim)
    total = shape.heads * shape.head_dim
    return {"query": query, "key": blocks(shape.head_dim), "fused": torch.cat([query + part * total for part in range(3)])}


def _share(scores: Any, kept: Any) -> float:
    return round(float(scores[kept].sum() / scores.sum()) if float(scores.sum()) else 1.0, 6)


def _told(
    shape: ModelShape, scores: gates.Scores, neurons: Mapping[int, Any], groups: Mapping[int, Any], options: _Options
) -> dict[str, dict[str, Scalar]]:
    told: dict[str, dict[str, Scalar]] = {}
    for layer in range(shape.layers):
        mlp, attention = gates.ends(shape, layer)
        if options.mlp:
            told[mlp] = {"neurons": len(neurons[layer]), "importance_left": _share(scores.mlp[layer], neurons[layer])}
        if options.heads:
            kept = ", ".join(str(int(group)) for group in groups[layer])
            told[attention] = {"head_groups": kept, "importance_left": _share(_of_groups(scores.heads[layer], shape), groups[layer])}
    return told


def _notes(shape: ModelShape, scores: gates.Scores, channels: Any, options: _Options) -> tuple[str, ...]:
    measured = (method.SAME_MACHINE,) if options.criterion in gates.CRITERIA or options.hidden else ()
    if not options.hidden:
        return measured
    left = _share(scores.hidden, channels)
    return (f"Of {shape.hidden_size} hidden channels {len(channels)} stay, with {left:.1%} of the importance.", *measured)
