"""Our perplexity beside lm-eval's and a plain float64 one, on the same windows of WikiText-2: `python tests/benchmarks/agreement.py`.

The protocol is wikitext2-paper cut at 512 tokens, the context of these models. All get the same tokens; ours and lm-eval's run one after
the other on the same loaded model and are timed. lm-eval's softmax is float32, as where it runs tasks; its default, in the dtype of the
model, is shown beside it.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.protocol import Quality
from runners import base_states, metrics, quality
from runners.engines import transformers

REPO = Path(__file__).resolve().parents[2]
SAMPLES = REPO / "hub" / "local" / "samples" / "modelpress-samples"
SHARED = REPO.parent / "shared"
TEXT = SHARED / "data" / "wikitext-2-raw" / "wikitext-2-raw-v1.test.joined.txt"
MODELS = tuple(SAMPLES / name for name in ("sample-llama", "sample-qwen3-chat", "sample-gpt2"))
STORIES = SHARED / "models" / "stories260K"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Perplexities of one model on the same windows, found in several ways, and the seconds that the first two took."""

    dtype: str
    windows: int
    ours: float
    lm_eval: float
    lm_eval_default: float
    float64: float
    seconds: float
    lm_eval_seconds: float


def compare(folder: Path, text: str, windows: int, dtype: str | None = None, length: int = 512) -> Agreement:
    """Return the three perplexities of a checkpoint folder on so many windows of a text (0: all)."""
    loaded = transformers.load(folder, dtype=dtype)
    cut = quality.tokenize(quality.Side(folder=folder, loaded=loaded), text, Quality(sequence_length=length, windows=windows))
    perplexity = metrics.load("perplexity")
    single, default = _lm_eval(loaded, "float32"), _lm_eval(loaded, None)
    warm = quality.Cut(ids=cut.ids[:1], bytes=())  # both start warm
    quality.over_windows(base_states.Live(loaded), None, warm, {"perplexity": perplexity})
    start = time.perf_counter()
    found = quality.over_windows(base_states.Live(loaded), None, cut, {"perplexity": perplexity})
    middle = time.perf_counter()
    theirs = _perplexity(single, cut.ids)
    end = time.perf_counter()
    return Agreement(
        dtype=loaded.dtype,
        windows=len(cut.ids),
        ours=perplexity.summarize(found["perplexity"])[0].value,
        lm_eval=theirs,
        lm_eval_default=_perplexity(default, cut.ids),
        float64=reference(loaded.model, cut.ids),
        seconds=middle - start,
        lm_eval_seconds=end - middle,
    )


def reference(model: Any, windows: Sequence[Sequence[int]]) -> float:
    """Return exp of the mean negative log-likelihood by the definition: float64 throughout, one window and one token at a time."""
    import torch

    wide, total, count = model.double(), 0.0, 0
    for ids in windows:
        with torch.no_grad():
            log_probs = torch.log_softmax(wide(torch.tensor([list(ids)], device=wide.device)).logits[0], dim=-1)
        assert log_probs.dtype == torch.float64
        for position in range(len(ids) - 1):
            total -= float(log_probs[position, ids[position + 1]])
            count += 1
    return math.exp(total / count)


def _lm_eval(loaded: transformers.Loaded, softmax: str | None) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1, softmax_dtype=softmax)


def _perplexity(model: Any, windows: Sequence[Sequence[int]]) -> float:
    answers = model._loglikelihood_tokens([((None, None), [ids[0]], list(ids[1:])) for ids in windows], disable_tqdm=True)
    return math.exp(-sum(value for value, _ in answers) / sum(len(ids) - 1 for ids in windows))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=20, help="how many windows, at even distances; 0: the whole split")
    parser.add_argument("--models", type=Path, nargs="+", default=[*MODELS, STORIES])
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16, …; own: the checkpoint's own")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    text, out = TEXT.read_text("utf-8"), sys.stdout.write
    ratios = ("ours / lm-eval - 1", "ours / float64 - 1", "time ours / lm-eval")
    titles = ("model", "dtype", "windows", "ours", "lm-eval", "its default", "float64", *ratios)
    out(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}\n")
    for folder in chosen.models:
        for dtype in chosen.dtype:
            one = compare(folder, text, chosen.windows, None if dtype == "own" else dtype)
            values = " | ".join(f"{value:.6f}" for value in (one.ours, one.lm_eval, one.lm_eval_default, one.float64))
            out(f"| {folder.name} | {one.dtype} | {one.windows} | {values} ")
            out(f"| {one.ours / one.lm_eval - 1:.1e} | {one.ours / one.float64 - 1:.1e} | {one.seconds / one.lm_eval_seconds:.2f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
