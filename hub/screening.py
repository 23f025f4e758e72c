"""Screens a job's result before the store takes it: what it holds is of this job, given once, and made of numbers that can be kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from hub.codec import to_json
from hub.domain import Job, JobResult, Measurement
from hub.errors import BadDocument

MOST_BYTES = 2**63
"""Databases count to one less."""


def screen(job: Job, result: JobResult) -> None:
    """Raise `BadDocument` for a result that is not one of this job, or holds what is no finite number or no number of bytes."""
    if result.job_id != job.id:
        raise BadDocument(f"the result of job {result.job_id} was given for job {job.id} ({job.label})")
    made = {"press": result.artifact, "measure": result.measurements, "inspect": result.facts}[job.kind]
    if not made:
        wanted = {"press": "artifact", "measure": "measurements", "inspect": "facts"}[job.kind]
        raise BadDocument(f"{job.label} ended without {wanted}")
    if result.artifact and result.artifact.variant_id != job.variant_id:
        raise BadDocument(f"{job.label} gave the artifact of variant {result.artifact.variant_id}, not of {job.variant_id}")
    _screen_course(job, result)
    _screen_measurements(job, result)
    _screen_layers(job, result)
    _screen_scores(job, result)


def _screen_course(job: Job, result: JobResult) -> None:
    """Screen what the job took and how the machine was."""
    for name, seconds in (("all it did", result.seconds), *result.stages.items()):
        if not (math.isfinite(seconds) and seconds >= 0):
            raise BadDocument(f"{job.label} gave {seconds} as the seconds of {name}")
    if not 0 <= result.peak_memory_bytes < MOST_BYTES:
        raise BadDocument(f"{job.label} gave {result.peak_memory_bytes} as its peak memory in bytes")
    for name, value in result.state.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise BadDocument(f"{job.label} gave {value} as the machine's {name}, which is no finite number")


def _screen_measurements(job: Job, result: JobResult) -> None:
    for number in result.measurements:
        if not _finite((number.value, number.ci_low, number.ci_high, *number.percentiles.values())):
            raise BadDocument(
                f"{job.label} gave {number.metric} = {number.value} [{number.ci_low}, {number.ci_high}], which is no finite number"
            )
        _screen_conditions(job, number)
    counts = Counter((number.metric, number.engine, to_json(number.conditions)) for number in result.measurements)
    for (metric, engine, conditions), count in counts.items():
        if count > 1:
            at = f" at {conditions}" if conditions != "{}" else ""
            raise BadDocument(f"{job.label} gave {metric}{at} on {engine} {count} times, not once")


def _screen_conditions(job: Job, number: Measurement) -> None:
    for name, value in number.conditions.items():
        if not isinstance(value, str | int | float | bool) or (isinstance(value, float) and not math.isfinite(value)):
            raise BadDocument(f"{job.label} gave {number.metric} at {name} = {value!r}, which is neither a word nor a finite number")


def _screen_layers(job: Job, result: JobResult) -> None:
    if result.layers and (job.kind != "measure" or job.recipe is None):
        raise BadDocument(f"{job.label} gave layer errors, which are of a variant that is measured")
    for layer, count in Counter(found.layer for found in result.layers).items():
        if count > 1:
            raise BadDocument(f"{job.label} gave the error of {layer} {count} times, not once")
    for found in result.layers:
        if not (math.isfinite(found.error) and found.error >= 0):
            raise BadDocument(f"{job.label} gave {found.error} as the error of {found.layer}, which is no finite number")


def _screen_scores(job: Job, result: JobResult) -> None:
    if result.scores and (job.kind != "measure" or job.protocol is None):
        raise BadDocument(f"{job.label} gave scores, which are of a model that is measured under a protocol")
    for source, count in Counter(scores.source for scores in result.scores).items():
        if count > 1:
            raise BadDocument(f"{job.label} gave scores of {source} {count} times, not once")
    for scores in result.scores:
        lengths = {len(values) for values in (*scores.values.values(), *scores.sizes.values())}
        if lengths != {scores.samples} or not scores.samples:
            raise BadDocument(f"{job.label} gave scores of {scores.source} of different lengths: {sorted(lengths)}")
        for metric, values in scores.values.items():
            if not _finite(values):
                raise BadDocument(f"{job.label} gave scores of {metric} by {scores.source} that are no finite numbers")


def _finite(numbers: Iterable[float]) -> bool:
    return all(map(math.isfinite, numbers))
