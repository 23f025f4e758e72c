"""GGUF: the one-file format of llama.cpp and all that is built on it, quantized by llama.cpp itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.domain import Step
from hub.errors import BadCheckpoint, UnfitModel
from runners import ggml, method
from runners.checkpoint import ModelShape, shape
from runners.headers import Tensor
from runners.method import Outcome, PressContext, Promise

FAMILY = "export"
SUMMARY = "Writes a GGUF file with llama.cpp's converter and quantizer; embeddings and head are quantized too."
PAPER = "https://github.com/ggml-org/llama.cpp/blob/master/tools/quantize/README.md"
SCHEMES = tuple(ggml.MIXTURES)
FORMAT = "gguf"
NEEDS = ("gguf", "llama_cpp", "auto_round", "sentencepiece", "transformers", "torch")
WORKS = "streaming"
RESUMES = "no"
SPARES = False
INSTALL = "pip install 'modelpress[press,export]'"
BLOCK = 32
_PROBE = "\n \n\n\t 3 33 333 3333 don't WE'LL x=y[0]; ñandú 東京 нещо កាន់ 🦙 ''''``` ......!!!?? a  b   c\r\n"


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures, and rows that no block of 32 weights divides."""
    method.check_common(step, shape, SCHEMES)
    method.options(step)
    method.check_divisible(step, shape, BLOCK)
    for name in shape.tensors:
        ggml.name_of(name, shape.architecture)


def promise(step: Step, shape: ModelShape) -> Promise:
    """All matrices in the types of llama.cpp's mixture, embedding and head included; vectors and positions in float32."""
    tensors = ggml.tensors(shape, step.scheme)
    changed = {linear.name: (ggml.name_of(f"{linear.name}.weight", shape.architecture),) for linear in shape.linears}
    return Promise(shape=replace(shape, zeros={}), tensors=tensors, changed=changed)


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Convert without loss, quantize, and see that llama.cpp cuts text as the base's tokenizer does."""
    import torch

    from runners import gguf_dense, llamacpp

    before = shape(source)
    promised = promise(step, before)
    dense, empty = context.scratch / "dense.gguf", context.scratch / "no-card"
    empty.mkdir(exist_ok=True)
    gguf_dense.write(source, dense, dtype=before.dtype, scratch=empty)
    _check_tokens(llamacpp.Model(dense, vocab_only=True), context)
    made = target / "model.gguf"
    llamacpp.quantize(dense, made, step.scheme, torch.get_num_threads())
    dense.unlink()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    return _told(step, promised, made)


def _check_tokens(model: Any, context: PressContext) -> None:
    """Raise `UnfitModel` where the tokenizer inside the file gives other ids than the base's: the variant would read other words."""
    from runners import texts

    for text in (_PROBE, texts.read("stdlib-calibration")[:20_000], "".join(context.tokenizer.all_special_tokens)):
        if model.tokenize(text) != list(context.tokenizer(text, verbose=False)["input_ids"]):
            raise UnfitModel(
                "llama.cpp cuts text into other tokens than this model's tokenizer does.",
                hint="Use a recipe of another format for this model.",
            )


def _told(step: Step, promised: Promise, made: Path) -> Outcome:
    from runners.readers import gguf

    stored = {name: entry.tensor for name, entry in gguf.read(made).items()}
    wrong = sorted(name for name in stored.keys() | promised.tensors.keys() if stored.get(name) != promised.tensors.get(name))
    if wrong:
        what = f"{wrong[0]} is {_said(stored.get(wrong[0]))}, expected {_said(promised.tensors.get(wrong[0]))}"
        raise BadCheckpoint(f"llama.cpp wrote other types than {step.scheme} has: {what}.", hint="Install the pinned llama-cpp-python.")
    layers = {linear: {"type": stored[names[0]].dtype} for linear, names in promised.changed.items()}
    usual = ggml.MIXTURES[step.scheme]
    narrow = sum(entry["type"] in ("Q5_0", "Q5_1", "Q8_0") and usual.endswith("_K") for entry in layers.values())
    note = f"{narrow} of {len(layers)} layers have rows that blocks of 256 do not divide; they got a type with blocks of 32 and more bits."
    return Outcome(layers=layers, notes=(note,) if narrow else ())


def _said(tensor: Tensor | None) -> str:
    return f"{tensor.dtype} {tensor.shape}" if tensor else "absent"
