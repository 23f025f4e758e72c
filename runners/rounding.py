"""Weights rounded in groups as compressed-tensors stores them, each layer with bits of its own."""

from __future__ import annotations

from typing import Any

DAMPS = (0.01, 0.1, 1.0)
"""Shares of the Hessian's mean diagonal that GPTQ adds to it, one after the other until it can be factorized."""


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


def gptq(weight: Any, scale: Any, args: Any, gram: Any, tokens: int) -> tuple[Any, float] | None:
    """Return the weight rounded by GPTQ, as llm-compressor has it, each column's error made up for in the columns after it.

    With it the damping that it took. `gram` is Σ x xᵀ of its inputs. None where their Hessian cannot be factorized at any of `DAMPS`, or no
    result is finite.
    """
    import torch
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    zero = torch.zeros_like(scale, dtype=torch.int8)
    for damp in DAMPS:
        try:
            found, _, failed = quantize_weight(
                weight[None].clone(), (gram / tokens)[None], scale[None], zero[None], None, args, percdamp=damp
            )
        except torch.linalg.LinAlgError:  # the Hessian had a factor, its inverse none
            continue
        if not bool(failed.any()) and bool(found.isfinite().all()):
            return found[0], damp
    return None


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
