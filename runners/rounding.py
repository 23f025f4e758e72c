"""Weights rounded in groups as compressed-tensors stores them, each layer with bits of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runners import dense

GPTQ_DAMP = 0.01


def arguments(bits: int, group_size: int) -> Any:
    """Return compressed-tensors' arguments of symmetric integers in groups."""
    from compressed_tensors.quantization import QuantizationArgs

    return QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="group", group_size=group_size)


def scales(weight: Any, args: Any, stored: Any) -> Any:
    """Return the scales (out, groups) of a weight (out, in) in float32, by its extremes, as exactly as the dtype `stored` holds them."""
    from llmcompressor.observers import Observer

    observer = Observer.load_from_registry("memoryless_minmax", base_name="weight", args=args)
    observer(weight)
    return observer.get_qparams()["scale"].to(stored).float()


def nearest(weight: Any, scale: Any, args: Any) -> Any:
    """Return the weight rounded to the nearest levels."""
    import torch
    from compressed_tensors.quantization import fake_quantize

    return fake_quantize(weight, scale, torch.zeros_like(scale, dtype=torch.int8), args)


def gptq(weight: Any, scale: Any, args: Any, gram: Any, tokens: int) -> Any:
    """Return the weight rounded by GPTQ, as llm-compressor has it, each column's error made up for in the columns after it.

    `gram` is Σ x xᵀ of its inputs. None where its Hessian cannot be factorized, even damped, or the result is not finite.
    """
    import torch
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    zero = torch.zeros_like(scale, dtype=torch.int8)
    found, _, failed = quantize_weight(
        weight[None].clone(), (gram / tokens)[None].clone(), scale[None], zero[None], None, args, percdamp=GPTQ_DAMP
    )
    return None if bool(failed.any()) or not bool(found.isfinite().all()) else found[0]


def scheme(bits: int, group_size: int) -> Any:
    """Return compressed-tensors' scheme of such weights; activations stay as they are."""
    import torch
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=arguments(bits, group_size))
    scheme.format = infer_module_format(torch.nn.Linear, scheme)
    return scheme


def packed(weight: Any, scale: Any, scheme: Any, stored: Any) -> dict[str, Any]:
    """Return a rounded weight's tensors as compressed-tensors stores them."""
    import torch
    from compressed_tensors.compressors import compress_module
    from compressed_tensors.quantization import initialize_module_for_quantization

    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    module.weight.data = weight
    initialize_module_for_quantization(module, scheme, force_zero_point=False)
    module.weight_scale.data = scale
    compress_module(module)
    return {key: tensor.to(stored) if key == "weight_scale" else tensor for key, tensor in module.state_dict().items()}


def describe(target: Path, source: Path, schemes: Mapping[int, Any], bits: Mapping[str, int]) -> None:
    """Put one group a bit width into config.json, its layers listed by name; what stays dense is under `ignore`."""
    from compressed_tensors import __version__ as version
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    groups = {
        f"group_{number}": scheme.model_copy(update={"targets": [name for name, chosen in bits.items() if chosen == width]})
        for number, (width, scheme) in enumerate(schemes.items())
    }
    config = QuantizationConfig(
        config_groups=groups,
        ignore=["lm_head", *(name for name, chosen in bits.items() if chosen not in schemes)],
        format="pack-quantized",
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    dense.edit_config(target, dtype=dense.own_dtype(source), quantization_config={"version": version, **config.model_dump()})
