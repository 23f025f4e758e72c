"""The curve of speed of a variant beside its base, measured twice: `python tests/benchmarks/speed.py [--recipe NAME] [--model FOLDER]`.

The variant is pressed on the spot. Each point of the curve is printed with the ratios to the base and their intervals, then for each metric
at how many points the two measurements agree: where their intervals overlap, and where they do so once widened by the metric's tolerance.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

from hub.domain import ModelRef
from hub.protocol import Speed
from runners import engines, metrics, press, recipes, speed, texts
from runners.intervals import Estimate
from runners.observations import Observed, SpeedPoint

REPO = Path(__file__).resolve().parents[2]
SAMPLE = REPO / "hub" / "local" / "samples" / "modelpress-samples" / "sample-llama"
SECTION = Speed(
    batches=(1, 8), contexts=(64, 256), modes=("eager", "static-cache"), new_tokens=16, repeats=10, seconds=1.0, warmup=2
)  # fmt: skip
METRICS = (
    "prefill_speedup",
    "decode_speedup",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "time_to_first_token",
    "time_per_output_token",
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of the points at which a metric was taken twice, at how many the intervals overlap, and with its tolerance added."""

    metric: str
    points: int
    overlap: int
    within_tolerance: int


def twice(folder: Path, base_folder: Path, section: Speed, text: str) -> tuple[speed.Curve, speed.Curve]:
    """Return two curves of a checkpoint beside its base, both models loaded once."""
    engine = engines.for_folder(folder)
    ids = speed.warm(engine, folder, text, section.contexts[0], section.contexts[0] + section.new_tokens)
    loaded = engine.load(folder)
    base = engines.load("transformers").load(base_folder, dtype=loaded.dtype)
    return speed.curve(loaded, base, section, ids), speed.curve(loaded, base, section, ids)


def agreement(metric: str, curves: tuple[speed.Curve, speed.Curve]) -> Agreement:
    """Compare a metric's estimates point by point."""
    module = metrics.load(metric)
    pairs = list(zip(*(module.estimates(Observed(speed=curve.points)) for curve in curves), strict=True))
    return Agreement(
        metric=metric,
        points=len(pairs),
        overlap=sum(_overlap(one, other, 0.0) for one, other in pairs),
        within_tolerance=sum(_overlap(one, other, module.TOLERANCE) for one, other in pairs),
    )


def _overlap(one: Estimate, other: Estimate, tolerance: float) -> bool:
    return max(one.low, other.low) * (1 - tolerance) <= min(one.high, other.high)


def _line(point: SpeedPoint) -> str:
    observed = Observed(speed=(point,))

    def told(metric: str, digits: int, factor: float = 1) -> str:
        (found,) = metrics.load(metric).estimates(observed)
        return f"{factor * found.value:.{digits}f} [{factor * found.low:.{digits}f}, {factor * found.high:.{digits}f}]"

    cells = (told("time_to_first_token", 2, 1e3), told("time_per_output_token", 2, 1e3), told("decode_tokens_per_second", 0))
    where = f"{point.mode:12} {point.batch:5} {point.context:7} {len(point.runs):4}"
    return f"{where}  {cells[0]:22} {cells[1]:22} {cells[2]:20} {told('prefill_speedup', 3):24} {told('decode_speedup', 3)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Press, measure twice, print."""
    parser = argparse.ArgumentParser(description="The curve of speed of a variant beside its base, measured twice.")
    parser.add_argument("--recipe", default="bnb-nf4", help="what the variant is pressed by (gptq-w4a16-g128, gguf-q8-0, …)")
    parser.add_argument("--model", type=Path, default=SAMPLE, help="a dense checkpoint folder")
    parser.add_argument("--compiled", action="store_true", help="the mode `compiled`, too, which takes minutes")
    given = parser.parse_args(arguments)
    section = SECTION
    if given.compiled:
        section = replace(section, modes=(*section.modes, "compiled"))
    with tempfile.TemporaryDirectory() as scratch, redirect_stdout(sys.stderr):  # libraries tell much while they press
        folder = Path(scratch) / "variant"
        press.press(ModelRef(repo_id="local/base", sha="0" * 40), given.model, recipes.load(given.recipe), folder)
        curves = twice(folder, given.model, section, texts.read("stdlib-heldout"))
    print(f"{given.recipe} of {given.model.name} beside its base; medians with 95 % intervals, times in milliseconds")
    print(f"{'mode':12} batch context runs  {'first token':22} {'further token':22} {'token/s':20} {'prefill / base':24} decode / base")
    for curve in curves:
        print(*map(_line, curve.points), *curve.notes, "", sep="\n")
    for metric in METRICS:
        found = agreement(metric, curves)
        print(f"{metric:28} intervals overlap at {found.overlap} of {found.points} points, {found.within_tolerance} with the tolerance")


if __name__ == "__main__":
    main()
