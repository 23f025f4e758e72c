"""QAT: the model learns with its weights rounded as they will be stored, and so learns to live with the rounding.

Gradients pass the rounding as if it were not there (the straight-through estimator); the scales are learnt too. What is stored are the
levels and scales of the last step: nothing is rounded afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from hub.errors import Unstable
from runners import compressed, dense, layerwise, layouts, method, rounding, training
from runners.checkpoint import ModelShape
from runners.layerwise import Layer
from runners.method import Outcome, PressContext, Promise
from runners.streaming import rewrite
from runners.unfinished import Made

FAMILY = "quantization"
SUMMARY = "Trains with weights rounded to 2, 3, 4 or 8 bits, scales learnt too, towards the base's predictions (compressed-tensors)."
PAPER = "https://arxiv.org/abs/2305.17888"
SCHEMES = ("W2A16", "W3A16", "W4A16", "W8A8")
FORMAT = "compressed-tensors"
NEEDS = compressed.NEEDS
WORKS = "training"
RESUMES = "layers"
SPARES = True
COPIES = 9  # each fake-quantized weight is kept in several forms for its gradient
STARTS = ("gptq", "rtn")
OBSERVER = "memoryless_mse"


@dataclass(frozen=True, kw_only=True)
class _Options:
    group_size: int
    start: str
    objective: str
    budget: training.Budget


def _options(step: Step) -> _Options:
    values = method.options(step, group_size=128, start="gptq", objective="teacher", tokens=65_536, batch=1, learning_rate=3e-4)
    found = _Options(
        group_size=int(values["group_size"]),
        start=str(values["start"]),
        objective=str(values["objective"]),
        budget=training.budget(step, values),
    )
    method.require(found.group_size >= 8, step, "group_size", found.group_size, "at least 8")
    rows = step.scheme == "W8A8"
    method.require(not rows or "group_size" not in step.params, step, "group_size", found.group_size, "left out: W8A8 has a scale a row")
    method.require(found.start in STARTS, step, "start", found.start, " or ".join(STARTS))
    method.require(found.objective in training.OBJECTIVES, step, "objective", found.objective, " or ".join(training.OBJECTIVES))
    return found


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models, widths that the groups do not divide, and a step without a text to learn from."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    options = _options(step)
    method.check_plain_linear(step, shape, "compressed-tensors")
    if step.scheme != "W8A8":
        method.check_divisible(step, shape, options.group_size)


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed; embeddings, norms and the head keep their shapes and learn too."""
    if step.scheme == "W8A8":
        return method.replaced(shape, {linear.name: layouts.int_quantized(linear, shape.dtype) for linear in shape.linears})
    bits, group = method.weight_bits(step), _options(step).group_size
    packed = {linear.name: layouts.pack_quantized(linear, shape.dtype, bits=bits, group_size=group) for linear in shape.linears}
    return method.replaced(shape, packed)


def _scheme(step: Step) -> Any:
    if step.scheme == "W8A8":
        return compressed.scheme(compressed.INT8_ROWS, compressed.INT8_DYNAMIC)
    weights = {"num_bits": method.weight_bits(step), "type": "int", "symmetric": True}
    return compressed.scheme({**weights, "strategy": "group", "group_size": _options(step).group_size})


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Train, and pack each linear as it was last rounded."""
    model, told = learn(step, source, context)
    _write(source, target, model, _scheme(step))
    return Outcome(layers=told, notes=(method.SAME_MACHINE,))


def learn(step: Step, source: Path, context: PressContext) -> tuple[Any, dict[str, dict[str, Scalar]]]:
    """Find a first rounding, train all weights and scales in float32, dropout off, and return the model, which rounds as it runs.

    Also returns what there is to say of each linear: by which rounding it began.
    """
    import torch
    from torch.nn.utils import parametrize

    assert step.calibration is not None  # check() refuses a step without one
    options, scheme = _options(step), _scheme(step)
    torch.manual_seed(step.calibration.seed)
    windows = context.windows(step)
    stored = getattr(torch, dense.own_dtype(source))
    begin, told = _start(source, windows, scheme.weights, stored, by_gptq=options.start == "gptq")
    model = dense.load(source, dtype="float32")
    for name in list(begin):
        module = model.get_submodule(name)
        weight, scale = begin.pop(name)
        module.weight.data.copy_(weight)
        parametrize.register_parametrization(module, "weight", grid(scale, scheme.weights, stored), unsafe=True)
        if scheme.input_activations:
            module.register_forward_pre_hook(_rounding(scheme.input_activations))
    training.recompute(model)
    teacher = dense.load(context.base_folder, dtype="float32") if options.objective == "teacher" else None
    training.train(
        model.parameters(),
        training.batches(windows, options.budget.batch, step.calibration.seed),
        training.objective(options.objective, model, teacher),
        steps=options.budget.steps(windows),
        learning_rate=options.budget.learning_rate,
        additive=True,
    )
    return model, told


def grid(scale: Any, args: Any, stored: Any) -> Any:
    """Return a parametrization that rounds a weight (out, in) to the levels of compressed-tensors' `args`.

    `scale` (out, groups) is where the scales begin; they are learnt by their logarithms, and rounded to the dtype in which they will be
    `stored`. The gradients are those of LSQ (Esser et al. 2020, equations 3 and 5): by the weight 1 inside the grid and 0 beyond its ends;
    by the scale, level - w / s inside it and the end's level beyond. The values are compressed-tensors' own.
    """
    import torch
    from compressed_tensors.quantization import fake_quantize

    class Grid(torch.nn.Module):  # type: ignore[misc]  # torch is imported in functions only, and untyped here
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("start", scale.float())
            self.log = torch.nn.Parameter(torch.zeros_like(self.start))

        def scale(self) -> Any:
            exact = self.start * self.log.exp()
            return exact + (exact.to(stored).float() - exact).detach()

        def forward(self, weight: Any) -> Any:
            scale = self.scale()
            least, most = -(2 ** (args.num_bits - 1)), 2 ** (args.num_bits - 1) - 1
            ratio = (weight.unflatten(-1, (scale.shape[-1], -1)) / scale.unsqueeze(-1)).clamp(least, most)
            rounded = ((ratio + (ratio.round() - ratio).detach()) * scale.unsqueeze(-1)).flatten(-2)
            exact = fake_quantize(weight.detach(), scale.detach(), torch.zeros_like(scale, dtype=torch.int8), args)
            return rounded + (exact - rounded).detach()

    return Grid()


def _rounding(args: Any) -> Any:
    """Return a hook that rounds a linear's inputs as an engine will, a scale a token; gradients pass straight through."""
    from compressed_tensors.quantization import fake_quantize
    from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

    def hook(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        given = inputs[0].detach()
        scale, zero = compute_dynamic_scales_and_zp(value=given, args=args, module=module)
        return (inputs[0] + (fake_quantize(given, scale, zero, args) - given), *inputs[1:])

    return hook


def _start(
    source: Path, windows: list[list[int]], args: Any, stored: Any, *, by_gptq: bool
) -> tuple[dict[str, tuple[Any, Any]], dict[str, dict[str, Scalar]]]:
    """Return each linear's weight and scales to begin with, and what there is to say of it.

    The scales are those of least squared error. GPTQ makes up for each column's rounding in the columns after it; where its Hessian cannot
    be factorized however damped, the layer begins with its own weights, which the first step rounds to nearest.
    """
    from llmcompressor.observers import Observer

    def begin(layer: Layer) -> Made:
        found: dict[str, dict[str, Any]] = {}
        told: dict[str, dict[str, Scalar]] = {}
        for name, seen in layer.inputs.items():
            weight = layer.weight(name)
            observer = Observer.load_from_registry(OBSERVER, base_name="weight", args=args)
            observer(weight)
            scale = observer.get_qparams()["scale"].to(stored).float()
            told[name] = {"start": "rtn"}
            tried = rounding.gptq(weight, scale, args, seen.gram, seen.tokens) if by_gptq and seen.finite else None
            if tried is not None:
                weight, damp = tried
                told[name] = {"start": "gptq", **({} if damp == rounding.DAMPS[0] else {"damp": damp})}
                layer.set_weight(name, weight)
            found[name] = {"weight": weight.clone(), "scale": scale}
        return Made(tensors=found, told=told)

    about = ("qat", args.model_dump(mode="json"), str(stored), by_gptq)
    found: dict[str, tuple[Any, Any]] = {}
    told: dict[str, dict[str, Scalar]] = {}
    for made in layerwise.each(source, windows, begin, about=about, gram=by_gptq):
        found.update({name: (tensors["weight"], tensors["scale"]) for name, tensors in made.tensors.items()})
        told.update(made.told)
    return found, told


def _write(source: Path, target: Path, model: Any, scheme: Any) -> None:
    """Write the packed linears, and all else in the dtype of the source."""
    import torch

    values = model.state_dict()
    if not all(bool(value.isfinite().all()) for value in values.values()):
        raise Unstable(f"Training {source.name} left NaN or infinity in its weights.", hint="Use a lower learning_rate.")

    def change(name: str, tensor: Any) -> dict[str, Any]:
        linear = name.removesuffix(".weight")
        if name in values:
            return {name: values[name].to(tensor.dtype)}
        learnt = model.get_submodule(linear).parametrizations.weight
        packed = rounding.packed(learnt.original.data, learnt[0].scale(), scheme, tensor.dtype)
        return {f"{linear}.{key}": part for key, part in packed.items()}

    with torch.no_grad():
        rewrite(source, target, change)
    compressed.describe(target, source, [scheme])
