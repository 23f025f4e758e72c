"""Which axis of which tensor runs along which width of a model: what structured pruning cuts, and what a student of other widths has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from hub.domain import Step
from hub.errors import UnfitModel
from runners.architectures import architecture
from runners.checkpoint import ModelShape
from runners.headers import Tensor

# The axes of a weight as stored: `query` and `key` count all channels of all heads, `fused` is GPT-2's queries, keys and values in one.
_STANDARD = {
    "embed_tokens": ("", "hidden"),
    "lm_head": ("", "hidden"),
    "q_proj": ("query", "hidden"),
    "k_proj": ("key", "hidden"),
    "v_proj": ("key", "hidden"),
    "o_proj": ("hidden", "query"),
    "gate_proj": ("mlp", "hidden"),
    "up_proj": ("mlp", "hidden"),
    "down_proj": ("hidden", "mlp"),
    "q_norm": ("head",),
    "k_norm": ("head",),
}
_GPT2 = {
    "wte": ("", "hidden"),
    "wpe": ("", "hidden"),
    "lm_head": ("", "hidden"),
    "attn.c_attn": ("hidden", "fused"),
    "attn.c_proj": ("query", "hidden"),
    "mlp.c_fc": ("hidden", "mlp"),
    "mlp.c_proj": ("mlp", "hidden"),
}


@dataclass(frozen=True, kw_only=True)
class Widths:
    """A model's widths: channels of the residual stream, neurons of an MLP, heads of queries and of keys, channels of a head."""

    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each axis by its name."""
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {"hidden": self.hidden, "mlp": self.mlp, "query": query, "key": key, "fused": 3 * query, "head": self.head_dim}

    @property
    def config(self) -> dict[str, int]:
        """The widths under the config keys of all supported architectures but GPT-2; the head's width is said outright."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.mlp,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }


def of(shape: ModelShape) -> Widths:
    """Return a model's widths."""
    return Widths(
        hidden=shape.hidden_size, mlp=shape.intermediate_size, heads=shape.heads, kv_heads=shape.kv_heads, head_dim=shape.head_dim
    )


def config(name: str, widths: Widths) -> dict[str, int]:
    """Return what config.json of an architecture must say of these widths."""
    if architecture(name).conv1d:
        return {"n_embd": widths.hidden, "n_inner": widths.mlp, "n_head": widths.heads}
    return widths.config


def axes(name: str, dimensions: int, conv1d: bool) -> tuple[str, ...]:
    """Return the name of the width along each dimension of a stored tensor; empty where a dimension is none of them."""
    module, _, kind = name.rpartition(".")
    table = _GPT2 if conv1d else _STANDARD
    known = next((found for end, found in table.items() if module == end or module.endswith(f".{end}")), None)
    if known is None:
        return ("hidden",) * dimensions  # the norms
    if kind == "bias":
        return (known[-1] if conv1d else known[0],)
    return known


def norms(shape: ModelShape) -> tuple[str, ...]:
    """Return the names of the norms that read the residual stream."""
    found = (name for name, tensor in shape.tensors.items() if name.endswith(".weight") and len(tensor.shape) == 1)
    return tuple(name.removesuffix(".weight") for name in found if axes(name, 1, shape.conv1d) == ("hidden",))


def resized(shape: ModelShape, widths: Widths) -> ModelShape:
    """Return the shape with other widths; what was promised of zeros no longer holds.

    Raises `UnfitModel` where a tensor to be changed is not as wide as the config says.
    """
    old, new = of(shape).sizes, widths.sizes
    changed: Mapping[str, int] = {axis: size for axis, size in new.items() if size != old[axis]}
    tensors = {}
    for name, tensor in shape.tensors.items():
        along = axes(name, len(tensor.shape), shape.conv1d)
        odd = next((size for axis, size in zip(along, tensor.shape, strict=True) if axis in changed and size != old[axis]), None)
        if odd is not None:
            raise UnfitModel(
                f"{name} is {odd} wide, which is not what config.json makes of it; its widths cannot be changed.",
                hint="Use a recipe that keeps the model's widths.",
            )
        sizes = tuple(changed.get(axis, size) for axis, size in zip(along, tensor.shape, strict=True))
        tensors[name] = Tensor(dtype=tensor.dtype, shape=sizes)
    return replace(
        shape,
        tensors=tensors,
        zeros={},
        hidden_size=widths.hidden,
        intermediate_size=widths.mlp,
        heads=widths.heads,
        kv_heads=widths.kv_heads,
        head_dim=widths.head_dim,
    )


def cut(name: str, tensor: Any, kept: Mapping[str, Any], conv1d: bool) -> Any:
    """Return a stored tensor with only the kept indices (long tensors by axis name) along each of its axes."""
    for dimension, axis in enumerate(axes(name, tensor.dim(), conv1d)):
        if axis in kept:
            tensor = tensor.index_select(dimension, kept[axis])
    return tensor


def check(step: Step, name: str, widths: Widths) -> None:
    """Raise `UnfitModel` for widths of which transformers makes no model of this architecture."""
    if architecture(name).conv1d and widths.hidden != widths.heads * widths.head_dim:
        raise UnfitModel(
            f"{step.method}: transformers takes a {name} to be as wide as its heads together; {widths.heads} heads of {widths.head_dim} "
            f"and {widths.hidden} hidden channels are not.",
            hint="Use a recipe that takes the same share of heads and of hidden channels, or of neither.",
        )
    if name == "LlamaForCausalLM" and widths.heads and widths.hidden % widths.heads:
        raise UnfitModel(
            f"{step.method}: transformers takes no {name} of {widths.hidden} hidden channels and {widths.heads} heads, as no multiple.",
            hint="Use a recipe with other shares of heads or hidden channels.",
        )
    if widths.kv_heads and widths.heads % widths.kv_heads:
        raise UnfitModel(
            f"{step.method}: {widths.heads} heads cannot share {widths.kv_heads} heads of keys and values alike.",
            hint="Choose a number of heads that is a multiple of the heads of keys and values.",
        )
