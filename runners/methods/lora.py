"""LoRA: what pruning or distilling lost is learnt back by two narrow matrices beside each linear layer, which are then added to its weight.

The result is a dense checkpoint like the one before it, so that a next step can quantize it. The scheme `qlora` holds the frozen weights in
4-bit NormalFloat while it learns, and adds what was learnt to the weights themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.domain import Step
from runners import dense, method, training
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise
from runners.streaming import Source, rewrite

FAMILY = "recovery"
SUMMARY = "Trains low-rank adapters to bring a pruned model back to its base, and merges them into its weights (peft)."
PAPER = "https://arxiv.org/abs/2106.09685"
SCHEMES = ("lora", "qlora")
FORMAT = "dense"
NEEDS = ("peft", "bitsandbytes", "transformers", "torch")
WORKS = "training"
RESUMES = "no"
SPARES = True
ADAPTER = "recovery"


@dataclass(frozen=True, kw_only=True)
class _Options:
    rank: int
    alpha: int
    objective: str
    budget: training.Budget


def _options(step: Step) -> _Options:
    values = method.options(step, rank=16, alpha=32, objective="teacher", tokens=65_536, batch=1, learning_rate=5e-3)
    found = _Options(
        rank=int(values["rank"]),
        alpha=int(values["alpha"]),
        objective=str(values["objective"]),
        budget=training.budget(step, values),
    )
    method.require(found.rank > 0, step, "rank", found.rank, "at least 1")
    method.require(found.alpha > 0, step, "alpha", found.alpha, "above 0")
    method.require(found.objective in training.OBJECTIVES, step, "objective", found.objective, " or ".join(training.OBJECTIVES))
    return found


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures and a step without a text to learn from."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    _options(step)


def promise(step: Step, shape: ModelShape) -> Promise:  # noqa: ARG001 - one signature for all methods
    """All tensors keep their shapes, pruned weights their zeros; embeddings, norms and the head stay as they are."""
    return method.unchanged(shape)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Train, and write the merged weights a tensor at a time in the dtype of the source."""
    import torch

    model, masks = learn(step, source, context)
    shape = shape_of(source)
    layers = {linear.name: model.get_submodule(linear.name) for linear in shape.linears}

    def merged(name: str, tensor: Any) -> dict[str, Any]:
        linear = name.removesuffix(".weight")
        if linear not in layers:
            return {name: tensor}
        change = _change(layers[linear])
        weight = tensor.float() + (change.t() if shape.conv1d else change)
        return {name: (weight * masks[linear] if linear in masks else weight).to(tensor.dtype)}

    with torch.no_grad():
        rewrite(source, target, merged)
    return Outcome(notes=(method.SAME_MACHINE,))


def learn(step: Step, source: Path, context: PressContext) -> tuple[Any, dict[str, Any]]:
    """Return the frozen model with its trained adapters, dropout off, and the masks of its pruned weights, as they lie on disk."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    assert step.calibration is not None  # check() refuses a step without one
    options, shape = _options(step), shape_of(source)
    torch.manual_seed(step.calibration.seed)
    windows = context.windows(step)
    names = [linear.name for linear in shape.linears]
    model = _frozen(source, step.scheme)
    transposed = shape.conv1d and step.scheme == "lora"  # in 4 bits, transformers has made Conv1D a plain linear
    config = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=names, fan_in_fan_out=transposed)
    inject_adapter_in_model(config, model, adapter_name=ADAPTER)
    given = Source(source)
    masks = {name: mask for name in names if (mask := training.zero_mask(given.read(f"{name}.weight"))) is not None}
    for name, mask in masks.items():
        _learn_around(model.get_submodule(name), mask.t() if shape.conv1d else mask)
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
    return model, masks


def _frozen(source: Path, scheme: str) -> Any:
    """Load the model to learn beside: in float32, or its linears in 4-bit NormalFloat, computing in float32."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if scheme == "lora":
        return dense.load(source, dtype="float32")
    dense.require_whole(source)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, quantization_config=config, device_map="cpu", local_files_only=True, trust_remote_code=False
    ).eval()
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            # In evaluation bitsandbytes packs a layer anew for a CPU that can run it faster so, and then has no gradient for it.
            module.train()
    return model


def _change(layer: Any) -> Any:
    """Return what the adapter adds to the weight, (out, in)."""
    return (layer.lora_B[ADAPTER].weight @ layer.lora_A[ADAPTER].weight) * layer.scaling[ADAPTER]


def _learn_around(layer: Any, mask: Any) -> None:
    """Have a pruned layer learn with just what will be merged: peft's own forward would also use what falls on zeros and is lost."""
    import torch

    def forward(inputs: Any) -> Any:
        return layer.base_layer(inputs) + torch.nn.functional.linear(inputs, _change(layer) * mask)

    layer.forward = forward
