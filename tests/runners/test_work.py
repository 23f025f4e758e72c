"""One job from JSON to JSON, and what becomes of what is half made."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hub.codec import from_json, to_json
from hub.domain import Failure, Job, JobOrder, JobResult, ModelRef, Workspace
from hub.errors import BadCheckpoint, OutOfDisk
from hub.protocol import Memory, Quality, Speed
from runners import checkpoint, failures, protocols, recipes, work

BASE = ModelRef(repo_id="local/stories260K", sha="local-0")
SHORT = replace(
    protocols.load(protocols.QUICK),
    quality=Quality(sequence_length=64, windows=2),
    speed=Speed(batches=(1,), contexts=(16,), modes=("eager",), new_tokens=2, repeats=6, seconds=0.0, warmup=1),
    memory=Memory(contexts=(64,), loads=2),
)


def order(folder: Path, **job: object) -> JobOrder:
    space = Workspace(
        endpoint="http://127.0.0.1:9",
        cache_dir=str(folder / "cache"),
        artifacts_dir=str(folder / "artifacts"),
        threads=1,
        timeout_s=300.0,
        memory_bytes=0,
    )
    return JobOrder(job=Job(base=BASE, **job), workspace=space)  # type: ignore[arg-type]


def runners(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "runners"], input=text, capture_output=True, text=True, check=False)


def test_an_order_that_is_none_is_a_failure_in_json_with_its_exit_code() -> None:
    done = runners('{"job": 1}')
    failure = from_json(Failure, done.stdout)
    assert (done.returncode, failure.error) == (4, "BadDocument")
    assert "order on stdin" in failure.reason


@pytest.mark.integration
@pytest.mark.shared
def test_a_job_as_json(shared: Path, tmp_path: Path) -> None:
    told = replace(order(tmp_path, kind="measure", protocol=SHORT), folder=str(shared / "models" / "stories260K"))
    done = runners(to_json(told))
    assert done.returncode == 0, done.stderr
    result = from_json(JobResult, done.stdout)
    assert result.job_id == told.job.id
    assert {one.metric for one in result.measurements} >= {"perplexity", "disk_size"}
    assert result.environment.libraries["torch"]


@pytest.mark.integration
@pytest.mark.shared
def test_pressing_twice_is_once_and_a_cut_artifact_is_made_anew(shared: Path, tmp_path: Path) -> None:
    told = order(tmp_path, kind="press", recipe=recipes.load("w8a8-dynamic"))
    told = replace(told, folder=str(shared / "models" / "stories260K"))
    first = work.execute(told).artifact
    assert first is not None
    target = tmp_path / "artifacts" / first.variant_id
    assert checkpoint.read_manifest(target) == first
    assert work.execute(told).artifact == first
    (target / "model.safetensors").write_bytes(b"cut")
    again = work.execute(told).artifact
    assert again is not None
    assert again.digest == first.digest
    measured = work.execute(replace(told, job=replace(told.job, kind="measure", protocol=SHORT)))
    assert {"kl_divergence", "perplexity_ratio"} <= {one.metric for one in measured.measurements}


@pytest.mark.integration
@pytest.mark.shared
def test_a_variant_that_was_not_pressed_is_not_measured(shared: Path, tmp_path: Path) -> None:
    told = order(tmp_path, kind="measure", recipe=recipes.load("w8a8-dynamic"), protocol=SHORT)
    with pytest.raises(BadCheckpoint, match="no finished checkpoint"):
        work.execute(replace(told, folder=str(shared / "models" / "stories260K")))


def test_offline_hides_the_token_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "reader")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with work.offline():
        assert "HF_TOKEN" not in os.environ
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["HF_TOKEN"] == "reader"
    assert "HF_HUB_OFFLINE" not in os.environ


def test_failures_name_what_happened() -> None:
    full = failures.failure("j", OSError(errno.ENOSPC, "No space left on device"), seconds=1)
    assert (full.error, full.retryable) == ("OutOfDisk", False)
    assert failures.failure("j", MemoryError(), seconds=1).error == "OutOfMemory"
    torch_s = RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")
    assert failures.failure("j", torch_s, seconds=1).error == "OutOfMemory"
    strange = failures.failure("j", KeyError("x"), seconds=1)
    assert (strange.error, strange.retryable) == ("KeyError", False)
    assert failures.failure("j", ValueError("one\n  two"), seconds=1).reason == "one two"
    assert failures.failure("j", ValueError(), seconds=1).reason == "ValueError"
    ours = failures.failure("j", BadCheckpoint("cut", hint="again"), seconds=1)
    assert (ours.error, ours.reason, ours.hint) == ("BadCheckpoint", "cut", "again")


def test_an_end_without_a_result_is_explained() -> None:
    assert "SIGSEGV" in failures.died(signal.SIGSEGV).message
    assert "out of memory" in failures.died(signal.SIGKILL).hint
    assert isinstance(failures.died(11 << 8), OutOfDisk)
    assert failures.died(1 << 8).name == "JobDied"


def test_the_tail_of_a_log_begins_with_a_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert failures.tail(log) == ""
    log.write_text("\n".join(f"line {number}" for number in range(2000)))
    lines = failures.tail(log).splitlines()
    assert lines[0].startswith("line ")
    assert lines[-1] == "line 1999"
    assert json.dumps(lines)
