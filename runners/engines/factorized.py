"""Low-rank checkpoints in Hugging Face transformers: its model, with each factorized layer replaced by two linear ones.

transformers itself knows no such format, and nothing here patches it: the card of a release shows the same in a few lines of plain torch.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.errors import BadCheckpoint, ModelPressError
from runners import dense, failures
from runners.checkpoint import read_config
from runners.engines import transformers as plain
from runners.factors import FORMAT
from runners.headers import weight_files

TITLE = "Low-rank factors in Hugging Face transformers"
REQUIRES = ("torch", "transformers", "safetensors", "accelerate")
INSTALL = plain.INSTALL
FORMATS = (FORMAT,)

dtype_of = plain.dtype_of
count_parameters = plain.count_parameters


@dataclass(frozen=True, kw_only=True)
class Loaded(plain.Loaded):
    """A factorized model with its tokenizer on one device, in evaluation mode."""

    @property
    def label(self) -> str:
        """Engine, version and dtype."""
        return f"transformers {self.version} with low-rank layers {self.dtype}"


def load(folder: Path, *, dtype: str | None = None) -> Loaded:
    """Load model and tokenizer from a folder, onto the first CUDA device where there is one.

    Raises `BadCheckpoint` where tensors and config.json do not make the model whole; what says that memory is out passes as it is.
    """
    import torch
    import transformers

    name = dtype or dtype_of(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = _model(folder, getattr(torch, name)).to(device)
    except ModelPressError:
        raise
    except Exception as error:  # torch and transformers raise whatever a senseless value makes them raise
        if failures.out_of_memory(error):
            raise
        raise BadCheckpoint(
            f"{folder.name} makes no low-rank model: {type(error).__name__}: {failures.one_line(error)}", hint="Press it again."
        ) from error
    return Loaded(
        model=model.eval(),
        tokenizer=dense.tokenizer(folder),
        device=device,
        dtype=name,
        version=transformers.__version__,
        defects=(),
    )


def _model(folder: Path, dtype: Any) -> Any:
    """Return the model: built without weights, its factorized layers replaced, then filled file by file."""
    from accelerate import init_empty_weights
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):  # buffers (rotary frequencies, masks) are computed, not stored
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
        for linear, rank in _ranks(folder).items():
            _replace(model, linear, rank)
    missing = set(model.state_dict())
    for path in weight_files(folder):
        tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in load_file(path).items()}
        if strangers := model.load_state_dict(tensors, strict=False, assign=True).unexpected_keys:
            raise BadCheckpoint(f"{folder.name} holds {strangers[0]}, which the model has no place for.", hint="Press it again.")
        missing -= tensors.keys()
    model.tie_weights()
    if random := sorted(name for name in missing if model.get_parameter(name).is_meta):
        raise BadCheckpoint(f"{folder.name} lacks {random[0]}.", hint="Press it again.")
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _ranks(folder: Path) -> dict[str, int]:
    found = (read_config(folder).get("quantization_config") or {}).get("ranks")
    if not isinstance(found, dict) or not all(isinstance(rank, int) and rank > 0 for rank in found.values()):
        raise BadCheckpoint(f"config.json of {folder.name} lists no ranks.", hint="Press it again.")
    return found


def _replace(model: Any, name: str, rank: int) -> None:
    """Put two linear layers in the place of one, or of GPT-2's Conv1D."""
    import torch

    old = model.get_submodule(name)
    inputs, outputs = (old.in_features, old.out_features) if hasattr(old, "in_features") else (old.nx, old.nf)
    into = torch.nn.Linear(inputs, rank, bias=False)
    out = torch.nn.Linear(rank, outputs, bias=old.bias is not None)
    pair = torch.nn.Sequential(OrderedDict(factor_in=into, factor_out=out))
    pair.in_features, pair.out_features = inputs, outputs  # so that it can be compared with the layer whose place it takes
    model.set_submodule(name, pair)
