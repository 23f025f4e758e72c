"""What goes wrong inside a job has its class, a sentence, what to do, and no path of the machine that did it."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.codec import from_json, to_json
from hub.domain import Calibration, Failure, Job, JobOrder, ModelRef, Recipe, Workspace
from hub.errors import BadCheckpoint, HubNotFound, HubRefused, HubUnreachable, OutOfMemory
from hub.protocol import Quality
from runners import economy, failures, protocols, recipes, rehearsal, work

BASE = ModelRef(repo_id="local/small", sha="local-0")
Poison = Callable[[Path], object]


def recipe(name: str = "awq-w4a16-g64") -> Recipe:
    return rehearsal.shortened(recipes.load(name), samples=4, sequence_length=64)


def order(folder: Path, source: Path, **job: Any) -> JobOrder:
    space = Workspace(
        endpoint="http://127.0.0.1:9",
        cache_dir=str(folder / "cache"),
        artifacts_dir=str(folder / "artifacts"),
        threads=1,
        timeout_s=300.0,
        memory_bytes=0,
    )
    return JobOrder(job=Job(base=BASE, **({"kind": "press", "recipe": recipe()} | job)), workspace=space, folder=str(source))


def failed(told: JobOrder) -> Failure:
    with pytest.raises(Exception) as caught:
        work.execute(told)
    found = failures.failure(told.job.id, caught.value, seconds=1.0, workspace=told.workspace)
    assert found.hint
    assert len(found.reason) < 600
    assert "Traceback" not in found.reason
    assert str(Path(told.workspace.cache_dir).parent) not in found.reason + found.hint
    assert found.category != "bug"
    return found


def config(**values: object) -> Poison:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def weights(change: Callable[[bytes], bytes]) -> Poison:
    return lambda folder: (folder / "model.safetensors").write_bytes(change((folder / "model.safetensors").read_bytes()))


def number(name: str, value: float) -> Poison:
    def spoil(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        tensors[name].view(-1)[7] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return spoil


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


DOWN, NORM = "model.layers.1.mlp.down_proj.weight", "model.layers.2.input_layernorm.weight"
POISON: dict[str, tuple[Poison, str, str]] = {
    "a NaN in a matrix": (number(DOWN, float("nan")), "unstable", DOWN),
    "an infinity in a norm": (number(NORM, float("inf")), "unstable", NORM),
    "a config of other widths": (config(intermediate_size=192), "unsupported", "mlp"),
    "a config of more layers": (config(num_hidden_layers=9), "unsupported", "9 layers"),
    "a width that is a word": (config(hidden_size="wide"), "unsupported", "config.json"),
    "a head for every half channel": (config(num_attention_heads=3), "unsupported", "config.json|3"),
    "a config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "unsupported", "config.json"),
    "remote code": (config(auto_map={"AutoModel": "x.Y"}), "unsupported", "custom code"),
    "a cut file": (weights(lambda data: data[:-999]), "unsupported", "model.safetensors"),
    "a header of garbage": (weights(lambda data: b"\x10" + bytes(7) + b"not a header at all" + data), "unsupported", "model.safetensors"),
    "an empty file": (weights(lambda _: b""), "unsupported", "model.safetensors"),
    "pickles alone": (pickled, "unsupported", "pytorch_model.bin"),
    "no tokenizer": (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "unsupported", "tokenizer"),
}


@pytest.mark.integration
@pytest.mark.parametrize("name", POISON)
def test_a_poisoned_model_is_explained(small: Path, tmp_path: Path, name: str) -> None:
    import re

    spoil, category, says = POISON[name]
    source = tmp_path / "base"
    shutil.copytree(small, source)
    spoil(source)
    pressed = failed(order(tmp_path, source))
    assert pressed.category == category
    assert re.search(says, pressed.reason)
    assert not list((tmp_path / "artifacts").glob("*"))
    assert not list((tmp_path / "cache").glob("unfinished/*"))
    short = replace(protocols.load(protocols.QUICK), quality=Quality(sequence_length=64, windows=2), speed=None, memory=None)
    assert failed(order(tmp_path, source, kind="measure", recipe=None, protocol=short)).category == category


@pytest.mark.integration
def test_a_text_too_short_is_the_calibration_s_fault(small: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("One line of text.\n" * 3)
    step = recipe().steps[0]
    shown = Calibration(text=str(tmp_path / "short.txt"), samples=4, sequence_length=64)
    found = failed(order(tmp_path, small, recipe=replace(recipe(), steps=(replace(step, calibration=shown),))))
    assert (found.error, found.category) == ("CalibrationFailed", "calibration")


@pytest.mark.integration
def test_a_matrix_without_a_factor_is_the_calibration_s_fault(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs that are finite, but of which no sum of products is positive definite: all of one value that float32 cannot tell apart."""
    from runners.methods import sparsegpt

    monkeypatch.setattr(sparsegpt, "RAISES", 0)
    step = replace(recipe("sparsegpt-50").steps[0], params={"damp": 1e-12})
    shown = replace(step.calibration, samples=1, sequence_length=8) if step.calibration else None  # fewer tokens than columns
    found = failed(order(tmp_path, small, recipe=replace(recipe("sparsegpt-50"), steps=(replace(step, calibration=shown),))))
    assert (found.error, found.category) == ("CalibrationFailed", "calibration")
    assert "Cholesky" in found.reason


@pytest.mark.integration
def test_through_the_command_a_poisoned_model_is_a_line_of_json(small: Path, tmp_path: Path) -> None:
    source = tmp_path / "base"
    shutil.copytree(small, source)
    number(DOWN, float("nan"))(source)
    done = subprocess.run(
        [sys.executable, "-m", "runners"], input=to_json(order(tmp_path, source)), capture_output=True, text=True, check=False
    )
    found = from_json(Failure, done.stdout)
    assert (done.returncode, found.error, found.category) == (17, "Unstable", "unstable")


@pytest.mark.integration
def test_out_of_memory_says_whether_a_smaller_way_is_left(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runners import press

    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(press, "press", full)
    for name, level, again, says in (
        ("awq-w4a16-g64", 0, True, "smaller way"),
        ("awq-w4a16-g64", economy.MOST, False, "the smallest way"),
        ("rtn-w4a16-g64", 0, False, "No smaller way is known for rtn"),
    ):
        found = failed(replace(order(tmp_path, small, recipe=recipe(name)), economy=level))
        assert (found.error, found.category, found.retryable) == ("OutOfMemory", "out_of_memory", again)
        assert says in found.hint


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


class SafetensorError(Exception):
    """As safetensors calls its own."""


class LinAlgError(RuntimeError):
    """As torch and numpy call theirs."""


@pytest.mark.parametrize(
    ("error", "category", "retryable"),
    [
        (MemoryError(), "out_of_memory", True),
        (OutOfMemoryError("x"), "out_of_memory", True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out_of_memory", True),
        (RuntimeError("CUDA error: out of memory"), "out_of_memory", True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), "out_of_memory", True),
        (RuntimeError("unable to mmap 1 bytes from file <x>: Cannot allocate memory (12)"), "out_of_memory", True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory", True),
        (RuntimeError("std::bad_alloc"), "out_of_memory", True),
        (RuntimeError("Failed to allocate memory for requested buffer of size 9"), "out_of_memory", True),
        (OSError(errno.ENOSPC, "No space left on device", "/home/someone/press/a"), "disk", False),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk", False),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk", False),
        (SafetensorError("Error while deserializing header: header too large"), "unsupported", False),
        (LinAlgError("linalg.cholesky: The factorization could not be completed"), "calibration", False),
        (HubRefused("access is gated"), "gated", False),
        (HubUnreachable("the Hub answered 503"), "hub", True),
        (HubNotFound("no such file"), "hub", False),
        (KeyError("x"), "bug", False),
    ],
)
def test_errors_of_the_system_and_of_libraries_have_their_class(error: Exception, category: str, retryable: bool) -> None:
    wrapped = BadCheckpoint("a library says so", hint="again")
    wrapped.__cause__ = error
    found = failures.failure("j", error, seconds=1.0)
    assert (found.category, found.retryable) == (category, retryable)
    if category in ("disk", "out_of_memory"):
        assert failures.failure("j", wrapped, seconds=1.0).category == category
        assert "/home" not in found.reason


def test_how_long_the_hub_asks_to_be_left_alone_is_passed_on() -> None:
    error = HubUnreachable("the Hub asks to slow down")
    error.retry_after = 120.0
    told = from_json(Failure, to_json(failures.failure("a", error, seconds=1.0)))
    assert (told.retry_after_s, failures.failure("a", HubUnreachable("away"), seconds=1.0).retry_after_s) == (120.0, 0.0)


def test_our_own_words_on_memory_are_no_lack_of_it() -> None:
    assert failures.failure("j", BadCheckpoint("perhaps out of memory, no space left on device"), seconds=1.0).category == "unsupported"
    assert failures.failure("j", OutOfMemory("x", hint="y"), seconds=1.0).hint == "y"


def test_a_model_is_named_and_not_by_its_commit_alone(tmp_path: Path) -> None:
    base = ModelRef(repo_id="some-one/a.model-2", sha="9719c88b" + "0" * 32)
    space = Workspace(endpoint="", cache_dir=str(tmp_path / "cache"), artifacts_dir="", threads=1, timeout_s=1, memory_bytes=1)
    folder = tmp_path / "cache" / "models--some-one--a.model-2" / "snapshots" / base.sha
    error = BadCheckpoint(f"The weights of {folder} lack a tensor, {folder.name} loads wrongly.", hint=f"Remove {folder}/x.safetensors.")
    failed = failures.named(failures.failure("0" * 16, error, seconds=1.0, workspace=space), base)
    name = "some-one/a.model-2@9719c88b"
    assert failed.reason == f"The weights of {name} lack a tensor, {name} loads wrongly."
    assert failed.hint == f"Remove {name}/x.safetensors."
    local = ModelRef(repo_id="local/small", sha="local-0")
    assert failures.named(failed, local) == failed


def test_absolute_paths_become_words(tmp_path: Path) -> None:
    space = order(tmp_path, tmp_path).workspace
    for text, said in (
        (f"{space.cache_dir}/models--a--b/snapshots/9 lacks x", "the cache/models--a--b/snapshots/9 lacks x"),
        (f"in {space.artifacts_dir}: none", "in the artifacts folder: none"),
        ("'/home/alice/secret models' and /srv/data/x.bin.", "'…/secret models' and …/x.bin."),
        ('File "/usr/lib/python3.11/site-packages/torch/nn/modules/linear.py", line 1', 'File "torch/nn/modules/linear.py", line 1'),
        (f'File "{Path(work.__file__)}", line 1', 'File "runners/work.py", line 1'),
        *((same, same) for same in ("http://127.0.0.1:9/api/models/a/b", "owner/name, 3/4 and/or 1/2/3")),
    ):  # fmt: skip
        assert failures.without_paths(text, space) == said
    log = tmp_path / "log"
    log.write_text("Traceback:\n  /home/alice/models/x\n")
    assert failures.tail(log) == "Traceback:\n  …/x\n"
