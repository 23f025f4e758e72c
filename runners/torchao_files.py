"""torchao through transformers: quantize while loading, save as safetensors whose bytes are the same every time."""

from __future__ import annotations

import json
import shutil
from math import ceil
from pathlib import Path
from typing import Any

from hub.domain import Scalar
from hub.errors import Unstable
from runners import dense, formats
from runners.checkpoint import Linear
from runners.checkpoint import shape as shape_of
from runners.headers import Tensor, weight_files
from runners.method import Outcome

FORMAT = "torchao"
NEEDS = ("torchao", "transformers", "torch")


def layout(linear: Linear, scale_dtype: str, *, group_size: int = -1) -> dict[str, Tensor]:
    """A byte a weight, whatever its bits; a scale and a zero point for every group of a row, or (-1) for the row."""
    groups = ceil(linear.in_features / group_size) if group_size > 0 else 1
    stem = f"{linear.name}._weight"
    return {
        f"{stem}_qdata": Tensor(dtype="I8", shape=(linear.out_features, linear.in_features)),
        f"{stem}_scale": Tensor(dtype=scale_dtype, shape=(linear.out_features, groups)),
        f"{stem}_zero_point": Tensor(dtype="I8", shape=(linear.out_features, groups)),
    }


def granularity(group_size: int) -> Any:
    """Return torchao's word for groups of a row, or (-1) for whole rows."""
    from torchao.quantization import PerAxis, PerGroup

    return PerGroup(group_size) if group_size > 0 else PerAxis(0)


def write(source: Path, target: Path, config: Any) -> Outcome:
    """Quantize every nn.Linear of the decoder by a torchao config into the folder `target`, in the model's own dtype.

    A linear whose weights or scales hold NaN or infinity stays as it is, named in the outcome. Raises `BadCheckpoint` where the weights
    lack a tensor, or not one linear can be quantized.
    """
    dense.require_whole(source)
    linears = [linear.name for linear in shape_of(source).linears]
    found = {name.removesuffix(".weight") for name in formats.non_finite(source)}
    kept = {name: "its weights hold NaN or infinity" for name in linears if name in found}
    while True:
        if len(kept) == len(linears):
            raise Unstable(f"Not one linear can be quantized: {next(iter(kept.values()))}.", hint="Choose another base model.")
        _write(source, target, config, list(kept))
        spoilt = {name.removesuffix("._weight_scale") for name in formats.non_finite(target)} & set(linears)
        if not spoilt:
            break
        kept |= dict.fromkeys(sorted(spoilt), "its scales hold NaN or infinity")
        shutil.rmtree(target)
        target.mkdir()
    layers: dict[str, dict[str, Scalar]] = {name: {"kept": kept[name]} for name in sorted(kept)}
    return Outcome(layers=layers)


def _write(source: Path, target: Path, config: Any, kept: list[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, TorchAoConfig

    wanted = TorchAoConfig(quant_type=config, modules_to_not_convert=["lm_head", *kept])
    model = AutoModelForCausalLM.from_pretrained(
        source,
        dtype=getattr(torch, dense.own_dtype(source)),
        quantization_config=wanted,
        device_map="cpu",
        local_files_only=True,
        trust_remote_code=False,
    )
    model.save_pretrained(target)
    for path in weight_files(target):
        sort_header(path)


def sort_header(path: Path) -> None:
    """Write a safetensors file's header anew with its metadata sorted: the library orders it by chance, so no two files are alike."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        words = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        words += b" " * (-len(words) % 8)
        beside = path.with_name(f"{path.name}.sorted")
        with beside.open("wb") as out:
            out.write(len(words).to_bytes(8, "little") + words)
            shutil.copyfileobj(stream, out)
    beside.replace(path)
