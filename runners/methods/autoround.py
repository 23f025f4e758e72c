"""AutoRound: whether each weight goes up or down, and where each group is clipped, is learnt by signed gradient descent.

A decoder layer at a time, towards the layer's own output before rounding. The library works on the whole model in float32; its packed
tensors alone are taken over, all else is the base's.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib import metadata
from pathlib import Path

from hub.domain import Scalar, Step
from hub.errors import Unstable
from runners import dense, gptq_files, layerwise, method
from runners.checkpoint import ModelShape
from runners.checkpoint import shape as shape_of
from runners.layerwise import Layer
from runners.method import Outcome, PressContext, Promise
from runners.streaming import Source, Writer
from runners.unfinished import Made

FAMILY = "quantization"
SUMMARY = "Rounds weights to 2, 3 or 4 bits in groups, rounding and clipping learnt by signed gradient descent (auto-round)."
PAPER = "https://arxiv.org/abs/2309.05516"
SCHEMES = ("W2A16", "W3A16", "W4A16")
FORMAT = "gptq"
NEEDS = ("auto_round", "gptqmodel", "optimum", "transformers", "torch")
WORKS = "training"
RESUMES = "no"
SPARES = False
BATCH = 4
PARTS = ("qweight", "qzeros", "scales", "g_idx")


def _options(step: Step) -> tuple[int, int, int]:
    values = method.options(step, group_size=128, iters=200)
    group, iters = int(values["group_size"]), int(values["iters"])
    method.require(group in (32, 64, 128), step, "group_size", group, "32, 64 or 128")
    method.require(iters >= 1, step, "iters", iters, "at least 1")
    return method.weight_bits(step), group, iters


def check(step: Step, shape: ModelShape) -> None:
    """Refuse what the format cannot hold, or transformers not run."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    bits, group, _ = _options(step)
    gptq_files.check(step, shape, bits=bits, group_size=group)


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed; embeddings, norms and the head stay as they are."""
    bits, group, _ = _options(step)
    return gptq_files.promise(shape, bits=bits, group_size=group)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Learn the rounding with auto-round, and store what it packed beside all else of the base.

    Raises `Unstable` where not one layer can be quantized.
    """
    windows = context.windows(step)
    linears = [linear.name for linear in shape_of(source).linears]
    kept = _faults(source, windows)
    if len(kept) == len(linears):
        raise Unstable(f"Not one linear can be quantized: {next(iter(kept.values()))}.", hint="Choose another base model.")
    made = Source(_quantize(step, source, context, kept))
    for name in linears:
        if name not in kept and not made.read(f"{name}.scales").isfinite().all():
            kept[name] = "its scales leave float16, or its error is not finite"
    with Writer(target, Source(source)) as out:
        for name in linears:
            if name not in kept:
                out.add(f"{name}.weight", {f"{name}.{part}": made.read(f"{name}.{part}") for part in PARTS})
        out.copy_rest()
    bits, group, _ = _options(step)
    config = {
        "quant_method": "gptq", "bits": bits, "group_size": group, "sym": True, "desc_act": False, "lm_head": False,
        "checkpoint_format": "gptq", "meta": {"quantizer": [f"auto-round:{metadata.version('auto-round')}"]},
        **gptq_files.exceptions(linears, kept),
    }  # fmt: skip
    dense.edit_config(target, quantization_config=config)
    dense.settle(target, source)
    layers: dict[str, dict[str, Scalar]] = {name: {"kept": kept[name]} for name in sorted(kept)}
    return Outcome(layers=layers, notes=(method.SAME_MACHINE,))


def _faults(source: Path, windows: list[list[int]]) -> dict[str, str]:
    """Return the linears that no descent could start from, with the reason; auto-round would go on with them in silence."""

    def look(layer: Layer) -> Made:
        faults = {}
        for name, inputs in layer.inputs.items():
            if not layer.weight(name).isfinite().all():
                faults[name] = "its weights hold NaN or infinity"
            elif not inputs.finite:
                faults[name] = "its inputs on the calibration text hold NaN or infinity, or are too large to be squared"
        return Made(told=faults)

    return {name: fault for made in layerwise.each(source, windows, look, about="faults") for name, fault in made.told.items()}


def _quantize(step: Step, source: Path, context: PressContext, kept: Collection[str]) -> Path:
    """Run auto-round on all linears but `kept`; return the folder below the scratch folder in which it saved the packed model."""
    import torch
    from auto_round import AutoRound

    bits, group, iters = _options(step)
    assert step.calibration is not None  # check() refuses a step without one
    windows = context.windows(step)
    rounding = AutoRound(
        dense.load(source, dtype="float32"),
        context.tokenizer,
        scheme=f"W{bits}A16",
        layer_config={name: {"bits": 16} for name in kept},
        dataset=[torch.tensor([window]) for window in windows],
        group_size=group,
        sym=True,
        iters=iters,
        nsamples=len(windows),
        seqlen=step.calibration.sequence_length,
        batch_size=min(BATCH, len(windows)),
        device_map="cpu",
        seed=step.calibration.seed,
        amp=False,  # bfloat16, the default, is slow on most CPUs, and rounds the weights before they are looked at
        enable_torch_compile=False,
    )
    _, folder = rounding.quantize_and_save(str(context.scratch / "auto-round"), format="auto_gptq")
    return Path(folder)
