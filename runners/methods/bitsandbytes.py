"""bitsandbytes: weights in 4-bit NormalFloat (or FP4), a scale for every 64 of them, dequantized as the model runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hub.domain import Step
from hub.errors import UnfitModel
from runners import dense, formats, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Stores weights as 4-bit NormalFloat or FP4 in blocks of 64; needs no calibration, runs on GPUs and CPUs."
PAPER = "https://arxiv.org/abs/2305.14314"
SCHEMES = ("NF4", "FP4")
FORMAT = "bitsandbytes"
NEEDS = ("bitsandbytes", "transformers", "torch")
WORKS = "whole"
BLOCK = 64
ROWS = 32


def _double(step: Step) -> bool:
    return bool(method.options(step, double_quant=False)["double_quant"])


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures and schemes, and widths that only a GPU could run."""
    method.check_common(step, shape, SCHEMES)
    _double(step)
    # On a CPU with AVX512-BF16 the library packs weights anew when the model first runs, and fails there on other widths.
    for linear in shape.linears:
        if linear.in_features % BLOCK or linear.out_features % ROWS:
            raise UnfitModel(
                f"bitsandbytes needs inputs divisible by {BLOCK} and outputs by {ROWS} to run on a CPU; "
                f"{linear.name} has {linear.in_features} inputs and {linear.out_features} outputs.",
                hint="Use a w8a8 recipe for this model.",
            )


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed; embeddings, norms and the head stay as they are."""
    quant_type, double = step.scheme.lower(), _double(step)
    layers = {linear.name: formats.bitsandbytes_4bit(linear, quant_type=quant_type, double=double) for linear in shape.linears}
    made = method.replaced(shape, layers)
    # The quantization state is a small JSON text in bytes; its length varies with the numbers in it.
    return replace(made, elastic=frozenset(name for name in made.tensors if ".quant_state." in name))


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:  # noqa: ARG001 - one signature for all methods
    """Quantize while loading, in the model's own dtype."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dense.require_whole(source)
    dtype = getattr(torch, dense.own_dtype(source))
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=step.scheme.lower(),
        bnb_4bit_use_double_quant=_double(step),
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, quantization_config=config, device_map="cpu", local_files_only=True, trust_remote_code=False
    )
    model.save_pretrained(target)
    return Outcome()
