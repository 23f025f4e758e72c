"""`.eval_results/*.yaml`: results that the Hub shows on a benchmark's leaderboard (https://huggingface.co/docs/hub/eval-results).

Only for benchmarks that the Hub has allow-listed, and only for whole ones: a score on the first hundred documents is no score of the
benchmark. The format has no field for an interval or for hardware, so both stand in the notes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from hub.domain import Measurement
from hub.history import BaseRecord, VariantRecord
from hub.protocol import Protocol
from leaderboard import stats, text

FOLDER = ".eval_results"


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark of the Hub: its dataset, its task there, and the metric that it ranks by."""

    dataset: str
    task: str
    metric: str = "accuracy"


# By the name of the task in lm-eval. The Hub's documentation names these four as benchmarks; add one when the Hub does.
BENCHMARKS = {
    "gpqa_diamond": Benchmark(dataset="Idavidrein/gpqa", task="gpqa_diamond"),
    "gsm8k": Benchmark(dataset="openai/gsm8k", task="gsm8k"),
    "hle": Benchmark(dataset="cais/hle", task="hle"),
    "mmlu_pro": Benchmark(dataset="TIGER-Lab/MMLU-Pro", task="mmlu_pro"),
}


def documents(record: VariantRecord, base: BaseRecord, protocols: Mapping[str, Protocol], *, repo_id: str, hub_url: str) -> dict[str, str]:
    """Return YAML by path for each benchmark whose task was measured whole, under a protocol that is known in full."""
    found = {}
    for name, benchmark in sorted(BENCHMARKS.items()):
        for one in stats.curve(record.measurements, benchmark.metric):
            definition = protocols.get(one.protocol)
            tasks = definition.tasks if definition else None
            if one.conditions == {"task": name} and tasks and name in tasks.names and not tasks.limit and one.basis == "measured":
                entry = _entry(benchmark, one, record, base, tasks.shots, repo_id, hub_url)
                found[f"{FOLDER}/{name}.yaml"] = yaml.safe_dump([entry], sort_keys=False, allow_unicode=False, width=1000)
    return found


def _entry(
    benchmark: Benchmark, one: Measurement, record: VariantRecord, base: BaseRecord, shots: int, repo_id: str, hub_url: str
) -> dict[str, Any]:
    task = {"task": str(one.conditions["task"])}
    theirs = next((other for other in stats.curve(base.measurements, one.metric, one.protocol) if other.conditions == task), None)
    environment = record.environment_under(one.protocol)
    notes = [
        f"accuracy in per cent, interval {one.ci_low * 100:.4g} to {one.ci_high * 100:.4g} ({one.interval})",
        f"{one.samples} documents, {shots} examples, lm-eval by likelihood, protocol {one.protocol}",
        f"{one.engine} on {environment.hardware}" if environment else one.engine,
        *([f"the base, {record.base.repo_id} at {record.base.sha}, has {theirs.value * 100:.4g} measured the same way"] if theirs else []),
    ]
    return {
        "dataset": {"id": benchmark.dataset, "task_id": benchmark.task},
        "value": float(f"{one.value * 100:.6g}"),
        "date": one.measured_at[:10],
        "source": {"url": f"{hub_url}/{repo_id}", "name": "ModelPress"},
        "notes": text.plain("; ".join(notes)),
    }
