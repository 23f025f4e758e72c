"""Make a language model of random weights, of any size: for speed, memory and pressing time, never for quality.

The shape is Llama's. The tokenizer is that of a sample model, so a vocabulary larger than its own has tokens that no text gives; they take
memory and time all the same. config.json and the card say that the weights are random.

    python scripts/make_random_model.py /tmp/random-100m --layers 8 --width 768 --heads 12 --kv-heads 4 --vocabulary 32000 --context 32768
    python scripts/make_random_model.py /tmp/random-8b --layers 32 --width 4096 --between 14336 --heads 32 --kv-heads 8 --vocabulary 128256
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
SAMPLE = REPO / "hub" / "local" / "samples" / "modelpress-samples" / "sample-llama"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MARK = {"random_weights": True, "purpose": "speed, memory and pressing time only, never quality"}


def make(
    folder: Path,
    *,
    layers: int = 4,
    width: int = 512,
    between: int = 0,
    heads: int = 8,
    kv_heads: int = 2,
    vocabulary: int = 32000,
    context: int = 32768,
    dtype: str = "bfloat16",
    tokenizer: Path = SAMPLE,
    seed: int = 0,
) -> int:
    """Write a model folder and return its number of parameters; `between` 0 makes the MLP three times as wide as the model.

    Raises `ValueError` for heads that do not divide the width or each other, and for a vocabulary smaller than the tokenizer's.
    """
    if min(heads, kv_heads) < 1 or width % heads or heads % kv_heads:
        raise ValueError(f"{heads} heads do not divide the width {width}, or {kv_heads} KV heads do not divide them")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    own = len(AutoTokenizer.from_pretrained(tokenizer, local_files_only=True))
    if vocabulary < own:
        raise ValueError(f"the tokenizer has {own} tokens; a vocabulary of {vocabulary} is too small for it")
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=between or 3 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width // heads,
        vocab_size=vocabulary,
        max_position_embeddings=context,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **MARK,
    )
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms begin as ones; alike, exporters would store them once
            torch.nn.init.normal_(parameter, mean=1.0, std=0.02)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    _copy_tokenizer(tokenizer, folder, context)
    parameters: int = sum(parameter.numel() for parameter in model.parameters())
    (folder / "README.md").write_text(_card(folder.name, parameters, config, dtype, seed), "utf-8")
    return parameters


def _copy_tokenizer(source: Path, folder: Path, context: int) -> None:
    for name in TOKENIZER:
        shutil.copyfile(source / name, folder / name)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"model_max_length": context}, indent=2) + "\n", "utf-8")


def _card(name: str, parameters: int, config: Any, dtype: str, seed: int) -> str:
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- random-weights
- not-for-quality
---
# {name}

**The weights of this model are random.** Nothing was trained: it is here to measure speed, memory and pressing time at a real size, and
never for quality. Any perplexity, divergence or score of it means nothing.

| | |
|---|---|
| Parameters | {parameters:,}, {dtype}, drawn with seed {seed} by `scripts/make_random_model.py` |
| Architecture | Llama, {config.num_hidden_layers} layers, width {config.hidden_size}, MLP {config.intermediate_size} |
| Attention | {config.num_attention_heads} heads, {config.num_key_value_heads} KV heads |
| Vocabulary | {config.vocab_size:,}; the tokenizer is a sample model's and uses the first of them |
| Context | {config.max_position_embeddings:,} tokens |
"""


def main() -> None:
    """Read the options and make the model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write it; must not exist")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--between", type=int, default=0, help="width of the MLP (default: three times the width)")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--tokenizer", type=Path, default=SAMPLE, help="a model folder whose tokenizer is copied")
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    folder = given.pop("folder")
    if folder.exists():
        parser.error(f"{folder} exists already")
    try:
        print(f"{folder}: {make(folder, **given):,} random parameters")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
