"""Which models derive from others (quantized copies, adapters, merges), by the Hub's tags and by names.

docs/popularity.md says how often the names of real models are read wrongly.
"""

from __future__ import annotations

import re

from hub import names
from hub.domain import Candidate

_RELATIONS = ("quantized", "adapter", "merge")
_PRESSED_METHODS = ("gptq", "awq", "bitsandbytes", "compressed-tensors", "auto-round", "torchao", "exl2", "exl3", "hqq", "aqlm")
_PRESSED_TAGS = frozenset((*_PRESSED_METHODS, "fp8", "mxfp4", "nvfp4", *(f"{bits}-bit" for bits in range(2, 9))))
_PRESSED_LIBRARIES = frozenset(("peft", "gguf", "mlx", "ctranslate2", "llama.cpp", "onnx", "openvino"))
_PRESSED_WORD = re.compile(
    r"gguf|onnx|gptq\w*|awq\w*|bnb|exl[23]|mlx\w*|hqq|aqlm|nf4|(nv|mx)fp4\w*|(int|fp)[48]\w*|\d+bits?|w\d+[aw]\d+\w*"
    r"|\w*quant|quantized|q[2-8]|tq[1-8]|jang\w*|paro|q?lora|adapters?"
)
_FULL_PRECISION = frozenset(("unquantized", "dequantized"))
_MERGE_TAGS = frozenset(("merge", "mergekit"))


def derivation(candidate: Candidate, *, finetunes: bool) -> str | None:
    """Return why a model counts as derived from another, or None for an original; with `finetunes` a finetune is one too."""
    tags = {tag.lower() for tag in candidate.tags}
    relations = _RELATIONS if finetunes else (*_RELATIONS, "finetune")
    pressed = "originals and finetunes" if finetunes else "originals"
    relation = next((tag for tag in sorted(tags) if any(tag.startswith(f"base_model:{kind}:") for kind in relations)), None)
    relation = relation or next(iter(sorted(tags & _MERGE_TAGS)), None)
    if relation:
        return f"it derives from another model ({names.shown(relation)}); only {pressed} are pressed"
    if "modelpress" in tags and candidate.base_models:
        return f"it was pressed by ModelPress from {names.shown(candidate.base_models[0])}; only {pressed} are pressed"
    library = (candidate.library_name or "").lower()
    mark = next(iter(sorted(tags & _PRESSED_TAGS)), None) or (library if library in _PRESSED_LIBRARIES else None)
    mark = mark or pressed_word(candidate.ref.name)
    if mark:
        return f"it is pressed already or an adapter ({names.shown(mark)}); only whole models in full precision are pressed"
    if any(file.path == "adapter_config.json" for file in candidate.files):
        return "it is an adapter (adapter_config.json); only whole models are pressed"
    return None


def pressed_word(name: str) -> str | None:
    """Return the word of a model's name that says it is pressed already or an adapter, or None."""
    if "compressed-tensors" in name.lower():
        return "compressed-tensors"
    words = re.split(r"[-_.]", name.lower())
    return None if _FULL_PRECISION.intersection(words) else next((word for word in words if _PRESSED_WORD.fullmatch(word)), None)
