"""How a checkpoint's weights are packed: as its config.json says, and as its tensors' dtypes and shapes show. Nothing is opened."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod
from typing import Any

from hub import patterns
from hub.headers import BITS, BLOCKS

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""dtype (as the file names it) and shape of each tensor by name."""

DENSE = "dense"
WORDS = "words"  # 32 bits each, in an order that the header does not show
FLOATS = frozenset(("F64", "F32", "F16", "BF16"))
_WORD = 32
_MOST_FORM, _MOST_PARTS, _MOST_WORDS = 300, 64, 10_000
_IN_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block|blk|layer)\.\d+\.")
_LAYER = re.compile(r"^(.*?(?:^|\.)(?:layers|h|blocks|block|blk|layer)\.\d+)\.")
# Towers that read pictures or sound beside the decoder; their layers are numbered as its are, and quantizers leave them alone.
_TOWER = re.compile(r"(?:^|\.)(?:visual|vision|vit|audio|speech|image)(?:_\w+)?\.")
# What no quantizer packs although it is a matrix: routers of experts, convolutions, tables of positions.
_NEVER = re.compile(r"(?:\.|_)(?:gate|router|shared_expert_gate|conv1d|relative_attention_bias|A_log)$|norm|rotary|embed")
_WIDTHS = ("hidden_size", "intermediate_size", "n_embd", "n_inner", "moe_intermediate_size", "head_dim", "d_model", "d_ff", "ffn_dim")
_PAYLOAD = (".qweight", ".weight_packed", "._weight_qdata", ".weight", "_blocks")
_EXPERTS = ("_blocks", "_scales")  # mxfp4: all experts of a layer in one pair of tensors
_CLASS = re.compile(r"[A-Z]\w*")
LAYOUTS: Mapping[str, frozenset[str]] = {
    "compressed-tensors": frozenset(("compressed-tensors", "int8", "fp8")),
    "auto-round": frozenset(("gptq", "awq")),
    "gptq": frozenset(("gptq",)),
    "awq": frozenset(("awq",)),
    "bitsandbytes": frozenset(("bitsandbytes",)),
    "torchao": frozenset(("torchao", "fp8")),
    "fp8": frozenset(("fp8",)),
    "mxfp4": frozenset(("mxfp4",)),
    "modelopt": frozenset(("modelopt", "fp8", "int8")),
    "low-rank": frozenset(("low-rank",)),
}
"""How the layers of a method that is known here may lie on disk, by `Layer.method`."""
_INSTEAD = {"IQ4_NL": (1, 2, 3), "Q4_0": (1, 2), "Q4_1": (3,), "Q5_0": (4,), "Q8_0": (6,)}  # of types that want blocks of 256
_SUPERBLOCK = 256
_DTYPES = {"float32": 32, "float16": 16, "bfloat16": 16, "float64": 64}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """What a config says of its weights: the quantization's method (`dense`: none), bits and group sizes (each once), what stays dense.

    `exempt` names what stays dense, `only` what does not, where that is said; both may hold patterns.
    """

    method: str
    bits: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()
    exempt: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether it is known here how the method lays out its layers."""
        return self.method == DENSE or self.method in LAYOUTS

    @property
    def untried(self) -> tuple[str, ...]:
        """The patterns that are not tried, because they are none or of a form that `hub.patterns` does not try."""
        return tuple(
            entry for entry in (*self.exempt, *self.only) if (form := _form(entry)) is not None and patterns.compiled(form) is None
        )

    def spares(self, name: str) -> bool:
        """Whether the config lets a linear layer stay dense."""
        if self.only and not any(_names(entry, name) for entry in self.only):
            return True
        return any(_names(entry, name) for entry in self.exempt)


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer as it lies on disk: in which method's way, with how many bits and in which groups as far as that shows, its weights.

    `bits` may be several where the header alone leaves a choice; `weights` is None where their number does not show. `words` is what
    the weights take, `overhead` what scales, zeros and the like take beside them, in bytes.
    """

    name: str
    method: str
    bits: tuple[int, ...]
    group_size: int | None
    weights: int | None
    words: int
    overhead: int


def _names(pattern: str, name: str) -> bool:
    """Whether an entry of a list means a layer: a whole name, a part of its path, one with `*`, or `re:` and a pattern."""
    if len(name) > _MOST_FORM:
        return False
    if (form := _form(pattern)) is not None:
        compiled = patterns.compiled(form)
        return compiled is not None and compiled.match(name)
    if any(sign in pattern for sign in "*?[") and len(pattern) <= _MOST_FORM:
        return fnmatchcase(f".{name}.", f"*.{pattern}.*")
    return f".{pattern.strip('.')}." in f".{name}."


def _form(entry: str) -> str | None:
    """Return the regular expression of an entry, None where it is none."""
    return entry.split(":", 1)[1] if entry.startswith(("re:", "-:")) else None


def scheme(config: Mapping[str, Any]) -> Scheme:
    """Return what config.json says of its weights; a statement of a form that nobody knows says nothing."""
    stated = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(stated, dict):
        return Scheme(method=DENSE)
    unnamed = "bitsandbytes" if "load_in_4bit" in stated or "load_in_8bit" in stated else "mlx" if "quantization" in config else "unknown"
    method = str(stated.get("quant_method") or unnamed).lower()
    bits, groups = _stated(method, stated)
    lists = ("modules_to_not_convert", "ignore", "llm_int8_skip_modules", "ignored_layers")
    exempt = [entry for key in lists for entry in _texts(stated.get(key))]
    exempt += [entry for entry in _mapping(stated.get("dynamic")) if entry.startswith("-:")]
    exempt += [entry for entry, one in _mapping(stated.get("extra_config")).items() if _wide(_mapping(one).get("bits"))]  # of auto-round
    blocks = stated.get("modules_in_block_to_quantize")
    inside = [name for block in (blocks if isinstance(blocks, list) else ()) for name in _texts(block)]
    inside += list(_mapping(stated.get("ranks")))  # of the format low-rank
    inside += _targets(stated)
    return Scheme(method=method, bits=_distinct(bits), groups=_distinct(groups), exempt=tuple(exempt), only=tuple(inside))


def _targets(stated: Mapping[str, Any]) -> list[str]:
    """Return which layers compressed-tensors' groups are for; nothing where a class of layers (`Linear`) is named, which means all."""
    found = [entry for group in _mapping(stated.get("config_groups")).values() for entry in _texts(_mapping(group).get("targets"))]
    return [] if any(_CLASS.fullmatch(entry) for entry in found) else found


def _stated(method: str, stated: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Return bits and group sizes as the loaders of a method read them."""
    if method == "bitsandbytes":
        return ([4] if stated.get("load_in_4bit") else [8] if stated.get("load_in_8bit") else []), []
    if method == "compressed-tensors":
        weights = [_mapping(_mapping(group).get("weights")) for group in _mapping(stated.get("config_groups")).values()]
        return [one.get("num_bits") for one in weights], [one.get("group_size") for one in weights]
    if method == "torchao":
        words = _told(stated.get("quant_type"))
        found = re.findall(r'"weight_dtype": \{"_data": "u?int(\d)"', words) or re.findall(r"(?:Int|Float)(\d)(?=Weight)", words)[-1:]
        return [int(one) for one in found], [int(one) for one in re.findall(r'"group_size": (\d+)', words)]
    if method in ("fp8", "mxfp4"):
        return ([8] if method == "fp8" else [4]), []
    if method == "modelopt":
        return [int(bits) for bits in re.findall(r"(?:FP|INT|W)(\d{1,2})", str(stated.get("quant_algo"))[:_MOST_FORM])[:1]], []
    dynamic = [entry for name, entry in _mapping(stated.get("dynamic")).items() if not name.startswith("-:") and isinstance(entry, dict)]
    each = [stated, *dynamic]
    return [one.get("bits", one.get("w_bit")) for one in each], [one.get("group_size", one.get("q_group_size")) for one in each]


def _wide(bits: Any) -> bool:
    return type(bits) is int and bits > 8


def _told(value: Any) -> str:
    """Return a value's JSON, cut; nothing of one that is nested deeper than anybody would."""
    try:
        return json.dumps(value)[:_MOST_WORDS]
    except (RecursionError, ValueError, TypeError):
        return ""


def _distinct(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(sorted({value for value in values if type(value) is int and value > 0}))


def _mapping(value: Any) -> Mapping[str, Any]:
    return {str(key): entry for key, entry in value.items()} if isinstance(value, dict) else {}


def _texts(value: Any) -> list[str]:
    return [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []


def layers(config: Mapping[str, Any], tensors: Tensors) -> tuple[Layer, ...]:
    """Return the linear layers of a checkpoint's decoder as they lie on disk, packed or dense, in order of their names.

    Told from the tensors alone; the config only gives the widths among which a packed one must be.
    """
    widths = {value * times for key in _WIDTHS if type(value := config.get(key)) is int for times in (1, 4)}
    heads, width = config.get("num_attention_heads"), config.get("head_dim")
    if type(heads) is int and type(width) is int:
        widths.add(heads * width)
    return tuple(_found(tensors, frozenset(widths)))


def _found(tensors: Tensors, widths: frozenset[int]) -> Iterator[Layer]:
    stems: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, outline in tensors.items():
        if not _IN_LAYER.search(name) or _TOWER.search(name):
            continue
        if name.endswith(_EXPERTS):
            stems.setdefault(name[:-7], {})[name[-7:]] = outline
        else:
            for mark in (".weight.", "._weight_", ".factor_", "."):
                stem, _, rest = name.partition(mark) if mark != "." else name.rpartition(".")
                if rest:
                    stems.setdefault(stem, {})[name.removeprefix(stem)] = outline
                    break
    for stem, parts in sorted(stems.items()):
        if layer := _layer(stem, parts, widths):
            yield layer


def _layer(name: str, parts: Tensors, widths: frozenset[int]) -> Layer | None:
    """Return the linear layer that some tensors of one stem are, None where they are none."""
    words = sum(_bytes(outline) for part, outline in parts.items() if part in _PAYLOAD)
    overhead = sum(_bytes(outline) for outline in parts.values()) - words

    def made(method: str, bits: Iterable[int], group: int | None, weights: int | None) -> Layer:
        return Layer(name=name, method=method, bits=tuple(bits), group_size=group, weights=weights, words=words, overhead=overhead)

    def shape(part: str) -> tuple[int, ...]:
        return parts[part][1] if part in parts else ()

    if ".qweight" in parts and len(shape(".qweight")) == 2:
        return _words(made, shape(".qweight"), shape(".scales"), shape(".qzeros"), shape(".g_idx"))
    if ".weight_packed" in parts and len(shape(".weight_packed")) == 2:
        (rows, columns), dtype = shape(".weight_packed"), parts[".weight_packed"][0]
        if dtype == "U8":
            return made("compressed-tensors", [4], None, rows * columns * 2)
        fits = [(bits, width) for width in sorted(widths) for bits in range(2, 9) if -(-width * bits // _WORD) == columns]
        groups = {
            width // shape(".weight_scale")[-1] for _, width in fits if len(shape(".weight_scale")) == 2 and shape(".weight_scale")[-1]
        }
        weights = {rows * width for _, width in fits}
        return made(
            "compressed-tensors",
            sorted({bits for bits, _ in fits}),
            groups.pop() if len(groups) == 1 else None,
            weights.pop() if len(weights) == 1 else None,
        )
    if any(part.startswith(".weight.quant_state.bitsandbytes__") for part in parts):
        return made("bitsandbytes", [4], None, 2 * prod(shape(".weight")))
    if "_blocks" in parts:
        return made("mxfp4", [4], 32, 2 * prod(shape("_blocks"))) if "_scales" in parts else None
    if "._weight_qdata" in parts:
        return made("torchao", [BITS.get(parts["._weight_qdata"][0], 8)], None, prod(shape("._weight_qdata")))
    if ".factor_in.weight" in parts:
        return made("low-rank", [], None, None)
    if ".weight" in parts and len(shape(".weight")) == 2 and not _NEVER.search(name):
        dtype = parts[".weight"][0]
        bits = [_named_bits(dtype)] if dtype in BLOCKS else [BITS.get(dtype, 0)]
        if dtype in FLOATS:
            return made(DENSE, bits, None, prod(shape(".weight")))
        if dtype == "U8" and ".weight_scale_2" in parts:  # NVFP4, two weights a byte
            return made("modelopt", [4], None, 2 * prod(shape(".weight")))
        method = "gguf" if dtype in BLOCKS else "bitsandbytes" if ".SCB" in parts else "fp8" if dtype.startswith("F8") else "int8"
        return made(method, bits, None, prod(shape(".weight")))
    return None


def _words(made: Any, words: tuple[int, ...], scales: tuple[int, ...], zeros: tuple[int, ...], order: tuple[int, ...]) -> Layer:
    """Return a layer of AutoGPTQ's layout (words of 32 bits along the inputs) or AWQ's (along the outputs), told by the scales' width."""
    outputs = scales[-1] if scales else 0
    if words[1] == outputs:
        inputs = order[0] if order else 0
        bits = words[0] * _WORD // inputs if inputs else zeros[-1] * _WORD // outputs if zeros and outputs else 0
        inputs = inputs or (words[0] * _WORD // bits if bits else 0)
        method = "gptq"
    else:
        inputs, bits, method = words[0], words[1] * _WORD // outputs if outputs else 0, "awq"
    if not 2 <= bits <= 8:  # neither layout: what kernels have laid out for themselves
        other: Layer = made(WORDS, [], None, None)
        return other
    groups = scales[0] if len(scales) == 2 else 1
    layer: Layer = made(method, [bits] if bits else [], -(-inputs // groups) if groups else None, inputs * outputs or None)
    return layer


def _bytes(outline: tuple[str, tuple[int, ...]]) -> int:
    dtype, shape = outline
    weights, size = BLOCKS.get(dtype) or (8, BITS.get(dtype, 8))
    return -(-prod(shape) * size // weights)


def inside(name: str, modules: Collection[str]) -> bool:
    """Whether a tensor's name lies below one of some modules; names of very many parts, which no model has, lie below none."""
    parts = name.split(".", _MOST_PARTS)[:_MOST_PARTS]
    if name.endswith(_EXPERTS) and name[:-7] in modules:
        return True
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts)))


def decoder_layer(name: str) -> str:
    """Return the decoder layer that a linear layer is of (`model.layers.3`), or the name itself where it is of none."""
    match = _LAYER.match(f"{name}.")
    return match.group(1) if match else name


def gguf_bits(tensors: Tensors) -> tuple[set[int], set[int]]:
    """Return the bits of the packed matrices in a GGUF file's decoder layers, those of experts included, and such as it may stand for.

    Where 256 does not divide a matrix's rows, llama.cpp takes another type than the one asked for, mostly a wider one
    (`tensor_type_fallback` of its src/llama-quant.cpp, and what stood there before): the second set has the bits asked for then.
    """
    found, asked = set[int](), set[int]()
    for name, (dtype, shape) in tensors.items():
        if dtype in BLOCKS and len(shape) > 1 and _IN_LAYER.search(name):
            found.add(_named_bits(dtype))
            asked.update(_INSTEAD.get(dtype, ()) if shape[-1] % _SUPERBLOCK else ())
    return found, asked


def _named_bits(block: str) -> int:
    """Return the bits in the name of one of llama.cpp's types; its scales come on top (Q4_1 takes 5 in all)."""
    return int(next(sign for sign in block if sign.isdigit()))


def dtype_bits(config: Mapping[str, Any]) -> int | None:
    """Return the bits of the dtype that config.json names for what is not quantized."""
    return _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch."))
