"""GPTQ: each layer's weights are rounded column by column, the error of each column made up for in those not yet rounded.

Pressed again on the same machine with as many threads, the bytes are the same; other hardware sums in another order, and a weight near
the middle of two levels may then fall to the other one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from hub.domain import Step
from hub.errors import UnfitModel
from runners import dense, formats, method
from runners.checkpoint import ModelShape
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights to 2, 3, 4 or 8 bits in groups, with second-order correction from calibration text (gptqmodel)."
PAPER = "https://arxiv.org/abs/2210.17323"
SCHEMES = ("W2A16", "W3A16", "W4A16", "W8A16")
FORMAT = "gptq"
NEEDS = ("gptqmodel", "optimum", "transformers", "torch")
WORKS = "whole"
WORD = 32


def _options(step: Step) -> tuple[int, int, bool, float]:
    values = method.options(step, group_size=128, desc_act=False, damp_percent=0.05)
    group, damp = int(values["group_size"]), float(values["damp_percent"])
    method.require(
        group in (-1, 16, 32, 64, 128, 256, 512, 1024), step, "group_size", group, "a power of two from 16 to 1024, or -1 for none"
    )
    method.require(0 < damp < 1, step, "damp_percent", damp, "between 0 and 1")
    return method.weight_bits(step), group, bool(values["desc_act"]), damp


def check(step: Step, shape: ModelShape) -> None:
    """Refuse Conv1D models, and widths that groups, or words of 32 bits, do not divide."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    group = _options(step)[1]
    if shape.conv1d:
        # gptqmodel packs Conv1D well, but GPT-2's weight initialisation in transformers 5.17 then asks for the dense weight and fails.
        raise UnfitModel(
            f"gptq could pack {shape.architecture}, but transformers cannot load the result.",
            hint="Use a bitsandbytes recipe for this model.",
        )
    if group > 0:
        method.check_divisible(step, shape, group)
    for linear in shape.linears:
        widths = linear.out_features, linear.in_features
        if any(width % WORD for width in widths):
            raise UnfitModel(
                f"gptq needs widths divisible by {WORD}, to pack into words; {linear.name} is {widths[0]} by {widths[1]}.",
                hint="Use a w8a8 recipe for this model.",
            )


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed; embeddings, norms and the head stay as they are."""
    bits, group, _, _ = _options(step)
    return method.replaced(shape, {linear.name: formats.gptq(linear, bits=bits, group_size=group) for linear in shape.linears})


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Quantize with gptqmodel in float32, which is several times faster than bf16 on a CPU without AMX."""
    # With one or two cores gptqmodel starts one worker and then asks for two of them; it reads this when its pool is first used.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 2) // 2)))
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.quantization import QuantizeConfig

    bits, group, desc_act, damp = _options(step)
    assert step.calibration is not None  # check() refuses a step without one
    dense.require_whole(source)
    torch.manual_seed(step.calibration.seed)
    samples = [{"input_ids": window, "attention_mask": [1] * len(window)} for window in context.windows(step)]
    config = QuantizeConfig(
        bits=bits,
        group_size=group,
        desc_act=desc_act,
        act_group_aware=not desc_act and group > 0,
        sym=True,
        damp_percent=damp,
        offload_to_disk=False,
    )
    model = GPTQModel.load(str(source), config, dtype=torch.float32, device="cpu")
    with _logs_in(context.scratch):
        model.quantize(samples, batch_size=min(8, len(samples)), tokenizer=context.tokenizer)
    model.save(str(target))
    _clean_config(target)
    dense.settle(target, source)
    return Outcome(notes=(method.SAME_MACHINE,))


@contextlib.contextmanager
def _logs_in(folder: Path) -> Iterator[None]:
    """Have gptqmodel write its log files below `folder`; they would go to `logs/` in the user's current folder, and no option says so."""
    from gptqmodel.looper import loop_processor

    before = loop_processor._PROJECT_LOG_DIR
    loop_processor._PROJECT_LOG_DIR = folder.resolve() / "logs"
    try:
        yield
    finally:
        loop_processor._PROJECT_LOG_DIR = before


def _clean_config(target: Path) -> None:
    # How the run was carried out (offloading, temporary folders) is no part of the model, and would change its hash every time.
    from runners.checkpoint import read_config

    quantization = read_config(target)["quantization_config"]
    kept = ("quantizer", "uri", "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "mse", "act_group_aware")
    quantization["meta"] = {key: value for key, value in quantization.get("meta", {}).items() if key in kept}
    dense.edit_config(target, quantization_config=quantization)
