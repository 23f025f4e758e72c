"""Write a checkpoint in the compressed-tensors format a few tensors at a time, with llm-compressor's parts for models never loaded.

`model_free_ptq`, which those parts belong to, reads a shard at a time, calibrates no inputs, and rounds in the weights' own dtype: in
bfloat16 a quotient near 127 is itself off by up to a quarter, so one 8-bit weight in eleven falls to the wrong level. Here weights
are divided in float32 by the scales as they are stored; a float32 model gives `oneshot`'s very values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.domain import Scalar
from hub.errors import Unstable
from runners import allocation, dense
from runners.checkpoint import read_config, write_atomically
from runners.checkpoint import shape as shape_of
from runners.method import SAME_MACHINE, Outcome
from runners.streaming import Source, Writer
from runners.unfinished import Made

if TYPE_CHECKING:
    from runners.layerwise import Layer

NEEDS = ("llmcompressor", "compressed_tensors", "transformers", "torch")
INT8_ROWS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
INT8_DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
INT8_STATIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "tensor", "dynamic": False, "observer": "static_minmax"}


def scheme(weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None) -> Any:
    """Return a `QuantizationScheme` for all nn.Linear from the arguments of its weights and, unless they stay as they are, its inputs."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    return QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(**weights),
        input_activations=QuantizationArgs(**inputs) if inputs is not None else None,
    )


def preset(name: str) -> Any:
    """Return compressed-tensors' own scheme of that name for all nn.Linear."""
    from compressed_tensors.quantization import preset_name_to_scheme

    return preset_name_to_scheme(name, ["Linear"])


def write(source: Path, target: Path, wanted: Any, *, windows: Sequence[list[int]] = ()) -> Outcome:
    """Quantize every linear of the decoder of the dense checkpoint `source` by the scheme `wanted` into the folder `target`.

    `windows` are calibration tokens, for schemes that round inputs to scales fixed beforehand. A linear that cannot be rounded (weights
    or inputs with NaN or infinity, scales beyond their dtype) stays as it is, with those that engines fuse with it; the outcome says why.
    Memory: the linears that are fused, in float32; with windows a decoder layer and its inputs. Raises `BadCheckpoint` where the weights
    lack a tensor, or no linear at all can be rounded.
    """
    import torch
    from compressed_tensors.compressors.format import infer_module_format

    dense.require_whole(source)
    wanted.format = infer_module_format(torch.nn.Linear, wanted)
    scales = _input_scales(source, wanted.input_activations, list(windows)) if windows else {}
    given, shape = Source(source), shape_of(source)
    told: dict[str, dict[str, Scalar]] = {}
    with Writer(target, given) as out:
        # What engines run as one stays together: NVFP4 has one global scale for it, and all of it is packed or none.
        for names in ([linear.name for linear in linears] for linears in allocation.together(shape.linears)):
            weights = {name: given.read(f"{name}.weight") for name in names}
            packed, facts = _pack(weights, wanted, {name: scales.get(name, {}) for name in names})
            told.update(facts)
            for name in packed:
                out.add(f"{name}.weight", packed[name])
        out.copy_rest()
    kept = [name for name, facts in told.items() if "kept" in facts]
    if len(kept) == len(told):
        raise Unstable(f"Not one linear of {source.name} can be quantized: {told[kept[0]]['kept']}.", hint="Choose another base model.")
    describe(target, source, [wanted], kept=kept)
    return Outcome(layers=told, notes=(SAME_MACHINE,) if windows else ())


def _pack(
    weights: Mapping[str, Any], wanted: Any, scales: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Scalar]]]:
    """Return what takes the weights' place, by linear and tensor name, and what there is to say of each linear."""
    faults = {name: fault for name, weight in weights.items() if (fault := _fault(weight, scales[name]))}
    modules = {} if faults else _calibrated(weights, wanted)
    errors = {name: _error(module) for name, module in modules.items()}
    faults |= {name: "its scales leave their dtype, or all its weights round to zero" for name, error in errors.items() if not error < 1}
    if faults:
        first = next(iter(faults))
        kept: dict[str, dict[str, Scalar]] = {name: {"kept": faults.get(name, f"engines fuse it with {first}, kept")} for name in weights}
        return {name: {f"{name}.weight": weight} for name, weight in weights.items()}, kept
    packed = {name: _tensors(name, module, weights[name].dtype, scales[name]) for name, module in modules.items()}
    return packed, {name: {"weight_error": float(f"{error:.4g}")} for name, error in errors.items()}


def _fault(weight: Any, scales: Mapping[str, Any]) -> str:
    if not weight.isfinite().all():
        return "its weights hold NaN or infinity"
    if not all(scale.isfinite().all() and (scale > 0).all() for scale in scales.values()):
        return f"its inputs on the calibration text hold NaN or infinity, or leave {str(weight.dtype).removeprefix('torch.')}"
    return ""


def _calibrated(weights: Mapping[str, Any], wanted: Any) -> dict[str, Any]:
    """Return a linear in float32 with its scales for each weight, as `ModelFreePtqConverter` makes them for a fused set."""
    from llmcompressor.entrypoints.model_free.lifecycle import initialize_quantized_linear
    from llmcompressor.modifiers.quantization import calibration
    from llmcompressor.observers import FusionHandler

    modules = {name: initialize_quantized_linear(weight.float(), wanted, "cpu") for name, weight in weights.items()}
    for module in modules.values():
        calibration.initialize_observer(module, "weight")
        calibration.apply_calibration_status(module)
    if wanted.weights.strategy == "tensor_group":
        FusionHandler.fuse([(module.weight_observer, module) for module in modules.values()])
    calibration.observe(modules.values(), base_name="weight")
    calibration.update_qparams(modules.values(), base_name="weight")
    for name, module in modules.items():
        calibration.freeze_module_quantization(module)
        if wanted.weights.scale_dtype is None:
            module.weight_scale.data = module.weight_scale.data.to(weights[name].dtype).float()
    return modules


def _error(module: Any) -> float:
    """Return ‖W - Q(W)‖ / ‖W‖; for weights that are all zero ‖Q(W)‖."""
    from compressed_tensors.quantization.lifecycle.forward import forward_quantize

    weight = module.weight.data
    lost = (weight - forward_quantize(module, weight, "weight", module.quantization_scheme.weights)).norm()
    return float(lost / weight.norm() if weight.any() else lost)


def _tensors(name: str, module: Any, dtype: Any, scales: Mapping[str, Any]) -> dict[str, Any]:
    """Compress a calibrated linear and return its tensors as they are stored."""
    from compressed_tensors.compressors import compress_module

    narrow = module.quantization_scheme.weights.scale_dtype is None
    compress_module(module)
    tensors = {**module.state_dict(), **scales}
    if narrow:
        tensors["weight_scale"] = tensors["weight_scale"].to(dtype)
    return {f"{name}.{key}": tensor for key, tensor in tensors.items()}


def _input_scales(source: Path, args: Any, windows: list[list[int]]) -> dict[str, dict[str, Any]]:
    """Return by linear the scale to which its inputs are rounded: least and greatest value over all windows, in the dense model."""
    import torch
    from llmcompressor.observers import Observer

    from runners import layerwise

    given = Source(source)

    def observe(layer: Layer) -> Made:
        found: dict[str, dict[str, Any]] = {}
        observers = {name: Observer.load_from_registry("static_minmax", base_name="input", args=args) for name in layer.inputs}
        handles = [layer.linear(name).register_forward_pre_hook(_watch(observer)) for name, observer in observers.items()]
        for number in range(len(layer.hidden)):
            layer.run(number)
        for handle in handles:
            handle.remove()
        for name, observer in observers.items():
            dtype = given.dtype(f"{name}.weight")
            greatest = torch.maximum(-observer.min_vals.min(), observer.max_vals.max())
            qparams = observer.get_qparams()
            if args.strategy == "tensor_group":
                found[name] = {"input_global_scale": qparams["global_scale"]}
            else:
                found[name] = {"input_scale": qparams["scale"].to(dtype)}
            if greatest > torch.finfo(dtype).max:  # found in float32, but served in the model's dtype, where it is infinite
                found[name] = {key: scale * torch.inf for key, scale in found[name].items()}
        return Made(tensors=found)

    scales: dict[str, dict[str, Any]] = {}
    for made in layerwise.each(source, windows, observe, about=("input scales", args.model_dump(mode="json"))):
        scales.update({name: dict(tensors) for name, tensors in made.tensors.items()})
    return scales


def _watch(observer: Any) -> Callable[[Any, tuple[Any, ...]], None]:
    def look(_: Any, inputs: tuple[Any, ...]) -> None:
        observer(inputs[0])

    return look


def describe(target: Path, source: Path, groups: Sequence[Any], *, kept: Sequence[str] = ()) -> None:
    """Put the `quantization_config` of these schemes into config.json, with the head and the linears `kept` dense under `ignore`."""
    import compressed_tensors
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    config = QuantizationConfig(
        config_groups={f"group_{number}": group for number, group in enumerate(groups)},
        ignore=["lm_head", *kept],
        format=groups[0].format,
        quantization_status=QuantizationStatus.COMPRESSED,
    )
    # FP4 weights are unpacked to bfloat16 whatever the model's dtype, and then meet inputs of another one: it must run in bfloat16.
    weights = groups[0].weights
    whole = {
        **read_config(target),
        "dtype": "bfloat16" if weights.type == "float" and weights.num_bits == 4 else dense.own_dtype(source),
        "quantization_config": {"version": compressed_tensors.__version__, **config.model_dump()},
    }
    whole.pop("torch_dtype", None)
    write_atomically(target / "config.json", json.dumps(whole, indent=2, sort_keys=True) + "\n")
