"""Do one job: fetch its base model, then press, measure or inspect. Called in a process of the job's own."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hub.domain import Artifact, Facts, JobOrder, JobResult, Recipe
from hub.errors import BadCheckpoint, BadDocument, ModelPressError, OutOfMemory, Unstable
from hub.policy import PULL
from runners import checkpoint, economy, environment, failures, memory, unfinished
from runners.stages import Stages

if TYPE_CHECKING:
    from hub.client import HubClient
    from runners.measure import Measured, Places

LOCAL = "local-"


def execute(order: JobOrder) -> JobResult:
    """Do what the order says and return its result; raise a `ModelPressError` when it cannot be done.

    The base comes from the Hub (read only, with the token in `HF_TOKEN` if there is one); after that the process is offline. A base
    whose commit begins with `local-` is the folder that the order names. Doing a press again that is done returns the same artifact; one
    that was killed goes on where its methods can. The order's `economy` says how sparing of memory all of it is.
    """
    with economy.use(order.economy):
        try:
            return _execute(order)
        except Exception as error:
            if not failures.out_of_memory(error):
                raise
            raise out_of_memory(order, error) from error


def out_of_memory(order: JobOrder, error: Exception) -> OutOfMemory:
    """Return the error that says whether a smaller way is left; it is retryable if so."""
    from runners import methods

    pressed = order.job.recipe if order.job.kind == "press" else None
    rigid = [step.method for step in pressed.steps if not methods.get(step.method).SPARES] if pressed else []
    if pressed and len(rigid) == len(pressed.steps):
        hint = f"No smaller way is known for {' and '.join(dict.fromkeys(rigid))}: use a machine with more memory, or another recipe."
    elif economy.level() < economy.MOST:
        hint = "Run it again in a smaller way: a higher economy takes less memory and more time for the same result."
    else:
        hint = "This was the smallest way: use a machine with more memory, or a smaller model."
    found = OutOfMemory(f"The job ran out of memory: {failures.one_line(error)}", hint=hint)
    found.retryable = economy.level() < economy.MOST and not (pressed and len(rigid) == len(pressed.steps))
    return found


def _execute(order: JobOrder) -> JobResult:
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    start = time.perf_counter()
    stages = Stages()
    use_threads(order.workspace.threads)
    with stages.stage("download"):
        base = _base_folder(order)
        if order.job.kind == "measure":
            _fetch_text(order)
    artifact: Artifact | None = None
    measured: Measured | None = None
    facts: Facts | None = None
    with offline():
        if order.job.kind == "inspect" or base is None:
            with stages.stage("inspect"):
                facts = _inspect(order, base)
        elif order.job.kind == "press":
            artifact = _press(order, base, stages)
        else:
            measured = _measure(order, base, stages)
        result = JobResult(
            job_id=order.job.id,
            environment=environment.current(),
            started_at=started_at,
            seconds=round(time.perf_counter() - start, 3),
            stages=stages.seconds,
            peak_memory_bytes=memory.process_peak(),
            artifact=artifact,
            facts=facts,
        )
    return replace(result, **vars(measured)) if measured else result


def use_threads(count: int) -> None:
    """Let the numeric libraries use so many threads; 0: all cores."""
    import torch

    count = count or environment.cores()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # for what the job starts itself
        os.environ[name] = str(count)
    torch.set_num_threads(count)


@contextmanager
def offline() -> Iterator[None]:
    """Keep the Hub's library from the network, and the token from everything that runs inside."""
    wanted = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_TOKEN": None}
    before = {name: os.environ.get(name) for name in wanted}
    hub = sys.modules.get("huggingface_hub.constants")  # it read the environment when it was imported
    was = getattr(hub, "HF_HUB_OFFLINE", False)
    _set(wanted)
    if hub:
        hub.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        _set(before)
        if hub:
            hub.HF_HUB_OFFLINE = was  # type: ignore[attr-defined]


def _set(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _base_folder(order: JobOrder) -> Path | None:
    """Return the base model's folder; None where what is inspected is named as its own base, because its base is not known."""
    base = order.job.base
    if order.job.kind == "inspect" and order.job.recipe is None and base.sha == order.job.subject:
        return None
    if base.sha.startswith(LOCAL):
        if order.folder is None or order.job.kind == "inspect":
            raise BadDocument(f"{base.repo_id} is a local folder, but the order does not name it.", hint="Give its folder in the order.")
        return Path(order.folder)
    return _client(order).download(base, patterns=PULL)


def _client(order: JobOrder) -> HubClient:
    from hub.client import HubClient

    token = os.environ.get("HF_TOKEN") or None
    return HubClient(endpoint=order.workspace.endpoint, token=token, cache_dir=Path(order.workspace.cache_dir))


def _fetch_text(order: JobOrder) -> None:
    """Bring the protocol's text to the cache where it is a Hub dataset's and no local copy is there."""
    from runners import texts

    text = order.job.protocol.text if order.job.protocol else None
    texts.bring(text, _places(order).texts, lambda: _client(order), Path(order.workspace.cache_dir) / "texts")


def _places(order: JobOrder) -> Places:
    from runners.measure import Places

    cache, data = Path(order.workspace.cache_dir), order.workspace.data_dir
    return Places(cache=cache, data=Path(data) if data else None, samples=cache.parent / "samples" / order.job.id)


def _press(order: JobOrder, base: Path, stages: Stages) -> Artifact:
    from runners import methods
    from runners.press import press

    recipe, target, cache = _recipe(order), _artifact_folder(order), Path(order.workspace.cache_dir)
    _clear_unfinished(target)
    kept = cache / "unfinished" / order.job.id
    try:
        if not target.exists():
            with stages.stage("check"):
                _require_sound(base, recipe)
        unfinished.begin(kept, [step.method for step in recipe.steps if methods.get(step.method).RESUMES == "no"])
        with unfinished.keeping(kept):
            artifact = press(order.job.base, base, recipe, target, stages=stages.seconds, cache=cache / "derived")
    except Exception as error:
        if not failures.out_of_memory(error):
            unfinished.drop(kept)  # another try would fail as this one did; on a full disk this makes room for it
        raise
    unfinished.drop(kept)
    return artifact


def _require_sound(base: Path, recipe: Recipe) -> None:
    """Raise before any work what is wrong with a base: what forbids the recipe, a senseless config, wrong shapes, and last its numbers.

    `Unstable` where its weights hold NaN or infinity: it predicts nothing, and no variant of it would pass the gate.
    """
    from runners import dense, formats
    from runners.press import check

    checkpoint.check(base)
    check(recipe, checkpoint.shape(base))
    dense.require_whole(base)
    if broken := formats.non_finite(base):
        raise Unstable(
            f"{len(broken)} of the base's tensors hold NaN or infinity, {broken[0]} among them.", hint="Choose another base model."
        )


def _clear_unfinished(target: Path) -> None:
    """Remove what is no whole checkpoint: without a manifest it does not exist, and one with missing or cut files is pressed again."""
    if not target.exists():
        return
    try:
        artifact = checkpoint.read_manifest(target)
    except ModelPressError:
        artifact = None
    sizes = {path: path.stat().st_size for path in target.rglob("*") if path.is_file()}
    if artifact is None or any(sizes.get(target / file.path) != file.size for file in artifact.files):
        shutil.rmtree(target)


def _measure(order: JobOrder, base: Path, stages: Stages) -> Measured:
    from runners.measure import measure

    if order.job.protocol is None:
        raise BadDocument(f"The job {order.job.id} measures without a protocol.", hint="Name a protocol in the job.")
    if order.job.recipe is None:
        return measure(base, None, order.job.protocol, places=_places(order), stages=stages)
    # beside a local base the order's folder is the base's own
    elsewhere = order.folder if not order.job.base.sha.startswith(LOCAL) else None
    folder = Path(elsewhere) if elsewhere else _artifact_folder(order)
    if checkpoint.read_manifest(folder) is None:
        raise BadCheckpoint(f"{folder} holds no finished checkpoint of {order.job.label}.", hint="Press it first.")
    return measure(folder, base, order.job.protocol, places=_places(order), stages=stages)


def _inspect(order: JobOrder, base: Path | None) -> Facts:
    from runners.inspection import inspect

    return inspect(Path(order.folder) if order.folder else _artifact_folder(order), order.job.recipe, base)


def _artifact_folder(order: JobOrder) -> Path:
    return Path(order.workspace.artifacts_dir) / str(order.job.variant_id)


def _recipe(order: JobOrder) -> Recipe:
    if order.job.recipe is None:
        raise BadDocument(f"The job {order.job.id} is to {order.job.kind}, but has no recipe.", hint="Name a recipe in the job.")
    return order.job.recipe
