"""bitsandbytes: weights in 4-bit NormalFloat or FP4, a scale for every 64 of them, dequantized as the model runs; or LLM.int8().

LLM.int8() has weights in 8 bits with a scale a row, and rounds inputs by token as they come, but for columns with a value above 6, which
are multiplied in 16 bits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.domain import Step
from hub.errors import UnfitModel, Unstable
from runners import dense, formats, method
from runners.checkpoint import Linear, ModelShape
from runners.checkpoint import shape as shape_of
from runners.headers import Tensor
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Stores weights as 4-bit NormalFloat or FP4 in blocks of 64, or in INT8 by row (LLM.int8()); needs no calibration."
PAPER = "https://arxiv.org/abs/2305.14314"
SCHEMES = ("NF4", "FP4", "INT8")
FORMAT = "bitsandbytes"
NEEDS = ("bitsandbytes", "transformers", "torch")
WORKS = "whole"
RESUMES = "no"
SPARES = False
BLOCK = 64
ROWS = 32


def _double(step: Step) -> bool:
    double = bool(method.options(step, double_quant=False)["double_quant"])
    method.require(not double or step.scheme != "INT8", step, "double_quant", double, "false for INT8, whose scales are few")
    return double


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures and schemes, and widths that only a GPU could run."""
    method.check_common(step, shape, SCHEMES)
    _double(step)
    if step.scheme == "INT8":
        return
    # On a CPU with AVX512-BF16 the library packs weights anew when the model first runs, and fails there on other widths.
    for linear in shape.linears:
        if linear.in_features % BLOCK or linear.out_features % ROWS:
            raise UnfitModel(
                f"bitsandbytes needs inputs divisible by {BLOCK} and outputs by {ROWS} to run on a CPU; "
                f"{linear.name} has {linear.in_features} inputs and {linear.out_features} outputs.",
                hint="Use a w8a8 recipe for this model.",
            )


def int8(linear: Linear) -> dict[str, Tensor]:
    """LLM.int8()'s layout: a byte a weight, always (out, in), the greatest magnitude of each row, and which layout it is."""
    return {
        f"{linear.name}.weight": Tensor(dtype="I8", shape=(linear.out_features, linear.in_features)),
        f"{linear.name}.SCB": Tensor(dtype="F32", shape=(linear.out_features,)),
        f"{linear.name}.weight_format": Tensor(dtype="U8", shape=()),
    }


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed; embeddings, norms and the head stay as they are."""
    quant_type, double = step.scheme.lower(), _double(step)
    if quant_type == "int8":
        return method.replaced(shape, {linear.name: int8(linear) for linear in shape.linears})
    layers = {linear.name: formats.bitsandbytes_4bit(linear, quant_type=quant_type, double=double) for linear in shape.linears}
    made = method.replaced(shape, layers)
    # The quantization state is a small JSON text in bytes; its length varies with the numbers in it.
    return replace(made, elastic=frozenset(name for name in made.tensors if ".quant_state." in name))


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Quantize while loading, in the model's own dtype; linears whose weights hold NaN or infinity stay as they are.

    Raises `Unstable` where not one linear can be quantized.
    """
    import torch
    from transformers import AutoModelForCausalLM

    dense.require_whole(source)
    linears = {f"{linear.name}.weight": linear.name for linear in shape_of(source).linears}
    kept = [linears[name] for name in formats.non_finite(source) if name in linears]
    if len(kept) == len(linears):
        raise Unstable("Not one linear can be quantized: their weights hold NaN or infinity.", hint="Choose another base model.")
    dtype = getattr(torch, dense.own_dtype(source))
    config = _config(step, dtype, kept)
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, quantization_config=config, device_map="cpu", local_files_only=True, trust_remote_code=False
    )
    model.save_pretrained(target)
    return Outcome(layers={name: {"kept": "its weights hold NaN or infinity"} for name in kept})


def _config(step: Step, dtype: Any, kept: list[str]) -> Any:
    from transformers import BitsAndBytesConfig

    skipped = ["lm_head", *kept] if kept else None  # None skips the head by itself
    if step.scheme == "INT8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=step.scheme.lower(),
        bnb_4bit_use_double_quant=_double(step),
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skipped,
    )
