"""`modelpress compare` on a database and on files, and `modelpress reproduce` as far as nothing needs to run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hub.codec import to_json
from hub.domain import Artifact, ArtifactFile, Environment, Job, JobResult, Measurement, ModelRef, Recipe, Scores, Step, Thresholds
from hub.history import MeasurementFile
from hub.protocol import Protocol, Quality, Text
from hub.scheduling import Plan
from hub.store import Store
from modelpress.cli import app

PROTOCOL = Protocol(name="held-out@512", text=Text(name="held-out", sha256="0" * 64), quality=Quality(sequence_length=512, windows=4))
BASE = ModelRef(repo_id="people/tiny", sha="a" * 40)
MACHINE = Environment(
    hardware="Example CPU 2000", device="cpu", cores=2, memory_bytes=2**33, system="Linux", python="3.11.9", libraries={"torch": "2.13.0"}
)
AT = "2026-11-20T10:00:00+00:00"
LOSSES = (2.0, 3.0, 2.5, 3.5)


def recipe(bits: int) -> Recipe:
    return Recipe(
        name=f"round-w{bits}",
        title="",
        summary="",
        format="packed",
        steps=(Step(method="round", scheme=f"W{bits}"),),
        thresholds=Thresholds(kl_divergence=1, perplexity_ratio=2),
    )


def windows(shift: float, kl: float | None = None) -> Scores:
    """Losses a little above the base's, by the window's number a little more."""
    values = {"perplexity": tuple(loss + shift * (1 + index / 100) for index, loss in enumerate(LOSSES))}
    if kl is not None:
        values["kl_divergence"] = tuple(kl * (1 + index / 100) for index in range(4))
    return Scores(source="windows", fingerprint="f" * 16, tokenizer_sha256="t", values=values, sizes={"tokens": (511,) * 4})


def number(value: float) -> Measurement:
    return Measurement(
        metric="perplexity",
        value=value,
        unit="1",
        higher_is_better=False,
        ci_low=value,
        ci_high=value,
        interval="95 %",
        samples=4,
        protocol=PROTOCOL.name,
        engine="transformers 5",
        measured_at=AT,
    )


def result(job: Job, **parts: Any) -> JobResult:
    return JobResult(job_id=job.id, environment=MACHINE, started_at=AT, seconds=1.0, stages={}, peak_memory_bytes=1, **parts)


@pytest.fixture
def work_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder with a base and two variants measured, one of them by an older program that kept no scores."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "press"
    folder.mkdir()
    with Store(folder / "modelpress.db") as store:
        unmeasured = Job(kind="press", base=BASE, recipe=recipe(3))
        store.record_plan(Plan(jobs=(unmeasured,), refusals=(), done=0))
        measure = Job(kind="measure", base=BASE, protocol=PROTOCOL)
        store.finish(measure, result(measure, measurements=(number(15.0),), scores=(windows(0.0),)))
        for bits, shift, scores in ((4, 0.2, (windows(0.2, 0.1),)), (8, 0.01, (windows(0.01, 0.005),)), (2, 1.0, ())):
            job = Job(kind="press", base=BASE, recipe=recipe(bits))
            file = ArtifactFile(path="weights.bin", size=bits, sha256="c" * 64)
            artifact = Artifact(
                variant_id=job.variant_id or "",
                base=BASE,
                recipe=recipe(bits),
                files=(file,),
                parameters=1,
                made_at=AT,
                libraries={},
            )
            store.finish(job, result(job, artifact=artifact))
            measure = Job(kind="measure", base=BASE, recipe=recipe(bits), protocol=PROTOCOL)
            store.finish(measure, result(measure, measurements=(number(15.0 + shift),), scores=scores))
    return folder


def modelpress(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def rows(*words: str) -> dict[str, dict[str, Any]]:
    done = modelpress("compare", *words, "--json")
    assert done.exit_code == 0, done.output
    return {row["metric"]: row for row in json.loads(done.stdout)["pairs"]}


def test_two_variants_are_told_apart(work_dir: Path) -> None:
    found = rows("tiny-round-w4", "tiny-round-w8")
    assert (found["perplexity"]["better"], found["kl_divergence"]["better"]) == ("B", "B")
    assert found["perplexity"]["low"] < found["perplexity"]["value"] < found["perplexity"]["high"]
    assert found["perplexity"]["protocols"] == [PROTOCOL.name] * 2
    done = modelpress("compare", "tiny-round-w8", "tiny-round-w4")
    assert done.exit_code == 0
    assert done.stdout.count("can be told apart: A is better") == 2
    assert "4 windows" in done.stdout


def test_a_variant_and_its_base(work_dir: Path) -> None:
    found = rows("people/tiny", "tiny-round-w8")
    assert found["kl_divergence"]["value"] == pytest.approx(-0.005 * 1.015)
    assert found["perplexity"]["better"] == "A"
    same = rows("tiny-round-w8", Job(kind="measure", base=BASE, recipe=recipe(8), protocol=PROTOCOL).id)
    assert {row["told_apart"] for row in same.values()} == {False}
    assert same["perplexity"]["value"] == 1


def measured_file(path: Path, scores: Scores) -> Path:
    document = MeasurementFile(
        folder="./x",
        base=None,
        protocol=PROTOCOL,
        environment=MACHINE,
        measurements=(number(15.0),),
        scores=(scores,),
        folder_sha="local-1",
    )
    path.write_text(to_json(document, indent=2))
    return path


def test_a_file_and_a_stored_model(work_dir: Path, tmp_path: Path) -> None:
    path = measured_file(tmp_path / "mine.json", windows(0.1))
    assert rows(str(path), "tiny-round-w4")["perplexity"]["better"] == "A"
    other = measured_file(tmp_path / "other.json", replace(windows(0.1), fingerprint="e" * 16))
    done = modelpress("compare", str(other), "tiny-round-w4")
    assert done.exit_code == 2
    assert "did not score the same" in done.output


@pytest.mark.parametrize("command", ["compare", "reproduce"])
def test_what_is_not_there_is_named_with_its_neighbours(work_dir: Path, command: str) -> None:
    done = modelpress(command, "tiny-round-w5", *(["people/tiny"] if command == "compare" else []))
    assert done.exit_code == 2
    assert "Did you mean tiny-round-w" in done.output
    done = modelpress(command, "tiny-round-w3", *(["people/tiny"] if command == "compare" else []))
    assert done.exit_code == 2
    assert "tiny-round-w3 has not been measured yet" in done.output
    assert modelpress(command, *(["nowhere.json"] * (2 if command == "compare" else 1))).exit_code == 2


def test_what_cannot_be_compared_says_why(work_dir: Path, tmp_path: Path) -> None:
    done = modelpress("compare", "tiny-round-w2", "tiny-round-w4")
    assert done.exit_code == 4
    assert "No scores" in done.output
    done = modelpress("compare", "tiny-round-w4", "tiny-round-w8", "--protocol", "wikitext2-paper@2048")
    assert done.exit_code == 2
    assert "measured under held-out@512" in done.output
    broken = tmp_path / "broken.json"
    broken.write_text('{"folder": 1}')
    assert modelpress("compare", str(broken), "tiny-round-w4").exit_code == 4


def test_a_metric_is_reproduced_from_the_newest_measurement_that_has_it(work_dir: Path) -> None:
    with Store(work_dir / "modelpress.db") as store:
        tasks = Job(kind="measure", base=BASE, recipe=recipe(4), protocol=Protocol(name="tasks"))
        accuracy = replace(number(0.5), metric="accuracy", protocol="tasks", conditions={"task": "piqa"})
        store.finish(tasks, replace(result(tasks, measurements=(accuracy,)), started_at=AT.replace("10:00", "11:00")))
    older = modelpress("reproduce", "tiny-round-w4", "--metric", "perplexity")
    assert (older.exit_code, "never released" in older.output) == (8, True), "it got as far as the missing files"
    neither = modelpress("reproduce", "tiny-round-w4", "--metric", "perplexity", "--metric", "accuracy")
    assert (neither.exit_code, "There are: accuracy" in neither.output) == (5, True)


def test_what_cannot_be_reproduced_says_why(work_dir: Path, tmp_path: Path) -> None:
    done = modelpress("reproduce", "tiny-round-w4", "--metric", "kl_divergence")
    assert done.exit_code == 5
    assert "There are: perplexity" in done.output
    done = modelpress("reproduce", "tiny-round-w4")
    assert done.exit_code == 8
    assert "never released" in done.output
    gone = measured_file(tmp_path / "gone.json", windows(0.1))
    done = modelpress("reproduce", str(gone))
    assert done.exit_code == 8, "the folder that was measured is not there"
