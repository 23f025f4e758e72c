"""Whether config.json says what the recipe and the tensors say, with every key that the loaders of its format need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hub import packing
from hub.domain import Recipe
from hub.packing import DENSE, LAYOUTS, WORDS, Layer, Scheme, Tensors
from leaderboard.families import QUANTIZATION, bits, family_of

# What loaders of `quantization_config` do not make up themselves; of several names, one.
_KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "gptq": (("bits",),),
    "awq": (("bits", "w_bit"),),
    "bitsandbytes": (("load_in_4bit", "load_in_8bit"),),
    "torchao": (("quant_type",),),
    "low-rank": (("ranks",),),
}
# What ours say besides: all that vLLM's `from_config` reads too, so that no two loaders make up different values.
_OURS: dict[str, tuple[tuple[str, ...], ...]] = {
    "gptq": (("group_size",), ("desc_act",), ("sym",), ("checkpoint_format",)),
    "awq": (("group_size", "q_group_size"), ("zero_point",), ("version",)),
    "compressed-tensors": (("config_groups",), ("format",), ("ignore",)),
}
_OF_4BIT = ("bnb_4bit_quant_type", "bnb_4bit_compute_dtype", "bnb_4bit_use_double_quant")
_OF_WEIGHTS = ("num_bits", "type", "strategy", "symmetric")
_OF_GGUF = ("general.architecture",)
_OF_OUR_GGUF = (
    "*.block_count", "*.context_length", "*.embedding_length", "*.attention.head_count", "tokenizer.ggml.model", "tokenizer.ggml.tokens",
)  # fmt: skip
_NO_METHOD = (DENSE, "gguf", "onnx", "openvino")


def faults(config: Mapping[str, Any], tensors: Tensors, *, keys: Collection[str] = (), recipe: Recipe | None = None) -> list[str]:
    """Return what is wrong with a config, each in a few words; empty where it agrees with everything.

    `keys`: the metadata's keys of a GGUF file, empty for other formats. `recipe` None: nothing is promised but what config.json says, and
    only those keys are asked for without which no loader could go on.
    """
    scheme, found = packing.scheme(config), packing.layers(config, tensors)
    return [
        *_missing(config, scheme, keys, recipe),
        *(_against_recipe(scheme, recipe) if recipe else ()),
        *(_against_tensors(scheme, found) if scheme.known else ()),
    ]


def _missing(config: Mapping[str, Any], scheme: Scheme, keys: Collection[str], recipe: Recipe | None) -> Iterator[str]:
    if recipe or not keys:  # a GGUF file says by itself what it is
        yield from (f"{key} is missing" for key in ("model_type", *(("architectures",) if recipe else ())) if not config.get(key))
    stated = config.get("quantization_config") or {}
    for names in (*_KEYS.get(scheme.method, ()), *(_OURS.get(scheme.method, ()) if recipe else ())):
        if not any(name in stated for name in names):
            yield f"quantization_config.{names[0]} is missing"
    if recipe and scheme.method == "bitsandbytes" and stated.get("load_in_4bit"):
        yield from (f"quantization_config.{name} is missing" for name in _OF_4BIT if name not in stated)
    if recipe and scheme.method == "compressed-tensors":
        yield from _missing_of_groups(stated.get("config_groups"))
    if keys or (recipe and recipe.format == "gguf"):
        wanted = (*_OF_GGUF, *(_OF_OUR_GGUF if recipe else ()))
        yield from (f"the GGUF key {key} is missing" for key in wanted if not any(_fits(one, key) for one in keys))


def _missing_of_groups(groups: Any) -> Iterator[str]:
    for name, group in groups.items() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not isinstance(weights, dict) or not group.get("targets"):
            yield f"quantization_config.config_groups.{name} has no targets or no weights"
            continue
        yield from (f"quantization_config.config_groups.{name}.weights.{key} is missing" for key in _OF_WEIGHTS if key not in weights)


def _fits(key: str, pattern: str) -> bool:
    return key.endswith(pattern[1:]) if pattern.startswith("*") else key == pattern


def _against_recipe(scheme: Scheme, recipe: Recipe) -> Iterator[str]:
    wanted = DENSE if recipe.format in _NO_METHOD else recipe.format
    if scheme.method != wanted:
        yield f"quantization_config says {scheme.method}, the recipe's format is {recipe.format}"
        return
    step = next((step for step in reversed(recipe.steps) if family_of(step) == QUANTIZATION and bits(step.scheme)), None)
    if step is None or wanted == DENSE:
        return
    width, group = bits(step.scheme), step.params.get("group_size")
    if scheme.bits and scheme.bits != (width,):
        yield f"quantization_config says {_listed(scheme.bits)} bits, the recipe {width} ({step.scheme})"
    if scheme.groups and type(group) is int and scheme.groups != (group,):
        yield f"quantization_config says groups of {_listed(scheme.groups)}, the recipe {group if group > 0 else 'whole rows'}"


def _against_tensors(scheme: Scheme, found: tuple[Layer, ...]) -> Iterator[str]:
    packed = [layer for layer in found if layer.method not in (DENSE, "gguf")]  # the files of llama.cpp speak for themselves
    if scheme.method == DENSE:
        if packed:
            yield f"config.json says nothing of quantization, yet {len(packed)} layers are packed ({packed[0].name})"
        return
    strange = [layer for layer in packed if layer.method not in (*LAYOUTS[scheme.method], WORDS)]
    if strange:
        yield f"quantization_config says {scheme.method}, yet {len(strange)} layers lie as {strange[0].method} ({strange[0].name})"
    wrong = Counter(fault for layer in packed if layer not in strange if (fault := _width_fault(scheme, layer)))
    yield from (f"{fault} in {count} layers" for fault, count in wrong.most_common(3))


def _width_fault(scheme: Scheme, layer: Layer) -> str:
    """Return what a layer's words and scales contradict; nothing where the header leaves it open."""
    wide = layer.method in ("torchao", "int8")  # a whole byte a weight, whatever its bits
    if scheme.bits and layer.bits and not set(scheme.bits) & set(layer.bits) and not (wide and min(scheme.bits) <= max(layer.bits)):
        return f"quantization_config says {_listed(scheme.bits)} bits, the tensors have {_listed(layer.bits)}"
    if scheme.groups and layer.group_size and layer.group_size not in scheme.groups:
        return f"quantization_config says groups of {_listed(scheme.groups)}, the tensors have {layer.group_size}"
    return ""


def _listed(values: Collection[int]) -> str:
    return " or ".join(str(value) for value in values)
