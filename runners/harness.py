"""Tasks through lm-eval's Python API, with an interval on every number and each document's score kept.

lm-eval gives a standard error for accuracies and "N/A" for perplexities weighted by words or bytes. Here accuracies have Wilson's interval,
which stays honest near 0 and 1 (lm-eval's error is said beside it), and perplexities one over documents.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from statistics import NormalDist
from typing import Any

from hub.codec import content_id
from hub.domain import Scores
from hub.errors import BadCheckpoint, HubUnreachable, Unavailable, UnfitModel, UnknownName, Unstable
from hub.protocol import Tasks
from hub.sampling import LEVEL
from runners import failures, harness_models, quality, tasks
from runners.engines import Loaded
from runners.intervals import Estimate, exp_mean, exp_ratio, mean, ratio
from runners.observations import TaskResult

INSTALL = 'pip install "modelpress[press]"'

_METRICS = {"acc": "accuracy", "acc_norm": "normalized_accuracy", "perplexity": "target_perplexity"}


@dataclass(frozen=True, kw_only=True)
class Harnessed:
    """What lm-eval found: numbers by task, each document's scores, and sentences on versions, data and what was left out."""

    results: tuple[TaskResult, ...]
    scores: tuple[Scores, ...]
    notes: tuple[str, ...]


def run(loaded: Loaded, folder: Path, section: Tasks, data_dir: Path | None, samples: Path | None) -> Harnessed:
    """Run a protocol's tasks on a loaded checkpoint; `folder` is where it lies, for its tokenizer's checksum.

    Documents are read from `data_dir` (see `runners.tasks`), else fetched as lm-eval itself does. With `samples` each task's documents,
    requests and responses are written to `<task>.jsonl.gz` there, equal bytes for equal content. Raises `UnknownName`, `Unavailable` or
    `HubUnreachable` (no documents), `BadDocument`, `UnfitModel`, `BadCheckpoint` or `Unstable` for a model of no usable numbers.
    """
    with _quiet():
        given = _load(section, data_dir)
        model = harness_models.adapt(loaded)
        found = _evaluate(model, given, section)
    tokenizer = quality.tokenizer_sha256(quality.Side(folder=folder, loaded=loaded))
    results, scores, notes = [], [], []
    for name, task in given.items():
        rows = _rows(found["samples"][task.task_name])
        _check(name, rows)
        version = _version(name, found, task, section, data_dir, len(rows))
        estimates, left_out = _estimates(task, rows)
        results.append(TaskResult(task=name, version=version, estimates=estimates))
        scores.append(_scores(name, version, rows, estimates, tokenizer))
        notes += [f"{name}: {version}.", *(f"{name}: {sentence}" for sentence in [*left_out, *_cut(model, rows)])]
        if samples:
            _write(samples / f"{name}.jsonl.gz", rows)
    if loaded.context_length > harness_models.WINDOW:
        notes.append(
            f"Tasks were given at most {harness_models.WINDOW} tokens at a time; lm-eval by itself takes the model's whole context."
        )
    return Harnessed(results=tuple(results), scores=tuple(scores), notes=tuple(notes))


def check(section: Tasks, data_dir: Path | None) -> None:
    """Load the tasks as `run` will, and let go of them: what is missing or of no task's form is found before hours of work on a model.

    Raises `UnknownName`, `Unavailable`, `HubUnreachable` or `BadDocument` as `run` does.
    """
    with _quiet():
        _load(section, data_dir)


def wilson(successes: int, count: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of a share (J. Am. Stat. Assoc. 22, 1927)."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    share, centre = successes / count, (successes + z * z / 2) / (count + z * z)
    half = z / (count + z * z) * math.sqrt(count * share * (1 - share) + z * z / 4)
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _load(section: Tasks, data_dir: Path | None) -> dict[str, Any]:
    """Return lm-eval's task objects by our names: from local documents where there are any."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise Unavailable(f"Tasks need lm-eval: {failures.one_line(error)}", hint=f"Run: {INSTALL}") from error
    paths = {name: str(path) for name in section.names if (path := tasks.find(name, data_dir))}
    manager = TaskManager(include_path=str(tasks.FOLDER), include_defaults=False, metadata={"paths": paths})
    return {name: manager.load([name])["tasks"][name] if name in paths else _from_hub(name) for name in section.names}


def _from_hub(name: str) -> Any:
    """Return lm-eval's own task, which fetches its documents by itself, or has them in the Hub's cache."""
    from lm_eval import tasks as theirs

    manager = theirs.TaskManager(include_defaults=name not in tasks.OWN)  # reading its whole index takes seconds
    if name not in (*tasks.OWN, *manager.all_subtasks):
        near = get_close_matches(name, [*tasks.names(), *manager.all_subtasks], n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UnknownName(f"There is no task named {name!r}.", hint=f"{hint}With local documents there are: {', '.join(tasks.names())}.")
    place = str(Path(theirs.__file__).parent / tasks.OWN[name]) if name in tasks.OWN else name
    try:
        return next(iter(manager.load([place])["tasks"].values()))
    except Exception as error:  # `datasets` raises whatever its many parts raise
        hint = f"Name the folder that holds {tasks.file_name(name)} with --data or press.data_dir."
        offline = os.environ.get("HF_HUB_OFFLINE") == "1"
        kind = HubUnreachable if isinstance(error, ConnectionError) and not offline else Unavailable
        raise kind(
            f"The documents of {name} cannot be had{' without the network' if offline else ''}: {failures.one_line(error)}",
            hint=hint if name in tasks.OWN else "Leave it out of the protocol.",
        ) from error


def _evaluate(model: Any, given: Mapping[str, Any], section: Tasks) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), section.seed)
    try:
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=list(given.values()),
            num_fewshot=section.shots,
            limit=section.limit or None,
            bootstrap_iters=0,  # intervals are found here, from the documents' scores
            log_samples=True,
            task_manager=TaskManager(include_defaults=False),
            **seeds,
        )
    except OverflowError as error:
        raise Unstable("The model's perplexity is too large for a number.", hint="Press it again with another recipe.") from error
    assert isinstance(found, dict)  # None only on a second rank
    return found


def _rows(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one row a document, in order; of a task that reads its answers in several ways, those of the first."""
    return sorted((row for row in samples if row["filter"] == samples[0]["filter"]), key=lambda row: int(row["doc_id"]))


def _check(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what lm-eval would make a number of: scores that are none, and no words at all."""
    answers = [answer for row in rows for request in row["resps"] for answer in request]
    texts = [answer for answer in answers if isinstance(answer, str)]
    numbers = [answer[0] if isinstance(answer, tuple | list) else answer for answer in answers if not isinstance(answer, str)]
    if not all(math.isfinite(number) for number in numbers):
        raise Unstable(f"The model gives {name} no finite log-likelihoods.", hint="Press it again with another recipe.")
    if texts and not any(text.strip() for text in texts):
        raise BadCheckpoint(f"The model writes nothing on {name}.", hint="Press it again with another recipe.")
    if len(rows) < 2:
        raise UnfitModel(f"{name} was run on {len(rows)} document; an interval needs two.", hint="Raise the protocol's limit.")


def _estimates(task: Any, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Estimate], list[str]]:
    found, left_out = {}, []
    for metric, aggregation in task.aggregation().items():
        values = [row[metric] for row in rows]
        estimate = _estimate(getattr(aggregation, "__name__", ""), values)
        if estimate is None:
            left_out.append(f"{metric} is left out: no interval is known for it.")
        elif not all(math.isfinite(number) for number in (estimate.value, estimate.low, estimate.high)):
            raise Unstable(f"The model's {metric} is {estimate.value}.", hint="Press it again with another recipe.")
        else:
            found[metric] = estimate
    return found, left_out


def _estimate(aggregation: str, values: Sequence[Any]) -> Estimate | None:
    """Return the estimate for one of lm-eval's aggregations over documents; None for one without a known interval."""
    if aggregation == "mean":
        return _share(values) if set(values) <= {0, 1} else mean(values, of="documents")
    if aggregation == "perplexity":
        return exp_mean([-value for value in values], of="documents")
    if aggregation not in ("weighted_perplexity", "bits_per_byte"):
        return None
    nats = ([-value for value, _ in values], [weight for _, weight in values])
    if aggregation == "weighted_perplexity":
        return exp_ratio(*nats, of="documents")
    return ratio([one / math.log(2) for one in nats[0]], nats[1], of="documents")


def _share(values: Sequence[float]) -> Estimate:
    from lm_eval.api.metrics import mean_stderr

    low, high = wilson(int(sum(values)), len(values))
    how = f"95 %, Wilson over {len(values)} documents; lm-eval's standard error {mean_stderr(list(values)):.4g}"
    return Estimate(value=sum(values) / len(values), low=low, high=high, interval=how, samples=len(values))


def _scores(name: str, version: str, rows: Sequence[Mapping[str, Any]], estimates: Mapping[str, Estimate], tokenizer_sha256: str) -> Scores:
    """Return each document's scores under our metrics' names: 0 or 1, or nats per word, per byte, per answer."""
    values: dict[str, tuple[float, ...]] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for metric in sorted(estimates.keys() - {"bits_per_byte"}):  # that has byte_perplexity's scores
        column = [row[metric] for row in rows]
        if isinstance(column[0], tuple | list):
            values[metric] = tuple(-total / size for total, size in column)
            sizes["bytes" if metric.startswith("byte") else "words"] = tuple(int(size) for _, size in column)
        else:
            sign = -1 if metric == "perplexity" else 1
            values[_METRICS.get(metric, metric)] = tuple(float(sign * value) for value in column)
    requests = [[row["doc_hash"], row["target_hash"], row["arguments"]] for row in rows]
    return Scores(source=name, fingerprint=content_id([version, requests]), tokenizer_sha256=tokenizer_sha256, values=values, sizes=sizes)


def _version(name: str, found: Mapping[str, Any], task: Any, section: Tasks, data_dir: Path | None, count: int) -> str:
    path = tasks.find(name, data_dir)
    source = f"{path.name} (SHA-256 {_sha256(path)})" if path else f"{task.DATASET_PATH} as lm-eval fetches it"
    drawn = ", its examples drawn from the same file" if path and section.shots else ""
    return (
        f"lm-eval {found['lm_eval_version']}, definition {task.VERSION}, {source}, {count} of {len(task.eval_docs)} documents, "
        f"{section.shots} shots{drawn}, seed {section.seed}"
    )


def _cut(model: Any, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cut = sum(any(harness_models.key(request) in model.truncated for request in row["arguments"]) for row in rows)
    sentence = f"{cut} of {len(rows)} documents are longer than {model.max_length} tokens and were cut from the left."
    return [sentence] if cut else []


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the documents with requests, responses and scores as gzipped JSON Lines that hold no time and no file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, sort_keys=True, default=str) + "\n" for row in rows)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(text.encode())
    path.write_bytes(buffer.getvalue())


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep lm-eval's bars, prints and warnings to itself, and leave its logging as it was."""
    log = logging.getLogger("lm_eval")
    level, sink = log.level, io.StringIO()
    log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sink), redirect_stderr(sink):
            yield
    finally:
        log.setLevel(level)
