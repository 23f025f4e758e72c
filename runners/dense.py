"""Dense checkpoints through transformers: load, save, and give the untouched remainder back its base's dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hub.errors import BadCheckpoint
from runners import failures
from runners.checkpoint import read_config, shape, write_atomically
from runners.headers import stored_tensors, weight_files

TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def load(folder: Path, *, dtype: str) -> Any:
    """Load a causal language model in evaluation mode on the CPU; `dtype` by torch's name. Never runs remote code.

    Raises `BadCheckpoint` as `require_whole` does.
    """
    import torch
    from transformers import AutoModelForCausalLM

    require_whole(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False)
    return model.eval()


def require_whole(folder: Path) -> None:
    """Raise `BadCheckpoint` where the weights lack a tensor of the model or hold one of another shape: it would be left random."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    stored = shape(folder).tensors
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
    except Exception as error:  # transformers raises whatever a senseless value makes it raise
        raise BadCheckpoint(
            f"transformers makes no model of config.json in {folder}: {type(error).__name__}: {failures.one_line(error)}",
            hint="Download the checkpoint again.",
        ) from error
    for name, wanted in model.named_parameters():
        if name not in stored or stored[name].shape != tuple(wanted.shape):
            what = f"hold {name} as {stored[name].shape}" if name in stored else f"lack {name}"
            raise BadCheckpoint(
                f"The weights in {folder} {what}; the model takes it as {tuple(wanted.shape)}.", hint="Download the checkpoint again."
            )


def tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer; raise `BadCheckpoint` where there is none that transformers reads."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever its parts raise
        raise BadCheckpoint(
            f"transformers finds no tokenizer that it can read in {folder}: {type(error).__name__}: {failures.one_line(error)}",
            hint="Put the model's tokenizer files beside its weights, or use a recipe that needs no calibration.",
        ) from error


def own_dtype(folder: Path) -> str:
    """Return the torch name of the dtype in which a dense checkpoint lies on disk."""
    return TORCH_NAMES.get(shape(folder).dtype, "float32")


def settle(folder: Path, source: Path) -> None:
    """Store float32 tensors in the dtype of the source where that is a narrower one, in the config too.

    Methods compute in float32; written so, a bf16 model's embeddings would double in size and the claim of a smaller model be false.
    """
    wanted = own_dtype(source)
    if wanted != "float32":
        _cast(folder, wanted)
    config = read_config(folder)
    config.pop("torch_dtype", None)
    config["dtype"] = wanted
    write_atomically(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _cast(folder: Path, wanted: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    # Scales of quantized layers are theirs to keep; what a dense model stores are weights and biases.
    wide = {name for name, stored in stored_tensors(folder).items() if stored.tensor.dtype == "F32" and name.endswith((".weight", ".bias"))}
    for path in weight_files(folder):
        tensors = load_file(path)
        if wide & tensors.keys():
            kind = getattr(torch, wanted)
            save_file({name: t.to(kind) if name in wide else t for name, t in tensors.items()}, path, metadata={"format": "pt"})


def edit_config(folder: Path, **values: object) -> None:
    """Set keys of a folder's config.json."""
    config = read_config(folder)
    config.update(values)
    write_atomically(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
