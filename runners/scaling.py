"""Scale what a norm or a linear gives down by column, and the linears that read it up: the layer's function stays the same.

AWQ and SmoothQuant differ in the scale, and in what it is to make easier to round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runners.layerwise import Layer
from runners.streaming import Source

NORMS = (
    ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
)
"""Norms, and the linears that read what they give, in decoder layers like Llama's."""


def move(layer: Layer, before: str, after: Sequence[str], scale: Any, given: Source) -> Any:
    """Divide what the module `before` gives by `scale` (width,), multiply the columns of the linears `after` (full names) by it.

    Returns the scale as it came out: a norm is stored in the base's dtype, and the linears make up for what it really becomes. Where that
    is 0 or infinite the scale is 1.
    """
    first = layer.module.get_submodule(before)
    if first.weight.dim() == 1:
        stored = (first.weight.data / scale).to(given.dtype(f"{layer.name}.{before}.weight")).float()
        usable = (stored != 0) & stored.isfinite()
        scale = (first.weight.data / stored).where(usable, scale.new_ones(()))
        first.weight.data = stored.where(usable, first.weight.data)
    else:
        first.weight.data = first.weight.data / scale[:, None]
    if getattr(first, "bias", None) is not None:
        first.bias.data = first.bias.data / scale
    for name in after:
        layer.set_weight(name, layer.weight(name) * scale)
    return scale


def stored(layer: Layer, given: Source) -> Iterator[tuple[str, Any]]:
    """Give the layer's parameters by full name, as they are now, in the dtype in which each is stored."""
    for name, parameter in layer.module.named_parameters():
        full = f"{layer.name}.{name}"
        yield full, parameter.data.to(given.dtype(full))
