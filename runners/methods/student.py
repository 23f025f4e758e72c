"""A student for `distil` to teach: a smaller model of the teacher's kind, of evenly spaced layers of it, or of random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.domain import Step
from hub.errors import UnfitModel
from runners import dense, depth, method, streaming, widths
from runners.architectures import PER_LAYER_LISTS, architecture
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise
from runners.widths import Widths

FAMILY = "distillation"
SUMMARY = "Makes a smaller student for distillation: evenly spaced layers of the teacher, or random weights of given widths."
PAPER = "https://arxiv.org/abs/1910.01108"
SCHEMES = ("layers", "random")
FORMAT = "dense"
NEEDS = ("transformers", "torch", "safetensors")
WORKS = "whole"
RESUMES = "no"
SPARES = False
_SIZES = ("hidden", "intermediate", "heads", "kv_heads", "head_dim")


def _options(step: Step) -> dict[str, int]:
    values = method.options(step, layers=0, hidden=0, intermediate=0, heads=0, kv_heads=0, head_dim=0, seed=0)
    for name, value in values.items():
        method.require(int(value) >= 0, step, name, value, "at least 0 (0: as the teacher has it; half of its layers)")
    for name in _SIZES if step.scheme == "layers" else ():
        method.require(not values[name], step, name, values[name], "0 for the scheme layers, whose widths are the teacher's")
    return {name: int(value) for name, value in values.items()}


def _layers(step: Step, shape: ModelShape) -> int:
    return _options(step)["layers"] or max(1, shape.layers // 2)


def _widths(step: Step, shape: ModelShape) -> Widths:
    asked, now = _options(step), widths.of(shape)
    hidden, heads = asked["hidden"] or now.hidden, asked["heads"] or now.heads
    if shape.conv1d:  # GPT-2 has no width of a head, and as many heads of keys as of queries
        return Widths(
            hidden=hidden, mlp=asked["intermediate"] or now.mlp, heads=heads, kv_heads=heads, head_dim=hidden // heads if heads else 0
        )
    return replace(
        now,
        hidden=hidden,
        heads=heads,
        mlp=asked["intermediate"] or now.mlp,
        kv_heads=asked["kv_heads"] or min(now.kv_heads, heads),
        head_dim=asked["head_dim"] or now.head_dim,
    )


def check(step: Step, shape: ModelShape) -> None:
    """Refuse more layers than the teacher has to give, and widths of which transformers makes no model."""
    method.check_common(step, shape, SCHEMES)
    if _layers(step, shape) > shape.layers:
        raise UnfitModel(f"student is to have {_layers(step, shape)} layers, its teacher has {shape.layers}.", hint="Ask for fewer layers.")
    wanted = _widths(step, shape)
    widths.check(step, shape.architecture, wanted)
    widths.resized(shape, wanted)


def promise(step: Step, shape: ModelShape) -> Promise:
    """The teacher's tensors in fewer layers, or in other widths; random weights promise no zeros."""
    layers = _layers(step, shape)
    if step.scheme == "layers":
        return method.unchanged(depth.shortened(shape, layers))
    return method.unchanged(widths.resized(depth.shortened(shape, layers), _widths(step, shape)), zeros={})


def evenly(layers: int, of: int) -> list[int]:
    """Return which of `of` layers are taken: evenly spaced, first and last among them (DistilBERT's 0, 2, 4, 7, 9, 11 of twelve)."""
    return [round(place * (of - 1) / (layers - 1)) for place in range(layers)] if layers > 1 else [0]


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Copy the layers tensor by tensor; or make a model of the new config with weights as its class begins with, from the seed."""
    shape = shape_of(source)
    layers = _layers(step, shape)
    if step.scheme == "layers":
        kept = evenly(layers, shape.layers)
        depth.write(source, target, kept)
        return Outcome(layers=depth.told(architecture(shape.architecture).layers, shape.layers, kept))
    _initialise(source, target, layers=layers, wanted=_widths(step, shape), seed=_options(step)["seed"])
    return Outcome(notes=("All weights are random: until it is distilled, the student has learnt nothing.",))


def _initialise(source: Path, target: Path, *, layers: int, wanted: Widths, seed: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    name = str(config.architectures[0])
    values: dict[str, Any] = {architecture(name).count_key: layers, **widths.config(name, wanted)}
    for key in PER_LAYER_LISTS:
        if isinstance(found := getattr(config, key, None), list):
            values[key] = found[:layers]
    for key, value in values.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    weights = model.state_dict()
    streaming.rewrite(source, target, lambda name, old: {name: weights[name].to(old.dtype)} if name in weights else {})
    dense.edit_config(target, **values)
