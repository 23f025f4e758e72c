"""What llama.cpp calls things: tensor names by architecture, and which number type each tensor gets in a mixture such as Q4_K_M."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hub.errors import UnfitModel
from runners.architectures import KNOWN
from runners.checkpoint import ModelShape
from runners.headers import BLOCKS, Tensor

MIXTURES = {"Q8_0": "Q8_0", "Q6_K": "Q6_K", "Q5_K_M": "Q5_K", "Q4_K_M": "Q4_K", "Q4_0": "Q4_0"}
"""What most tensors are in each file type."""

_NARROW = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}  # where a row is not divisible by 256
_LLAMA = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_GPT2 = {
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    "ln_1": "attn_norm", "ln_2": "ffn_norm",
}  # fmt: skip
_OUTSIDE = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
}  # fmt: skip


def name_of(name: str, architecture: str) -> str:
    """Return llama.cpp's name of a tensor of transformers; raise `UnfitModel` where it has none."""
    stem, _, kind = name.rpartition(".")
    root = KNOWN[architecture].layers + "."
    if stem in _OUTSIDE:
        return f"{_OUTSIDE[stem]}.{kind}"
    number, _, part = stem.removeprefix(root).partition(".")
    known = _GPT2 if KNOWN[architecture].conv1d else _LLAMA
    if not stem.startswith(root) or part not in known:
        raise UnfitModel(
            f"gguf has no name for the tensor {name} of {architecture}.", hint="Use a recipe of another format for this model."
        )
    return f"blk.{number}.{known[part]}.{kind}"


def tensors(shape: ModelShape, scheme: str) -> dict[str, Tensor]:
    """Return the tensors of the file that llama.cpp makes of a model in a file type such as Q4_K_M, by llama.cpp's names.

    Follows `llama_tensor_get_type_impl` and `tensor_type_fallback` of llama.cpp's src/llama-quant.cpp: the head (or the embedding that
    serves as one) gets more bits, so do values and down projections of the first and last eighth of the layers and every third between.
    """
    sizes = {}
    for name, tensor in shape.tensors.items():
        turned = shape.conv1d and len(tensor.shape) == 2 and name.startswith(KNOWN[shape.architecture].layers + ".")
        sizes[name_of(name, shape.architecture)] = tuple(reversed(tensor.shape)) if turned else tensor.shape
    tied = "output.weight" not in sizes
    kind = _type_of(shape, sizes, scheme)
    return {
        name: Tensor(dtype=_fitting(kind(name, tied), size[-1]) if _quantized(name, size) else "F32", shape=size)
        for name, size in sizes.items()
    }


def _quantized(name: str, size: tuple[int, ...]) -> bool:
    return len(size) == 2 and name.endswith(".weight") and name != "position_embd.weight"


def _type_of(shape: ModelShape, sizes: Mapping[str, tuple[int, ...]], scheme: str) -> Callable[[str, bool], str]:
    usual = MIXTURES[scheme]
    layers = shape.layers
    # llama.cpp knows a 70B model by its eighty layers and shared heads, and gives its few values a bit more.
    grouped = "blk.0.attn_k.weight" in sizes and sizes["blk.0.attn_k.weight"] != sizes["blk.0.attn_q.weight"]
    large = layers == 80 and (grouped or shape.architecture == "Qwen2ForCausalLM") and shape.architecture != "Qwen3ForCausalLM"

    def kind(name: str, tied: bool) -> str:
        if name == "output.weight" or (tied and name == "token_embd.weight"):
            return "Q8_0" if usual == "Q8_0" or sizes[name][-1] % BLOCKS[usual][0] else "Q6_K"
        if not name.startswith("blk."):
            return usual
        _, number, part, _ = name.split(".")
        if part in ("attn_v", "attn_qkv", "ffn_down") and scheme.endswith("_M") and _more_bits(int(number), layers):
            return "Q6_K"
        return "Q5_K" if part == "attn_v" and large and usual == "Q4_K" else usual

    return kind


def _more_bits(layer: int, layers: int) -> bool:
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _fitting(kind: str, width: int) -> str:
    if width % BLOCKS[kind][0]:
        kind = _NARROW.get(kind, kind)
    return "F16" if width % BLOCKS[kind][0] else kind
