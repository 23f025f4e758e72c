"""Press one variant: the recipe's steps in order, each from folder to folder, then all that belongs to a checkpoint, the manifest last."""

from __future__ import annotations

import shutil
import time
from collections.abc import MutableMapping
from pathlib import Path

from hub.domain import Artifact, ModelRef, Recipe, Step, StepRecord, variant_id
from hub.errors import BadCheckpoint, Unavailable, UsageError
from runners import checkpoint, environment, formats, methods, needs, plugins, rehearsal, texts
from runners.checkpoint import ModelShape
from runners.headers import stored_tensors
from runners.method import INSTALL, Outcome, PressContext


def check(recipe: Recipe, shape: ModelShape) -> ModelShape:
    """Raise what forbids the recipe on a model of this shape, from its config and headers alone; return the shape it leaves."""
    for step in recipe.steps:
        method = methods.get(step.method)
        method.check(step, shape)
        shape = method.promise(step, shape).shape
    return shape


def press(
    base: ModelRef,
    source: Path,
    recipe: Recipe,
    target: Path,
    *,
    stages: MutableMapping[str, float] | None = None,
    cache: Path | None = None,
) -> Artifact:
    """Press `source`, the base model's checkpoint, by `recipe` into the new folder `target`, and return its manifest.

    A target that holds this very variant already is left alone. Seconds by step are put into `stages`. `cache` is a folder where methods
    keep what is dear to find and serves other recipes too; without one they find it anew. A model of some size is preceded by a rehearsal
    on a tiny one of its kind, so that a failure to save is met first.
    Raises `BadCheckpoint`, `UnfitModel`, `Unavailable`, `UsageError`, `OutOfDisk`; nothing half-made stays behind.
    """
    target = target.absolute()  # so that `.` has a name, and nobody minds where the process stands
    made = _made_already(target, variant_id(base, recipe))
    if made is not None:
        return made
    stages = {} if stages is None else stages
    checkpoint.check(source)
    shape = checkpoint.shape(source)
    check(recipe, shape)
    require_libraries(recipe)
    needs.require(recipe, shape, memory_bytes=environment.memory_bytes(), folder=target.parent)
    with checkpoint.partial(target) as work:
        scratch = work / ".steps" / "scratch"
        scratch.mkdir(parents=True)
        context = PressContext(base_folder=source, scratch=scratch, cache=cache or scratch)
        if shape.bytes >= rehearsal.FROM_BYTES:
            began = time.monotonic()
            rehearsal.rehearse(recipe, source, work / ".steps" / "rehearsal")
            stages["rehearse"] = time.monotonic() - began
        result, steps = chain(recipe, work / ".steps", context, stages)
        began = time.monotonic()
        stored_tensors(result)
        for path in sorted(result.iterdir()):
            path.rename(work / path.name)
        shutil.rmtree(work / ".steps")
        parameters = formats.promise_of(recipe, shape, steps).shape.parameters
        libraries = environment.libraries()
        if own := environment.own_version():
            libraries["modelpress"] = own
        artifact = checkpoint.write(work, base=base, recipe=recipe, parameters=parameters, libraries=libraries, steps=steps)
        stages["finish"] = time.monotonic() - began
    return artifact


def _made_already(target: Path, wanted: str) -> Artifact | None:
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    artifact = checkpoint.read_manifest(target) if target.is_dir() else None
    if artifact is None or artifact.variant_id != wanted:
        what = "another variant" if artifact else "something that is no variant of ModelPress"
        raise UsageError(f"{target} already holds {what}.", hint="Give a folder that does not exist yet, or remove this one.")
    for file in artifact.files:
        path = target / file.path
        if not path.is_file() or path.stat().st_size != file.size:
            raise BadCheckpoint(f"{file.path} in {target} is missing or truncated.", hint="Remove the folder and press the variant again.")
    return artifact


def chain(recipe: Recipe, folder: Path, context: PressContext, stages: MutableMapping[str, float]) -> tuple[Path, tuple[StepRecord, ...]]:
    """Do the steps in order from `context.base_folder`, each into a folder of its own below `folder`.

    Return the last one's folder and what each step did; seconds by method are put into `stages`.
    """
    source = current = context.base_folder
    records = []
    for number, step in enumerate(recipe.steps, start=1):
        began = time.monotonic()
        target = folder / f"{number}-{step.method}"
        target.mkdir()
        outcome = methods.get(step.method).apply(step, current, target, context)
        records.append(_record(step, outcome, context))
        checkpoint.carry_over(source, target)
        checkpoint.remove_strays(target, source)
        if current != source:
            shutil.rmtree(current)
        current = target
        stages[step.method] = stages.get(step.method, 0.0) + time.monotonic() - began
    return current, tuple(records)


def _record(step: Step, outcome: Outcome, context: PressContext) -> StepRecord:
    return StepRecord(
        method=step.method,
        text_sha256=texts.sha256(step.calibration.text) if step.calibration else "",
        samples_sha256=texts.samples_sha256(context.windows(step)) if step.calibration else "",
        layers=outcome.layers,
        notes=outcome.notes,
    )


def require_libraries(recipe: Recipe) -> None:
    """Raise `Unavailable` naming the library that a step needs and this machine lacks."""
    for step in recipe.steps:
        method = methods.get(step.method)
        missing, install = plugins.missing(method.NEEDS), getattr(method, "INSTALL", INSTALL)
        if missing:
            raise Unavailable(f"The method {step.method} needs {', '.join(missing)}, not installed here.", hint=f"Install with: {install}")
