"""Hugging Face transformers: the engine in which every variant is measured beside its base.

Safetensors only, never remote code, never the network. The dtype is the checkpoint's own (`dtype` in its config.json), with one
exception: GPTQ's and NVFP4's kernels for a CPU take no float32 (4-bit GPTQ would, 2, 3 and 8 bits do not), so those formats run in
bfloat16 where the checkpoint says float32.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hub.errors import BadCheckpoint, ModelPressError, Unavailable
from runners import failures
from runners.checkpoint import read_config
from runners.engines import _generation, _timing
from runners.observations import Run

TITLE = "Hugging Face transformers"
REQUIRES = ("torch", "transformers", "safetensors")
INSTALL = 'pip install "modelpress[press]"'
FORMATS = ("dense", "gptq", "awq", "auto-round", "compressed-tensors", "bitsandbytes", "torchao")

_GPU = r"\b(?:GPU|CUDA|XPU)\b"
_NEEDS_GPU = re.compile(rf"(?:need|requir|no |not )[^.]{{0,60}}{_GPU}|{_GPU}[^.]{{0,60}}(?:need|requir|not )", re.I)
_NO_FLOAT32 = ("gptq", "nvfp4")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with its tokenizer on one device, in evaluation mode.

    `defects` names what transformers only warns about and goes on: weights that no file filled (then they are random), weights of other
    shapes, a quantization method that it does not know and skipped.
    """

    model: Any
    tokenizer: Any
    device: str
    dtype: str
    version: str
    defects: tuple[str, ...]

    @property
    def label(self) -> str:
        """Engine, version and dtype."""
        return f"transformers {self.version} {self.dtype}"

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence may have; 2**31 where the architecture states no limit."""
        config = self.model.config
        return int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2**31)

    def encode(self, text: str) -> list[int]:
        """Return the text's token ids, with the special tokens that the tokenizer adds by itself."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return str(self.tokenizer.decode(list(ids)))

    def logits(self, ids: Sequence[int]) -> Any:
        """Return the logits after each token: shape (tokens, vocabulary), in the model's dtype."""
        import torch

        with torch.inference_mode():
            return self.model(self._batch(ids), use_cache=False).logits[0]

    def time_generation(self, ids: Sequence[int], new_tokens: int, *, batch: int = 1, mode: str = _generation.EAGER) -> Run:
        """Time a pass over `ids` in each row of a batch, then the writing of `new_tokens` tokens; see `_generation` for the modes."""
        _timing.check(self.label, batch=batch, max_batch=self.max_batch, mode=mode, modes=self.modes, new_tokens=new_tokens)
        return self._writer.time(_timing.rows(ids, batch), new_tokens, mode, self.device)

    def forget(self) -> None:
        """Let go of what timing keeps between runs: static cache and compiled code."""
        self._writer.forget()

    @property
    def modes(self) -> tuple[str, ...]:
        """How the model can be run: eager, and with a static cache where the architecture takes one."""
        return _generation.modes(self.model)

    @property
    def max_batch(self) -> int:
        """The most sequences that can be run together."""
        return _timing.ANY_BATCH

    @property
    def bytes_per_token(self) -> int:
        """Roughly what one token of one sequence takes in memory."""
        return _timing.bytes_per_token(self.model.config.to_dict(), itemsize=self.model.dtype.itemsize)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The tokens that end a text, by the generation config and by the tokenizer."""
        stated = self.model.generation_config.eos_token_id
        found = stated if isinstance(stated, list) else [stated]
        return frozenset(token for token in (*found, self.tokenizer.eos_token_id) if isinstance(token, int))

    def generate(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """Return the greedy continuation of `ids` by `model.generate`, at most `new_tokens` long."""
        import torch

        batch = self._batch(ids)
        with torch.inference_mode():
            out = self.model.generate(
                batch, attention_mask=torch.ones_like(batch), max_new_tokens=new_tokens, do_sample=False, num_beams=1, pad_token_id=0
            )
        return [int(token) for token in out[0, batch.shape[1] :]]

    def _batch(self, ids: Sequence[int]) -> Any:
        import torch

        return torch.tensor([list(ids)], device=self.device)

    @cached_property
    def _writer(self) -> _generation.Writer:
        return _generation.Writer(self.model)


def dtype_of(folder: Path) -> str:
    """Return the dtype's name: the checkpoint's own, or bfloat16 where its format has no float32 kernels."""
    config = read_config(folder)
    own = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    return "bfloat16" if own == "float32" and _format(config) in _NO_FLOAT32 else own


def load(folder: Path, *, dtype: str | None = None) -> Loaded:
    """Load model and tokenizer from a folder, onto the first CUDA device where there is one.

    Raises `BadCheckpoint` when transformers cannot read it, `Unavailable` when the format's library is missing; what says that memory
    is out passes as it is.
    """
    import torch
    import transformers

    name = dtype or dtype_of(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    placed = {"device_map": {"": 0}} if device == "cuda" else {}
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=getattr(torch, name), use_safetensors=True, output_loading_info=True, **placed, **local
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), **local)
    except ModelPressError:
        raise
    except ImportError as error:
        raise Unavailable(
            f"transformers needs a library to load {folder.name}: {failures.one_line(error)}", hint=f"Run: {INSTALL}"
        ) from error
    except Exception as error:  # transformers raises whatever its parts raise
        if failures.out_of_memory(error):
            raise
        if device == "cpu" and _NEEDS_GPU.search(str(error)):
            raise Unavailable(
                f"transformers loads {folder.name} on a GPU only: {failures.one_line(error)}", hint="Use a machine with a GPU."
            ) from error
        raise BadCheckpoint(
            f"transformers cannot load {folder.name}: {type(error).__name__}: {failures.one_line(error)}",
            hint="Press it again; if that does not help, this method's output cannot be served by transformers.",
        ) from error
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        device=device,
        dtype=name,
        version=transformers.__version__,
        defects=_defects(model, info, read_config(folder)),
    )


def count_parameters(folder: Path) -> int:
    """Return how many weights the checkpoint stands for: those of its architecture undressed of quantization, tied ones once."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


def _defects(model: Any, info: dict[str, Any], config: dict[str, Any]) -> tuple[str, ...]:
    found = []
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method and getattr(model, "hf_quantizer", None) is None:
        found.append(f"the quantization method {method!r} was skipped: the weights were read as if they were dense")
    for key, what in (("missing_keys", "no stored tensor fills"), ("mismatched_keys", "a stored tensor has another shape than")):
        names = sorted(str(name[0] if isinstance(name, tuple) else name) for name in info.get(key) or ())
        if names:
            found.append(f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}")
    return tuple(found)


def _format(config: dict[str, Any]) -> str:
    """Return `nvfp4` or the quant_method, empty for a dense checkpoint."""
    quantization = config.get("quantization_config") or {}
    return "nvfp4" if "nvfp4" in str(quantization.get("format", "")).lower() else str(quantization.get("quant_method", ""))
