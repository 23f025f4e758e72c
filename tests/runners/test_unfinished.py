"""A press that was killed goes on after its last finished layer, and a sparing one takes less memory: both end in the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from hub.codec import to_json
from hub.domain import Job, JobOrder, ModelRef, Recipe, Workspace
from runners import economy, methods, recipes, rehearsal, unfinished, work
from runners.method import Resumes

BASE = ModelRef(repo_id="local/small", sha="local-0")
LAYERWISE = (
    "awq-w4a16-g64", "sparsegpt-50", "wanda-50", "smoothquant-w8a8-static", "asvd-80", "w8a8-static", "fp8-static", "nvfp4-a4",
    "mixed-w3.5", "qat-w4a16-g64",
)  # fmt: skip


def recipe(name: str) -> Recipe:
    return rehearsal.shortened(recipes.load(name), samples=6, sequence_length=64)


def order(folder: Path, source: Path, wanted: Recipe, *, sparing: int = 0) -> JobOrder:
    space = Workspace(
        endpoint="http://127.0.0.1:9",
        cache_dir=str(folder / "cache"),
        artifacts_dir=str(folder / "artifacts"),
        threads=1,
        timeout_s=300.0,
        memory_bytes=0,
    )
    return JobOrder(job=Job(kind="press", base=BASE, recipe=wanted), workspace=space, folder=str(source), economy=sparing)


def digest(told: JobOrder) -> str:
    artifact = work.execute(told).artifact
    assert artifact is not None
    return artifact.digest


@pytest.mark.parametrize("name", methods.names())
def test_every_method_says_whether_it_goes_on_and_whether_it_can_be_sparing(name: str) -> None:
    method = methods.get(name)
    assert method.RESUMES in get_args(Resumes)
    assert isinstance(method.SPARES, bool)
    text = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
    going_on = "after the last finished layer" if method.RESUMES == "layers" else "from the beginning"
    assert f"| `{name}` | {going_on} | {'yes' if method.SPARES else 'no'} |" in text


def test_all_that_go_on_after_a_layer_are_tried() -> None:
    tried = {step.method for name in LAYERWISE for step in recipes.load(name).steps}
    assert {name for name in methods.names() if methods.get(name).RESUMES == "layers"} <= tried | {"fp4", "fp8", "w8a8"}


@pytest.mark.integration
@pytest.mark.parametrize("name", LAYERWISE)
def test_stopped_after_a_layer_or_sparing_the_bytes_are_the_same(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    wanted = recipe(name)
    whole = digest(order(tmp_path / "whole", small, wanted, sparing=1))
    told = order(tmp_path / "stopped", small, wanted)
    add, places = unfinished.Layers.add, []

    def stop(self: unfinished.Layers, place: int, *rest: object) -> None:
        add(self, place, *rest)  # type: ignore[arg-type]
        places.append(place)
        if place == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(unfinished.Layers, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        work.execute(told)
    kept = tmp_path / "stopped" / "cache" / "unfinished" / told.job.id
    assert sorted(path.name for path in kept.glob("*/*")) == ["layer-00000.safetensors", "layer-00001.safetensors", "states-00002"]
    monkeypatch.setattr(unfinished.Layers, "add", lambda self, place, *rest: (places.append(place), add(self, place, *rest))[1])
    assert digest(told) == whole
    assert places[:3] == [0, 1, 2]
    assert not kept.exists()


@pytest.mark.integration
def test_a_killed_process_goes_on(samples: Path, tmp_path: Path) -> None:
    source, wanted = samples / "sample-llama", rehearsal.shortened(recipes.load("sparsegpt-50"), samples=32, sequence_length=256)
    told = order(tmp_path, source, wanted)
    kept = tmp_path / "cache" / "unfinished" / told.job.id
    process = subprocess.Popen([sys.executable, "-m", "runners"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdin is not None
    process.stdin.write(to_json(told).encode())
    process.stdin.close()
    while process.poll() is None and not list(kept.glob("*/states-00001")):
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -9
    finished = len(list(kept.glob("*/layer-*.safetensors")))
    assert 1 <= finished <= 4
    assert digest(told) == digest(order(tmp_path / "undisturbed", source, wanted))
    assert not kept.exists()


@pytest.mark.integration
def test_what_was_kept_for_another_result_or_is_cut_is_not_taken(small: Path, tmp_path: Path) -> None:
    import torch

    made = unfinished.Made(tensors={"a": {"a": torch.ones(2)}}, told={"a": {"x": 1.5}})
    with unfinished.keeping(tmp_path / "job"):
        kept = unfinished.layers(small, "one")
        kept.add(0, made, [torch.zeros(2, 3)])
        kept.add(1, made, [torch.ones(2, 3)])
        again = unfinished.layers(small, "one")
        assert (again.count, again.whole) == (2, False)
        assert torch.equal(next(again.states()), torch.ones(2, 3))
        assert again.made(0).told == made.told
        assert torch.equal(again.made(1).tensors["a"]["a"], torch.ones(2))
        assert unfinished.layers(small, "another").count == 0
        path = next((tmp_path / "job").glob("*/states-00002/*"))
        path.write_bytes(path.read_bytes()[:-1])
        assert unfinished.layers(small, "one").count == 0  # its states are gone, and those before it were replaced
    assert unfinished.layers(small, "one").count == 0  # outside nothing is kept


@pytest.mark.integration
def test_a_method_that_cannot_go_on_says_so(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from runners.methods import rtn

    told, apply = order(tmp_path, small, recipe("rtn-w4a16-g64")), rtn.apply

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rtn, "apply", stopped)
    with pytest.raises(KeyboardInterrupt):
        work.execute(told)
    assert not caplog.text
    monkeypatch.setattr(rtn, "apply", apply)
    work.execute(told)
    assert "rtn cannot go on in the middle and begins anew" in caplog.text


def test_folders_that_nobody_touched_for_a_week_are_removed(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    long_ago = time.time() - unfinished.KEPT_SECONDS - 60
    os.utime(old, (long_ago, long_ago))
    with unfinished.keeping(tmp_path / "mine"):
        assert [folder.name for folder in tmp_path.iterdir()] == ["new"]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["depth-lora", "distil-features", "gradual-50", "taylor-50", "width-mlp-25-taylor"])
def test_sparing_training_gives_the_same_bytes(small: Path, tmp_path: Path, name: str) -> None:
    found = [digest(order(tmp_path / str(sparing), small, recipe(name), sparing=sparing)) for sparing in (0, 1)]
    assert found[0] == found[1]


@pytest.mark.integration
def test_most_sparing_training_gives_the_same_numbers(small: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    base = load_file(small / "model.safetensors")
    made = []
    for sparing in (0, economy.MOST):
        told = order(tmp_path / str(sparing), small, recipe("gradual-50"), sparing=sparing)
        digest(told)
        made.append(load_file(tmp_path / str(sparing) / "artifacts" / str(told.job.variant_id) / "model.safetensors"))
    moved = sum(float((made[0][name].float() - base[name].float()).norm()) ** 2 for name in base) ** 0.5
    apart = sum(float((made[0][name].float() - made[1][name].float()).norm()) ** 2 for name in base) ** 0.5
    assert apart < 0.02 * moved
    assert torch.equal(made[0]["model.norm.weight"] != 0, made[1]["model.norm.weight"] != 0)


CHILD = """
import json, sys
from pathlib import Path
import torch
from runners import dense, economy, layerwise, memory, training
torch.set_num_threads(1)
source = Path(sys.argv[1])
shown = torch.randint(0, 2000, (32, 256), generator=torch.Generator().manual_seed(0)).tolist()

def walk():
    for _ in layerwise.walk(source, shown, gram=True):
        pass

def train():
    model = dense.load(source, dtype="float32")
    training.recompute(model)
    loss = training.objective("text", model, None)
    stream = training.batches([one[:128] for one in shown], 8, 0)
    training.train(model.parameters(), stream, loss, steps=1, learning_rate=1e-4, additive=True)

grown = {}
for what, work in {"walk": walk, "train": train}.items():
    for level in (2, 2, 1, 0):  # the first is for what libraries take
        memory.release()
        memory.reset_peak()
        before = memory.resident()
        with economy.use(level), memory.tight():
            work()
        grown[f"{what} {level}"] = memory.peak() - before
print(json.dumps(grown))
"""


@pytest.mark.integration
def test_a_sparing_job_takes_less_memory(tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, vocab_size=6000,
        max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", CHILD, str(tmp_path / "base")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    grown = json.loads(done.stdout.splitlines()[-1])
    for what in ("walk", "train"):
        print(what, {level: f"{grown[f'{what} {level}'] / grown[f'{what} 0']:.2f} x {grown[f'{what} 0'] / 1e6:.0f} MB" for level in (1, 2)})
        assert grown[f"{what} 2"] < grown[f"{what} 1"] < 0.9 * grown[f"{what} 0"]
