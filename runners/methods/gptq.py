"""GPTQ: each layer's weights are rounded column by column, the error of each column made up for in those not yet rounded.

Pressed again on the same machine with as many threads, the bytes are the same; other hardware sums in another order, and a weight near
the middle of two levels may then fall to the other one.

gptqmodel raises the damping by itself where a layer's matrix has no Cholesky factor. Where that does not help, or sums are not finite, it
rounds the layer to nearest and goes on; such a layer is left out here in another run, and named.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hub.domain import Scalar, Step
from hub.errors import CalibrationFailed, ModelPressError, Unstable
from runners import dense, economy, formats, gptq_files, method
from runners.architectures import architecture
from runners.checkpoint import ModelShape, read_config
from runners.checkpoint import shape as shape_of
from runners.method import Outcome, PressContext, Promise

FAMILY = "quantization"
SUMMARY = "Rounds weights to 2, 3, 4 or 8 bits in groups, with second-order correction from calibration text (gptqmodel)."
PAPER = "https://arxiv.org/abs/2210.17323"
SCHEMES = ("W2A16", "W3A16", "W4A16", "W8A16")
FORMAT = "gptq"
NEEDS = ("gptqmodel", "optimum", "transformers", "torch")
WORKS = "whole"
RESUMES = "no"
SPARES = True

_NOT_FINITE = "its weights hold NaN or infinity"
_NO_FACTOR = "GPTQ's matrix has no Cholesky factor at any damping: its inputs on the calibration text are not finite, or too large"
_NO_TEXT = "too little of the calibration text reached it"
_NO_LOSS = "its rounding error is not finite"
_NO_SCALES = "its scales leave float16"


def _options(step: Step) -> tuple[int, int, bool, float]:
    values = method.options(step, group_size=128, desc_act=False, damp_percent=0.05)
    group, damp = int(values["group_size"]), float(values["damp_percent"])
    method.require(
        group in (-1, 16, 32, 64, 128, 256, 512, 1024), step, "group_size", group, "a power of two from 16 to 1024, or -1 for none"
    )
    method.require(0 < damp < 1, step, "damp_percent", damp, "between 0 and 1")
    return method.weight_bits(step), group, bool(values["desc_act"]), damp


def check(step: Step, shape: ModelShape) -> None:
    """Refuse what the format cannot hold, or transformers not run."""
    method.check_common(step, shape, SCHEMES, calibrated=True)
    bits, group, _, _ = _options(step)
    gptq_files.check(step, shape, bits=bits, group_size=group)


def promise(step: Step, shape: ModelShape) -> Promise:
    """Every linear layer of the decoder is packed; embeddings, norms and the head stay as they are."""
    bits, group, _, _ = _options(step)
    return gptq_files.promise(shape, bits=bits, group_size=group)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Quantize with gptqmodel; again without the layers that failed, if any, until none fails.

    Raises `Unstable` or `CalibrationFailed` where not one layer can be quantized.
    """
    # With one or two cores gptqmodel starts one worker and then asks for two of them; it reads this when its pool is first used.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(max(2, (os.cpu_count() or 2) // 2)))
    shape = shape_of(source)
    dense.require_whole(source)
    kept = {name.removesuffix(".weight"): _NOT_FINITE for name in formats.non_finite(source)}
    kept = {linear.name: kept[linear.name] for linear in shape.linears if linear.name in kept}
    while True:
        if len(kept) == len(shape.linears):
            raise _none_left(set(kept.values()))
        found, failed = _quantize(step, source, target, context, kept)
        if not failed:
            break
        kept |= failed
        shutil.rmtree(target)
        target.mkdir()
    _describe(target, shape, kept)
    dense.settle(target, source)
    layers = {name: {"kept": kept[name]} if name in kept else found[name] for name in (linear.name for linear in shape.linears)}
    return Outcome(layers=layers, notes=(method.SAME_MACHINE,))


def _none_left(reasons: set[str]) -> ModelPressError:
    words = f"Not one linear can be quantized: {min(reasons)}."
    if reasons & {_NO_FACTOR, _NO_TEXT}:
        return CalibrationFailed(words, hint="Use a recipe with more calibration text, or choose another base model.")
    return Unstable(words, hint="Choose another base model.")


def _quantize(
    step: Step, source: Path, target: Path, context: PressContext, kept: Mapping[str, str]
) -> tuple[dict[str, dict[str, Scalar]], dict[str, str]]:
    """Quantize all linears but `kept` into `target`; return loss and damping of each by name, and those that failed with the reason.

    In float32, which is several times faster than bf16 on a CPU without AMX.
    """
    import torch
    from gptqmodel import GPTQModel
    from gptqmodel.quantization import QuantizeConfig

    bits, group, desc_act, damp = _options(step)
    assert step.calibration is not None  # check() refuses a step without one
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
        dynamic=gptq_files.dynamic(kept) or None,
    )
    model = GPTQModel.load(str(source), config, dtype=torch.float32, device="cpu")
    with _logs_in(context.scratch), _watching_retries() as retried:
        model.quantize(samples, batch_size=1 if economy.frugal() else min(8, len(samples)), tokenizer=context.tokenizer)
    model.save(str(target))
    root = architecture(shape_of(source).architecture).layers
    found, failed = _read_log(model.quant_log, root)
    failed |= dict.fromkeys(retried, _NO_LOSS)
    wide = (name.removesuffix(".scales") for name in formats.non_finite(target) if name.endswith(".scales"))
    return found, {**dict.fromkeys(wide, _NO_SCALES), **failed}


def _read_log(log: list[dict[str, Any]], root: str) -> tuple[dict[str, dict[str, Scalar]], dict[str, str]]:
    """Return loss and damping by linear from gptqmodel's log, and the linears that it rounded to nearest, with the reason."""
    found: dict[str, dict[str, Scalar]] = {}
    failed = {}
    for entry in log:
        name, loss = f"{root}.{entry['layer']}.{entry['module']}", str(entry["loss"])
        if "fallback" in loss:  # "rtn fallback" without a factor, "fallback(rtn): 0.01" where too few tokens came
            failed[name] = _NO_TEXT if "(" in loss else _NO_FACTOR
        elif not math.isfinite(float(loss)):
            failed[name] = _NO_LOSS
        else:
            found[name] = {"damp": float(entry["damp"]), "loss": float(loss)}
    return found, failed


@contextlib.contextmanager
def _watching_retries() -> Iterator[set[str]]:
    """Collect the names of layers that gptqmodel rounds to nearest for a loss that is NaN; its log then says a loss of 0."""
    from gptqmodel.quantization.gptq import GPTQ

    names: set[str] = set()
    original = GPTQ.mock_hessian_inverse

    def noted(self: Any, hessian: Any) -> Any:
        names.add(self._named_module.full_name)
        return original(self, hessian)

    GPTQ.mock_hessian_inverse = noted
    try:
        yield names
    finally:
        GPTQ.mock_hessian_inverse = original


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


def _describe(target: Path, shape: ModelShape, kept: Mapping[str, str]) -> None:
    # How the run was carried out (offloading, temporary folders) is no part of the model, and would change its hash every time.
    quantization = read_config(target)["quantization_config"]
    told = ("quantizer", "uri", "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "mse", "act_group_aware")
    quantization["meta"] = {key: value for key, value in quantization.get("meta", {}).items() if key in told}
    linears = [linear.name for linear in shape.linears]
    dense.edit_config(target, quantization_config={**quantization, **gptq_files.exceptions(linears, kept)})
