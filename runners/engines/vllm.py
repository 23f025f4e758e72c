"""vLLM: times checkpoints as they are served, on a GPU; it gives no logits for whole windows, so it stands beside another engine.

Times are those that vLLM notes for each request: to the first token from the request's arrival, of the slowest, and from there to the last
one, their mean. Single tokens in between are not told apart, so they share the time equally. Prefix caching is off, since repeats would
find their own prompts. More prompt tokens than vLLM reads in one step are read in several: early requests write while late ones are read,
so the two times overlap, and decoding beside reading is slower than by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import Any

from hub.errors import BadCheckpoint, Unavailable
from runners import dense, failures
from runners.checkpoint import read_config
from runners.engines import _timing
from runners.engines import transformers as plain
from runners.observations import Run
from runners.readers import engine_file

TITLE = "vLLM"
REQUIRES = ("vllm", "torch", "transformers")
INSTALL = "pip install vllm"
FORMATS = ("dense", "gptq", "awq", "compressed-tensors", "bitsandbytes", "gguf")
TIMES_ONLY = True

_MODE = "vllm"
_SEQUENCES = 256  # that run together
_MEMORY = 0.9  # of what is free on the GPU, which vLLM takes at once

dtype_of = plain.dtype_of
count_parameters = plain.count_parameters  # of config.json, which is the base's


class Loaded:
    """A model that vLLM serves in this process."""

    device = "cuda"
    defects: tuple[str, ...] = ()
    modes: tuple[str, ...] = (_MODE,)
    max_batch = _SEQUENCES
    bytes_per_token = 0  # what does not fit the memory that vLLM took is read later, not refused

    def __init__(self, folder: Path, llm: Any, dtype: str) -> None:
        """Keep the model, and load the tokenizer beside it."""
        self._llm = llm
        self._config = read_config(folder)
        self.tokenizer = dense.tokenizer(folder)
        self.dtype = dtype

    @property
    def label(self) -> str:
        """Engine, version and dtype."""
        return f"vllm {_library().__version__} {self.dtype}"

    @property
    def context_length(self) -> int:
        """The most tokens that one sequence may have; 2**31 where config.json states no limit."""
        found = (self._config.get(key) for key in ("max_position_embeddings", "n_positions"))
        return next((length for length in found if isinstance(length, int)), 2**31)

    @property
    def end_tokens(self) -> frozenset[int]:
        """The token that ends a text, as the tokenizer has it."""
        return frozenset({self.tokenizer.eos_token_id} - {None})

    def encode(self, text: str) -> list[int]:
        """Return the text's token ids, with the special tokens that the tokenizer adds by itself."""
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return str(self.tokenizer.decode(list(ids)))

    def logits(self, ids: Sequence[int]) -> Any:
        """Raise `Unavailable`: vLLM returns log-probabilities of a few tokens, never a row over the whole vocabulary."""
        raise Unavailable(
            f"vLLM gives no logits of {len(ids)} tokens over the whole vocabulary; it only times.", hint="Score with the format's engine."
        )

    def time_generation(self, ids: Sequence[int], new_tokens: int, *, batch: int = 1, mode: str = _MODE) -> Run:
        """Time the reading of `ids` in each row of a batch, then the greedy writing of `new_tokens` tokens; rows arrive together."""
        _timing.check("vLLM", batch=batch, max_batch=self.max_batch, mode=mode, modes=self.modes, new_tokens=new_tokens)
        outputs = self._write(_timing.rows(ids, batch), new_tokens, ignore_eos=True)
        found = [output.metrics for output in outputs]
        if any(one is None or not one.first_token_ts for one in found):
            raise Unavailable("This vLLM notes no times of its requests.", hint="Install vLLM 0.11 or later.")
        rest = fmean(one.last_token_ts - one.first_token_ts for one in found)
        steps = new_tokens - 1
        return Run(
            prefill_seconds=max(one.first_token_latency for one in found),
            token_seconds=(rest / steps,) * steps if steps else (),
            tokens=tuple(tuple(output.outputs[0].token_ids) for output in outputs),
        )

    def generate(self, ids: Sequence[int], new_tokens: int) -> list[int]:
        """Return the greedy continuation of `ids`, at most `new_tokens` long; an end-of-text token ends it."""
        return list(self._write([list(ids)], new_tokens, ignore_eos=False)[0].outputs[0].token_ids)

    def forget(self) -> None:
        """Keep everything: vLLM's cache is of one size, whatever is read."""

    def _write(self, rows: Sequence[list[int]], new_tokens: int, *, ignore_eos: bool) -> Any:
        params = _library().SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=ignore_eos, detokenize=False)
        return self._llm.generate([{"prompt_token_ids": row} for row in rows], params, use_tqdm=False)


def load(folder: Path, *, dtype: str | None = None) -> Loaded:
    """Load a folder onto the first GPU; raise `BadCheckpoint` where vLLM cannot. What says that memory is out passes as it is."""
    name = dtype or dtype_of(folder)
    try:
        llm = _library().LLM(
            model=str(engine_file(folder) or folder), tokenizer=str(folder), dtype=name, seed=0, trust_remote_code=False,
            gpu_memory_utilization=_share(), max_num_seqs=_SEQUENCES, enforce_eager=False, enable_prefix_caching=False,
            disable_log_stats=False,
        )  # fmt: skip
        return Loaded(folder, llm, name)
    except Exception as error:  # vLLM raises whatever its parts raise
        if failures.out_of_memory(error):
            raise
        raise BadCheckpoint(
            f"vLLM cannot load {folder.name}: {type(error).__name__}: {failures.one_line(error)}", hint="Time it in its format's engine."
        ) from error


def _share() -> float:
    """Return which share of the GPU's memory is vLLM's: other models may be on it."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return _MEMORY * float(free / total)


def _library() -> Any:
    return import_module("vllm")  # by name, since no other engine's checks should ask for its types
