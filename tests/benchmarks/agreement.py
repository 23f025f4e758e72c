"""Our perplexity beside lm-eval's and a plain float64 one, on the same windows of WikiText-2: `python tests/benchmarks/agreement.py`.

The protocol is wikitext2-paper cut at 512 tokens, the context of these models. All three get the same tokens; ours and lm-eval's run one
after the other on the same loaded model and are timed. lm-eval's softmax is float32 whatever the model's dtype, as the task runner has it.
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
from runners import metrics, quality
from runners.engines import transformers

REPO = Path(__file__).resolve().parents[2]
SAMPLES = REPO / "hub" / "local" / "samples" / "modelpress-samples"
SHARED = REPO.parent / "shared"
TEXT = SHARED / "data" / "wikitext-2-raw" / "wikitext-2-raw-v1.test.joined.txt"
MODELS = tuple(SAMPLES / name for name in ("sample-llama", "sample-qwen3-chat", "sample-gpt2"))
STORIES = SHARED / "models" / "stories260K"


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Perplexities of one model on the same windows, found in three ways, and the seconds that the first two took."""

    dtype: str
    windows: int
    ours: float
    lm_eval: float
    float64: float
    seconds: float
    lm_eval_seconds: float


def compare(folder: Path, text: str, windows: int, dtype: str | None = None, length: int = 512) -> Agreement:
    """Return the three perplexities of a checkpoint folder on so many windows of a text (0: all)."""
    loaded = transformers.load(folder, dtype=dtype)
    cut = quality.tokenize(quality.Side(folder=folder, loaded=loaded), text, Quality(sequence_length=length, windows=windows))
    perplexity = metrics.load("perplexity")
    lm, requests = _lm_eval(loaded), [((None, None), [ids[0]], list(ids[1:])) for ids in cut.ids]
    quality.over_windows(loaded, None, quality.Cut(ids=cut.ids[:1], bytes=()), {"perplexity": perplexity})  # both start warm
    start = time.perf_counter()
    found = quality.over_windows(loaded, None, cut, {"perplexity": perplexity})
    middle = time.perf_counter()
    answers = lm._loglikelihood_tokens(requests, disable_tqdm=True)
    end = time.perf_counter()
    return Agreement(
        dtype=loaded.dtype,
        windows=len(cut.ids),
        ours=perplexity.summarize(found["perplexity"])[0].value,
        lm_eval=math.exp(-sum(value for value, _ in answers) / sum(len(ids) - 1 for ids in cut.ids)),
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


def _lm_eval(loaded: transformers.Loaded) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1, softmax_dtype=torch.float32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=20, help="how many windows, at even distances; 0: the whole split")
    parser.add_argument("--models", type=Path, nargs="+", default=[*MODELS, STORIES])
    parser.add_argument("--dtype", nargs="+", default=["float32"], help="float32, bfloat16, …; own: the checkpoint's own")
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    text, out = TEXT.read_text("utf-8"), sys.stdout.write
    out("| model | dtype | windows | ours | lm-eval | float64 | ours / lm-eval - 1 | ours / float64 - 1 | time ours / lm-eval |\n")
    out("|---|---|---|---|---|---|---|---|---|\n")
    for folder in chosen.models:
        for dtype in chosen.dtype:
            one = compare(folder, text, chosen.windows, None if dtype == "own" else dtype)
            out(f"| {folder.name} | {one.dtype} | {one.windows} | {one.ours:.6f} | {one.lm_eval:.6f} | {one.float64:.6f} ")
            out(f"| {one.ours / one.lm_eval - 1:.1e} | {one.ours / one.float64 - 1:.1e} | {one.seconds / one.lm_eval_seconds:.2f} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
