from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Artifact, ModelRef, Recipe
from hub.errors import BadCheckpoint, OutOfDisk, Unavailable, UnfitModel, UsageError
from runners import checkpoint, engines, formats, headers, methods, plugins, press, readers, recipes
from runners.method import Outcome

CUT = "-two"
QUICK = {"tokens": 2048, "iters": 4}  # budgets of methods that learn
BASE = ModelRef(repo_id="modelpress-samples/sample", sha="0" * 40)


def quick(name: str) -> Recipe:
    """Return a shipped recipe, shown little text: what lies on disk is of the same kind and size."""
    recipe = recipes.load(name)
    steps = []
    for step in recipe.steps:
        shown = replace(step.calibration, samples=8, sequence_length=128) if step.calibration else None
        params = {name: min(int(value), QUICK[name]) if name in QUICK else value for name, value in step.params.items()}
        steps.append(replace(step, calibration=shown, params=params))
    return replace(recipe, steps=tuple(steps))


@dataclass(frozen=True, kw_only=True)
class Pressed:
    """A variant as it was pressed, with the seconds of its steps."""

    folder: Path
    artifact: Artifact
    stages: dict[str, float]


Pressing = Callable[[str, str], Pressed]


@pytest.fixture(scope="session")
def bases(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives a sample model's folder by name; with `-two` at its end the model is cut to its first two layers."""
    root = tmp_path_factory.mktemp("cut")

    def of(base: str) -> Path:
        whole = base.removesuffix(CUT)
        if whole != base and not (root / base).exists():
            cut(samples / whole, root / base)
        return (samples if whole == base else root) / base

    return of


def cut(source: Path, target: Path, depth: int = 2) -> None:
    """Copy a model with its first layers only."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    config["n_layer" if "n_layer" in config else "num_hidden_layers"] = depth
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:depth]
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(source / "model.safetensors")
    kept = {name: one for name, one in tensors.items() if next((int(part) for part in name.split(".") if part.isdecimal()), 0) < depth}
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def pressed(bases: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Pressing:
    """Return what presses a sample model by the quick form of a recipe, each pair once a session."""
    done: dict[tuple[str, str], Pressed] = {}

    def of(name: str, base: str) -> Pressed:
        if (name, base) not in done:
            stages: dict[str, float] = {}
            folder = tmp_path_factory.mktemp(name) / "made"
            artifact = press.press(BASE, bases(base), quick(name), folder, stages=stages)
            done[name, base] = Pressed(folder=folder, artifact=artifact, stages=stages)
        return done[name, base]

    return of


def pairs() -> list[tuple[str, str]]:
    """Return every recipe with the sample Llama, and one recipe of each method with the other architectures.

    One recipe of each method sees all layers of the Llama; to the others two layers show what is different about them, unless they choose
    among layers.
    """
    shipped = sorted(recipes.names(), key=lambda name: name not in recipes.default_names())
    first = {recipes.load(name).method: name for name in reversed(shipped)}
    deep = {name for name in shipped if {"depth_prune", "student"} & {step.method for step in recipes.load(name).steps}}
    whole = {*first.values(), *deep}
    return [(name, "sample-llama" if name in whole else f"sample-llama{CUT}") for name in shipped] + [
        (name, base if name in deep else f"{base}{CUT}") for base in ("sample-qwen3-chat", "sample-gpt2") for name in first.values()
    ]


def load(folder: Path, **extra: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **extra).eval()


def logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(ids).logits.float()


@pytest.mark.integration
@pytest.mark.parametrize(("name", "base"), pairs())
def test_every_recipe_makes_what_it_promises(bases: Callable[[str], Path], pressed: Pressing, name: str, base: str) -> None:
    import torch

    source = bases(base)
    shape = checkpoint.shape(source)
    recipe = quick(name)
    try:
        final = press.check(recipe, shape)
    except UnfitModel as unfit:
        pytest.skip(str(unfit))
    variant = pressed(name, base)
    folder, made = variant.folder, variant.artifact
    assert checkpoint.read_manifest(folder) == made
    assert made.parameters == final.parameters
    assert [path.name for path in folder.parent.iterdir()] == ["made"]
    assert set(variant.stages) == {*(step.method for step in recipe.steps), "finish"}
    assert [record.method for record in made.steps] == [step.method for step in recipe.steps]

    packing = formats.packed(folder, recipe, shape, made.steps)
    assert all(len(record.samples_sha256) == 64 for record, step in zip(made.steps, recipe.steps, strict=True) if step.calibration)
    assert packing.found == packing.expected > 0
    assert packing.not_packed == packing.extra == ()
    assert packing.bytes_found == pytest.approx(packing.bytes_expected, rel=0.03)
    assert formats.non_finite(folder) == ()

    weights = readers.weights_beside(folder) or [path.name for path in headers.weight_files(folder)]
    carried = {path.name for pattern in checkpoint.CARRIED for path in source.glob(pattern)}
    assert {file.path for file in made.files} == carried | {"config.json", *weights}
    assert (folder / "generation_config.json").read_bytes() == (source / "generation_config.json").read_bytes()
    assert str(folder.parent) not in (folder / "config.json").read_text()

    ids = torch.arange(40, 104)[None]
    found, wanted = engines.for_folder(folder).load(folder).logits(ids[0].tolist())[None].float(), logits(load(source), ids)
    assert found.shape == wanted.shape
    assert torch.isfinite(found).all()
    kl = (wanted.log_softmax(-1).exp() * (wanted.log_softmax(-1) - found.log_softmax(-1))).sum(-1).mean()
    assert 0 < float(kl) < 4


@pytest.mark.integration
@pytest.mark.parametrize("name", ["w8a8-dynamic", "bnb-nf4", "gptq-w4a16-g64", "wanda-50", "depth-distil"])
def test_the_same_press_twice_gives_the_same_bytes_and_leaves_nothing_beside_them(
    samples: Path, pressed: Pressing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    again = press.press(BASE, samples / "sample-llama", quick(name), Path("again"))
    assert again.digest == pressed(name, "sample-llama").artifact.digest
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


@pytest.mark.integration
def test_at_three_bits_rounding_to_nearest_is_clearly_worse_than_gptq(samples: Path, tmp_path: Path) -> None:
    import torch

    from runners import dense, texts

    source = samples / "sample-llama"
    ids = torch.tensor(texts.tokens("stdlib-heldout", dense.tokenizer(source)))[: 40 * 512].view(-1, 512)[::10]

    def perplexity(folder: Path) -> float:
        scores = logits(load(folder, dtype=torch.bfloat16), ids)
        return math.exp(float(torch.nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), ids[:, 1:].flatten())))

    values = {"base": perplexity(source)}
    for name in ("rtn-w3a16-g64", "gptq-w3a16-g64"):
        press.press(BASE, source, recipes.load(name), tmp_path / name)
        values[name] = perplexity(tmp_path / name)
    print({name: round(value, 3) for name, value in values.items()})
    assert values["base"] < values["gptq-w3a16-g64"]
    lost = {name: value - values["base"] for name, value in values.items()}
    assert lost["rtn-w3a16-g64"] > 1.5 * lost["gptq-w3a16-g64"]


@pytest.mark.integration
@pytest.mark.shared
def test_a_real_model_in_float32_is_pressed_and_others_refused(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "stories260K"
    recipe = recipes.load("w8a8-dynamic")
    press.press(BASE, source, recipe, tmp_path / "made")
    packing = formats.packed(tmp_path / "made", recipe, checkpoint.shape(source))
    assert packing.found == packing.expected == 35
    assert packing.bytes_found == packing.bytes_expected
    with pytest.raises(UnfitModel, match="172 inputs"):
        press.press(BASE, source, recipes.load("gptq-w4a16-g64"), tmp_path / "other")
    with pytest.raises(UnfitModel, match="RwkvForCausalLM"):
        press.press(BASE, shared / "models" / "tiny-rwkv-4v0-660K", recipe, tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.integration
@pytest.mark.parametrize("name", ["w8a8-dynamic", "bnb-nf4", "gptq-w4a16-g64", "wanda-50", "depth-distil"])
def test_weights_that_lack_a_tensor_are_never_made_up(samples: Path, tmp_path: Path, name: str) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(samples / "sample-llama", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        press.press(BASE, tmp_path / "base", quick(name), tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


@pytest.mark.integration
def test_a_model_without_a_tokenizer_cannot_be_shown_text(samples: Path, tmp_path: Path) -> None:
    shutil.copytree(
        samples / "sample-llama", tmp_path / "base", ignore=shutil.ignore_patterns("tokenizer*", "vocab*", "merges*", "special*")
    )
    with pytest.raises(BadCheckpoint, match="no tokenizer"):
        press.press(BASE, tmp_path / "base", quick("wanda-50"), tmp_path / "made")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


class Copy:
    """A method that takes no library: it hands on what it is given, or fails as it is told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls = 0

    NEEDS = ()
    WORKS = "streaming"
    FORMAT = "compressed-tensors"
    check = staticmethod(lambda step, shape: None)
    promise = staticmethod(methods.get("distil").promise)

    def apply(self, step: object, source: Path, target: Path, context: object) -> Outcome:
        self.calls += 1
        for path in source.iterdir():
            shutil.copy(path, target / path.name)
        (target / "recipe.yaml").write_text("of a library")
        if self.error:
            raise self.error
        return Outcome()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    config = {"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1, "hidden_size": 2, "vocab_size": 2}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    names = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight")
    entries = {name: {"dtype": "BF16", "shape": [2, 2], "data_offsets": [8 * place, 8 * place + 8]} for place, name in enumerate(names)}
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
    return folder


def use(monkeypatch: pytest.MonkeyPatch, method: Copy) -> Recipe:
    monkeypatch.setattr(methods, "get", lambda _: method)
    return recipes.load("w8a8-dynamic")


def test_done_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    method = Copy()
    recipe = use(monkeypatch, method)
    first = press.press(BASE, source, recipe, tmp_path / "made")
    assert press.press(BASE, source, recipe, tmp_path / "made") == first
    assert method.calls == 1
    assert [file.path for file in first.files] == ["config.json", "model.safetensors", "tokenizer.json"]
    with pytest.raises(UsageError, match="another variant"):
        press.press(replace(BASE, sha="1" * 40), source, recipe, tmp_path / "made")
    (tmp_path / "made" / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadCheckpoint, match="truncated"):
        press.press(BASE, source, recipe, tmp_path / "made")


def test_what_is_not_ours_is_not_overwritten(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    recipe = use(monkeypatch, Copy())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("dear")
    with pytest.raises(UsageError, match="no variant"):
        press.press(BASE, source, recipe, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "dear"
    (tmp_path / "empty").mkdir()
    assert press.press(BASE, source, recipe, tmp_path / "empty").files
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert press.press(BASE, source, recipe, Path()).files
    assert (tmp_path / "here" / checkpoint.MANIFEST).is_file()


@pytest.mark.parametrize(
    ("error", "raised"), [(RuntimeError("No space left on device (os error 28)"), OutOfDisk), (ValueError("x"), ValueError)]
)
def test_a_failed_step_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path, error: Exception, raised: type[Exception]
) -> None:
    recipe = use(monkeypatch, Copy(error))
    with pytest.raises(raised):
        press.press(BASE, source, recipe, tmp_path / "out" / "made")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_library_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Path) -> None:
    monkeypatch.setattr(plugins, "missing", lambda needs: ("llmcompressor",))
    recipe = recipes.load("w8a8-dynamic")
    with pytest.raises(Unavailable, match="llmcompressor") as caught:
        press.press(BASE, source, recipe, tmp_path / "made")
    assert "pip install" in caught.value.hint
    assert not (tmp_path / "made").exists()
