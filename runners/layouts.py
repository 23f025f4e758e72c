"""How linears lie on disk in the compressed-tensors format, scheme by scheme, from their widths alone."""

from __future__ import annotations

from math import ceil

from runners.checkpoint import Linear
from runners.headers import Tensor


def _scales(linear: Linear, strategy: str, group_size: int) -> tuple[int, ...]:
    """Return the shape of the scales: one in all (tensor), one a row (channel), or one for every group of a row (group)."""
    groups = ceil(linear.in_features / group_size) if strategy == "group" else 1
    return (1,) if strategy == "tensor" else (linear.out_features, groups)


def pack_quantized(
    linear: Linear, dtype: str, *, bits: int, group_size: int = 0, strategy: str = "group", symmetric: bool = True
) -> dict[str, Tensor]:
    """Words of 32 bits along the inputs, scales in the model's own dtype; zero points packed along the outputs, a single one as a byte."""
    scales = _scales(linear, strategy, group_size)
    tensors = {
        f"{linear.name}.weight_packed": Tensor(dtype="I32", shape=(linear.out_features, ceil(linear.in_features * bits / 32))),
        f"{linear.name}.weight_scale": Tensor(dtype=dtype, shape=scales),
        f"{linear.name}.weight_shape": Tensor(dtype="I64", shape=(2,)),
    }
    if not symmetric:
        packed = Tensor(dtype="I32", shape=(ceil(linear.out_features * bits / 32), scales[-1]))
        tensors[f"{linear.name}.weight_zero_point"] = Tensor(dtype="I8", shape=(1,)) if strategy == "tensor" else packed
    return tensors


def int_quantized(linear: Linear, dtype: str, *, strategy: str = "channel", group_size: int = 0, static: bool = False) -> dict[str, Tensor]:
    """A byte a weight, also where it has 4 bits; `static` adds the scale to which inputs are rounded."""
    return _bytes(linear, "I8", dtype, _scales(linear, strategy, group_size), static=static)


def float_quantized(linear: Linear, dtype: str, *, strategy: str = "channel", block: int = 0, static: bool = False) -> dict[str, Tensor]:
    """An FP8 byte a weight, and scales in the model's dtype: one, one a row, or one for every square block (strategy `block`)."""
    blocks = (ceil(linear.out_features / block), ceil(linear.in_features / block)) if strategy == "block" else ()
    return _bytes(linear, "F8_E4M3", dtype, blocks or _scales(linear, strategy, 0), static=static)


def _bytes(linear: Linear, kind: str, dtype: str, scales: tuple[int, ...], *, static: bool) -> dict[str, Tensor]:
    tensors = {
        f"{linear.name}.weight": Tensor(dtype=kind, shape=(linear.out_features, linear.in_features)),
        f"{linear.name}.weight_scale": Tensor(dtype=dtype, shape=scales),
    }
    return {**tensors, f"{linear.name}.input_scale": Tensor(dtype=dtype, shape=(1,))} if static else tensors


def mxfp4(linear: Linear) -> dict[str, Tensor]:
    """Two FP4 (E2M1) weights a byte and for every 32 of them a power of two as a byte (E8M0)."""
    return _fp4(linear, "U8", 32)


def nvfp4(linear: Linear, *, activations: bool) -> dict[str, Tensor]:
    """Two FP4 (E2M1) weights a byte, an FP8 scale for every 16 of them, a global one in float32, and one for the inputs."""
    names = ("weight_global_scale", "input_global_scale") if activations else ("weight_global_scale",)
    return {**_fp4(linear, "F8_E4M3", 16), **{f"{linear.name}.{name}": Tensor(dtype="F32", shape=(1,)) for name in names}}


def _fp4(linear: Linear, scale: str, group_size: int) -> dict[str, Tensor]:
    return {
        f"{linear.name}.weight_packed": Tensor(dtype="U8", shape=(linear.out_features, linear.in_features // 2)),
        f"{linear.name}.weight_scale": Tensor(dtype=scale, shape=(linear.out_features, linear.in_features // group_size)),
    }
