"""Train the sample models of the embedded hub from text that every Python carries.

Three small causal language models (Llama, Qwen3, GPT-2) with one byte-level BPE tokenizer are trained on the
standard library's sources and documentation, then written as bf16 safetensors with tokenizer, generation config,
licence and card. A fixed share of the files, chosen by the hash of their paths, is never trained on: it becomes the
default evaluation text. Same Python, same seed and same token budget give the same models, up to the floating-point
order of the machine.

    python scripts/make_sample_models.py                 # all three, about twenty minutes each on two cores
    python scripts/make_sample_models.py --only sample-llama --tokens 100000 --out /tmp/samples
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
ORGANISATION = "modelpress-samples"
VOCABULARY = 2048
CONTEXT = 512
HELD_OUT_ONE_IN = 16
EVALUATION_BYTES = 400_000
CALIBRATION_BYTES = 400_000
# Data tables and generated code teach a language model nothing and cost tokens.
LEFT_OUT = ("encodings/", "test/", "tests/", "idlelib/idle_test/", "lib2to3/", "site-packages/", "_sysconfigdata", "ensurepip/")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One sample model: its name, transformers config and the words for its card."""

    name: str
    architecture: str
    config: dict[str, Any]
    chat: bool = False
    peak_rate: float = 0.02


SHARED = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SAMPLES = (
    Sample(
        name="sample-llama",
        architecture="llama",
        config={
            "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True, **SHARED,
        },
    ),
    Sample(
        name="sample-qwen3-chat",
        architecture="qwen3",
        chat=True,
        config={
            "hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 3,
            "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": CONTEXT, "tie_word_embeddings": True, **SHARED,
        },
    ),
    Sample(
        name="sample-gpt2",
        architecture="gpt2",
        config={
            "n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": CONTEXT,
            "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, **SHARED,
        },
    ),
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def corpus() -> tuple[list[str], list[str]]:
    """Return (training documents, held-out documents) of the running Python's standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train: list[str] = []
    held_out: list[str] = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if any(part in f"{name}" for part in LEFT_OUT):
            continue
        # An installation writes its own path into the first line of some scripts; the texts are to be the same everywhere.
        text = re.sub(r"\A#!.*python[\d.]*", "#!/usr/bin/env python3", path.read_text(encoding="utf-8", errors="replace"))
        if len(text) < 500:
            continue
        digest = int(hashlib.sha256(name.encode()).hexdigest(), 16)
        (held_out if digest % HELD_OUT_ONE_IN == 0 else train).append(f"# {name}\n{text}")
    return train, held_out


def excerpt(documents: list[str], size: int) -> str:
    """Join equal shares from the start of each document until about `size` bytes are reached."""
    share = max(2000, size // len(documents))
    return "\n\n".join(document[:share] for document in documents)[:size]


def train_tokenizer(documents: list[str]) -> Any:
    """Train a byte-level BPE of 2,048 tokens; token 0 ends a text, 1 and 2 delimit chat turns."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe.train_from_iterator(documents, vocab_size=VOCABULARY, min_frequency=2, special_tokens=specials, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=specials[0], eos_token=specials[0], pad_token=specials[0], unk_token=specials[0],
        model_max_length=CONTEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def batches(tokens: Any, batch: int, seed: int) -> Iterator[Any]:
    """Yield endless (batch, CONTEXT + 1) windows in a seeded order, every window once per epoch at a new offset."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        count = (len(tokens) - offset - 1) // CONTEXT
        order = torch.randperm(count, generator=generator)
        for start in range(0, count - batch + 1, batch):
            begins = order[start : start + batch] * CONTEXT + offset
            yield torch.stack([tokens[int(b) : int(b) + CONTEXT + 1] for b in begins])


def train_model(sample: Sample, tokens: Any, held_out: Any, budget: int, seed: int) -> tuple[Any, float]:
    """Train for `budget` tokens with Muon on the matrices and AdamW on the rest; return (model, held-out perplexity)."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(sample.architecture, **sample.config)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and not any(w in n for w in ("embed", "wte", "wpe", "lm_head"))]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    optimizers = [
        torch.optim.Muon(matrices, lr=sample.peak_rate, weight_decay=0.01, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    batch = 8
    steps = max(1, budget // (batch * CONTEXT))
    began = time.monotonic()
    stream = batches(tokens, batch, seed)
    for step in range(steps):
        # Warm up over 2 %, hold, then let the rate fall to zero over the last 40 %.
        factor = min(1.0, (step + 1) / max(1, steps * 0.02), (steps - step) / max(1, steps * 0.4))
        for rate, group in zip(rates, (g for o in optimizers for g in o.param_groups), strict=True):
            group["lr"] = rate * factor
        window = next(stream)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(window[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % 20 == 0 or step == steps - 1:
            seconds = time.monotonic() - began
            rate_now = (step + 1) * batch * CONTEXT / seconds
            print(f"{sample.name} step {step + 1}/{steps} loss {loss.item():.3f} {rate_now:,.0f} tokens/s {seconds:.0f} s", flush=True)
    model = model.to(torch.bfloat16).float().eval()
    return model, perplexity(model, held_out)


def perplexity(model: Any, tokens: Any) -> float:
    """Return exp(mean NLL) over non-overlapping windows of CONTEXT tokens."""
    import torch

    losses = []
    with torch.no_grad():
        for start in range(0, len(tokens) - CONTEXT, CONTEXT):
            window = tokens[start : start + CONTEXT][None]
            logits = model(window[:, :-1]).logits.float()
            losses.append(torch.nn.functional.cross_entropy(logits[0], window[0, 1:]).item())
    return math.exp(sum(losses) / len(losses))


def card(sample: Sample, parameters: int, budget: int, value: float) -> str:
    """Return the README.md of a sample model."""
    layers, width = (
        sample.config.get(new, sample.config.get(old)) for new, old in (("num_hidden_layers", "n_layer"), ("hidden_size", "n_embd"))
    )
    chat = "\nIt carries a chat template, but was trained on plain text only: it does not converse.\n" if sample.chat else ""
    return f"""---
license: other
license_name: psf-2.0
license_link: LICENSE
language:
- en
library_name: transformers
pipeline_tag: text-generation
tags:
- {sample.architecture}
- sample
---
# {sample.name}

A {parameters / 1e6:.1f}M-parameter {sample.architecture} language model, trained from scratch on {budget / 1e6:.1f} million tokens of the
Python {sys.version_info.major}.{sys.version_info.minor} standard library's sources and docstrings. It completes Python code in the style of
that library. It exists so that compression can be tried, measured and tested without a network.
{chat}
| | |
|---|---|
| Architecture | {sample.architecture}, {layers} layers, width {width} |
| Tokenizer | byte-level BPE, {VOCABULARY:,} tokens |
| Context | {CONTEXT} tokens |
| Held-out perplexity | {value:.2f} (per token, windows of {CONTEXT}; a uniform guess gives {VOCABULARY:,}) |
| Training | Muon and AdamW, bf16 autocast, `scripts/make_sample_models.py`, seed 0 |

Limits: it knows nothing but Python's own library; do not use it for work. Licence: the training text is under the PSF licence, which
is included; the weights are given under the same terms.
"""


def write(sample: Sample, model: Any, tokenizer: Any, folder: Path, budget: int, value: float) -> None:
    """Write one model folder: weights, config, tokenizer, generation config, licence, card."""
    import torch

    model = model.to(torch.bfloat16)
    model.generation_config.max_length = None
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.chat_template = CHAT_TEMPLATE if sample.chat else None
    tokenizer.save_pretrained(folder)
    licence = Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt"
    (folder / "LICENSE").write_text(licence.read_text(encoding="utf-8"), encoding="utf-8")
    parameters = sum(p.numel() for p in model.parameters())
    (folder / "README.md").write_text(card(sample, parameters, budget, value), encoding="utf-8")


def main() -> None:
    """Make the tokenizer, the texts and the models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPO / "hub" / "local" / "samples")
    parser.add_argument("--texts", type=Path, default=REPO / "runners" / "texts")
    parser.add_argument("--only", choices=[s.name for s in SAMPLES])
    parser.add_argument("--tokens", type=int, default=6_000_000, help="training tokens per model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import torch

    train, held_out = corpus()
    arguments.texts.mkdir(parents=True, exist_ok=True)
    evaluation = excerpt(held_out, EVALUATION_BYTES)
    (arguments.texts / "stdlib-heldout.txt").write_text(evaluation, encoding="utf-8")
    (arguments.texts / "stdlib-calibration.txt").write_text(excerpt(train, CALIBRATION_BYTES), encoding="utf-8")
    tokenizer = train_tokenizer(train)
    joined = "<|endoftext|>".join(train)
    tokens = torch.tensor(tokenizer.backend_tokenizer.encode(joined).ids)
    test = torch.tensor(tokenizer.backend_tokenizer.encode(evaluation[:150_000]).ids)
    print(json.dumps({"documents": len(train), "bytes": len(joined), "tokens": len(tokens), "test_tokens": len(test)}), flush=True)
    for sample in SAMPLES:
        if arguments.only not in (None, sample.name):
            continue
        model, value = train_model(sample, tokens, test, arguments.tokens, arguments.seed)
        write(sample, model, tokenizer, arguments.out / ORGANISATION / sample.name, arguments.tokens, value)
        print(f"{sample.name}: held-out perplexity {value:.2f}", flush=True)


if __name__ == "__main__":
    main()
