"""What a quality pass costs, beside lm-eval's on the same windows, model and machine: `python tests/benchmarks/quality.py`.

All arms run in turns, in an order that rotates, so that a drifting machine hits all alike; the table shows medians. On a busy machine
`--clock cpu` with one thread (OMP_NUM_THREADS=1) counts what the process computed instead of what it waited for.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hub.protocol import Quality
from runners import base_states, metrics, quality, texts
from runners.base_states import Beside
from runners.engines import transformers
from runners.observations import Chunk, Room

SAMPLES = Path(__file__).resolve().parents[2] / "hub" / "local" / "samples" / "modelpress-samples"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PERPLEXITY = ("perplexity",)
PAIRED = ("perplexity", "kl_divergence", "same_top_token")


def main() -> None:
    """Print a table by dtype: medians in ms a window, and the two ratios that are promised."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SAMPLES / "sample-llama")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    chosen = parser.parse_args()
    logging.disable(logging.WARNING)
    for dtype in chosen.dtype:
        with tempfile.TemporaryDirectory() as cache:
            arms = _arms(chosen.model, dtype, chosen.windows, Path(cache))
            _report(dtype, _medians(arms, chosen.repeats, CLOCKS[chosen.clock]), chosen.windows)


def _arms(folder: Path, dtype: str, windows: int, cache: Path) -> dict[str, Callable[[], object]]:
    loaded, base = transformers.load(folder, dtype=dtype), transformers.load(folder, dtype=dtype)
    side = quality.Side(folder=folder, loaded=loaded)
    cut = quality.tokenize(side, texts.read("stdlib-heldout"), Quality(sequence_length=512, windows=windows))
    kept, notes = base_states.beside(base, folder, [ids[:-1] for ids in cut.ids], cache)
    assert not notes
    live = base_states.Live(base)
    alone = {name: metrics.load(name) for name in PERPLEXITY}
    paired = {name: metrics.load(name) for name in PAIRED}
    requests = [((None, None), [ids[0]], list(ids[1:])) for ids in cut.ids]
    other = _lm_eval(loaded)
    return {
        "lm-eval": lambda: other._loglikelihood_tokens(requests, disable_tqdm=True),
        "perplexity": lambda: quality.over_windows(base_states.Live(loaded), None, cut, alone),
        "beside a base that runs": lambda: quality.over_windows(base_states.Live(loaded), live, cut, paired),
        "the base's part of that": lambda: _base_part(live, cut),
        "beside kept states": lambda: quality.over_windows(base_states.Live(loaded), kept, cut, paired),
        "the base's part of this": lambda: _base_part(kept, cut),
    }


def _lm_eval(loaded: transformers.Loaded) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=1)


def _base_part(base: Beside, cut: quality.Cut) -> None:
    """Do what is of the base alone: its logits, log-probabilities, probabilities and first choices."""
    room = Room()
    for index, ids in enumerate(cut.ids):
        with torch.inference_mode():
            logits = base.window(index, ids[:-1])(0, len(ids) - 1)
            for part in logits.split(quality.chunk_rows(logits)):
                chunk = Chunk(part, torch.zeros(len(part), dtype=torch.long, device=part.device), part, room)
                assert chunk.base_nll.isfinite().all()
                assert len(chunk.base_probs) == len(chunk.base_top)


def _medians(arms: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for turn in range(-1, repeats):  # the turn before the first warms up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = clock()
            arms[name]()
            if turn >= 0:
                seconds[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in seconds.items()}


def _report(dtype: str, medians: dict[str, float], windows: int) -> None:
    out = sys.stdout.write
    for name, found in medians.items():
        out(f"{dtype:9} {name:24} {1000 * found / windows:9.2f} ms a window\n")
    ours, theirs = medians["perplexity"], medians["lm-eval"]
    out(f"{dtype:9} perplexity / lm-eval's: {ours / theirs:.3f} (promised: at most 1)\n")
    for whole, part in (("beside a base that runs", "the base's part of that"), ("beside kept states", "the base's part of this")):
        aside = (medians[whole] - medians[part]) / ours
        out(f"{dtype:9} {whole}: KL + top / perplexity alone {aside:.3f} (promised: at most 1.25), ")
        out(f"the base's part included {medians[whole] / ours:.3f}\n")


if __name__ == "__main__":
    main()
