"""What ModelPress knows of each architecture that it presses: where its layers lie and how its config counts them."""

from __future__ import annotations

from dataclasses import dataclass

from hub.errors import UnfitModel


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Where decoder layers lie in the checkpoint, which config key counts them, and whether linears are GPT-2's transposed Conv1D.

    `tables` are what is looked up by row, the embedding of tokens first. `short_root` is a prefix that old checkpoints leave out of tensor
    names; `derived` are buffers that they carry needlessly.
    """

    layers: str = "model.layers"
    count_key: str = "num_hidden_layers"
    tables: tuple[str, ...] = ("model.embed_tokens",)
    conv1d: bool = False
    short_root: str = ""
    derived: tuple[str, ...] = ()


_STANDARD = Architecture()
KNOWN: dict[str, Architecture] = {
    "GPT2LMHeadModel": Architecture(
        layers="transformer.h",
        count_key="n_layer",
        tables=("transformer.wte", "transformer.wpe"),
        conv1d=True,
        short_root="transformer.",
        derived=(".attn.bias", ".attn.masked_bias"),
    ),
    "LlamaForCausalLM": _STANDARD,
    "MistralForCausalLM": _STANDARD,
    "Qwen2ForCausalLM": _STANDARD,
    "Qwen3ForCausalLM": _STANDARD,
}

PER_LAYER_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types", "layers_block_type")
"""Config keys that hold one entry per layer; a model with layers removed must have them shortened alike."""


def architecture(name: str) -> Architecture:
    """Return what is known of an architecture; raise `UnfitModel` naming the known ones."""
    if name not in KNOWN:
        raise UnfitModel(
            f"Models of architecture {name} cannot be pressed; the supported ones are {', '.join(sorted(KNOWN))}.",
            hint="Choose a base model of a supported architecture, or add this one to runners/architectures.py.",
        )
    return KNOWN[name]
