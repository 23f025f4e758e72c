"""What a press takes is said before it starts, and a tiny rehearsal meets what would die at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hub.domain import ModelRef, Recipe
from hub.errors import BadCheckpoint, OutOfDisk, UnfitModel
from runners import checkpoint, environment, methods, needs, press, recipes, rehearsal
from runners.method import Outcome

BASE = ModelRef(repo_id="modelpress-samples/sample", sha="0" * 40)
MEASURE = """
import json, sys
from pathlib import Path
from hub.codec import from_json
from hub.domain import ModelRef, Recipe
from runners import checkpoint, memory, needs, press
import torch, transformers
torch.set_num_threads(1)
source, target, warm, text = sys.argv[1:]
recipe = from_json(Recipe, text, where="argv")
base = ModelRef(repo_id="a/b", sha="0" * 40)
press.press(base, Path(warm), recipe, Path(target) / "warm")  # libraries are imported, and no longer part of the peak
memory.release(); memory.reset_peak(); before = memory.resident()
press.press(base, Path(source), recipe, Path(target) / "made")
print(json.dumps([memory.peak() - before, needs.needs(recipe, checkpoint.shape(Path(source))).memory_bytes]))
"""


@pytest.fixture(scope="session")
def large(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 12 layers and 41M random weights in bf16, 82 MB in several shards."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = tmp_path_factory.mktemp("large")
    config = LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=8, max_position_embeddings=512
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="16MB")
    checkpoint.carry_over(samples / "sample-llama", folder)
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("name", ["rtn-w4a16-g64", "wanda-50", "bnb-nf4", "taylor-50", "depth-distil"])
def test_the_memory_that_is_said_is_about_the_memory_that_is_taken(samples: Path, large: Path, tmp_path: Path, name: str) -> None:
    recipe = rehearsal.shortened(recipes.load(name), samples=8, sequence_length=256)
    from hub.codec import to_json

    done = subprocess.run(
        [sys.executable, "-c", MEASURE, large, tmp_path, samples / "sample-llama", to_json(recipe)],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    taken, said = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {taken / 2**20:.0f} MiB taken, {said / 2**20:.0f} said ({said / max(taken, 1):.2f}x)")
    assert taken < 2.0 * said + 2**26
    assert said < 4.0 * taken + 2**26


def test_what_cannot_fit_is_refused_before_it_starts(samples: Path, tmp_path: Path) -> None:
    recipe = recipes.load("depth-distil")
    shape = checkpoint.shape(samples / "sample-llama")
    with pytest.raises(UnfitModel, match=r"takes about .* GiB of memory; there are 0\.0 GiB") as caught:
        needs.require(recipe, shape, memory_bytes=2**20, folder=tmp_path / "not" / "yet")
    assert caught.value.hint
    needs.require(recipe, shape, memory_bytes=2**40, folder=tmp_path)
    vast = replace(shape, tensors={name: replace(t, shape=(10**6, *t.shape)) for name, t in shape.tensors.items()})
    assert needs.needs(recipes.load("w8a8-dynamic"), shape).seconds(2) < 60
    with pytest.raises(OutOfDisk, match=r"writes about .* GiB; the disk of"):
        needs.require(recipes.load("w8a8-dynamic"), replace(vast, layers=4), memory_bytes=2**80, folder=tmp_path)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_says_what_it_takes(samples: Path, name: str) -> None:
    recipe = recipes.load(name)
    for base in ("sample-llama", "sample-qwen3-chat", "sample-gpt2"):
        shape = checkpoint.shape(samples / base)
        try:
            press.check(recipe, shape)
        except UnfitModel:
            continue
        found = needs.needs(recipe, shape)
        assert found.memory_bytes > 0
        assert found.disk_bytes >= sum(methods.get(recipe.steps[-1].method).promise(recipe.steps[-1], shape).bytes for _ in (0,)) * 0.2
        assert 0 < found.seconds(2) < 3600


class Dies:
    """A method that packs well and cannot save."""

    NEEDS = ()
    WORKS = "streaming"
    FORMAT = "compressed-tensors"
    check = staticmethod(lambda step, shape: None)
    promise = staticmethod(methods.get("w8a8").promise)

    def __init__(self) -> None:
        self.seen: list[int] = []

    def apply(self, step: object, source: Path, target: Path, context: object) -> Outcome:
        self.seen.append(checkpoint.shape(source).layers)
        raise ValueError("Some tensors share memory")


@pytest.mark.integration
def test_what_dies_while_saving_dies_on_a_tiny_model_first(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dies = Dies()
    recipe = recipes.load("w8a8-dynamic")
    monkeypatch.setattr(methods, "get", lambda _: dies)
    monkeypatch.setattr(rehearsal, "FROM_BYTES", 1)
    with pytest.raises(BadCheckpoint, match="on a tiny model of this kind already: ValueError: Some tensors share memory"):
        press.press(BASE, samples / "sample-llama", recipe, tmp_path / "made")
    assert dies.seen == [2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_numbers_of_the_tiny_model_that_do_not_suit_a_recipe_refuse_nothing(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> Outcome:
        raise UnfitModel("No rank makes any of the 14 linear layers smaller.")

    recipe = recipes.load("svd-80")
    monkeypatch.setattr(methods.get("low_rank"), "apply", refuses)
    assert not rehearsal.rehearse(recipe, samples / "sample-llama", tmp_path / "press")
    assert caplog.messages == [
        "svd-80 is not rehearsed, as it does not fit a tiny model of this kind: No rank makes any of the 14 linear layers smaller."
    ]


def test_a_press_may_use_what_its_container_may(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "memory_bytes", lambda: 2**20)
    with pytest.raises(UnfitModel, match=r"there are 0\.0 GiB"):
        press.press(BASE, samples / "sample-llama", recipes.load("bnb-nf4"), tmp_path / "made")


@pytest.mark.integration
@pytest.mark.parametrize("base", ["sample-llama", "sample-qwen3-chat", "sample-gpt2"])
def test_the_tiny_model_is_of_the_base_s_kind(samples: Path, tmp_path: Path, base: str) -> None:
    source = checkpoint.shape(samples / base)
    (tmp_path / "tiny").mkdir()
    tiny = rehearsal.make_tiny(samples / base, tmp_path / "tiny")
    assert (tiny.architecture, tiny.vocab_size, tiny.dtype, tiny.layers) == (source.architecture, source.vocab_size, source.dtype, 2)
    recipe: Recipe = recipes.load("wanda-50")
    assert rehearsal.rehearse(recipe, samples / base, tmp_path / "press")
