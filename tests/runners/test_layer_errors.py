"""Errors of single layers against plain references: small random models, a change in one place, float64 by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub.domain import LayerError, ModelRef, StepRecord
from runners import checkpoint, engines, layer_errors, recipes, texts
from runners.engines import transformers
from runners.layer_errors import TOKENS, WINDOWS
from runners.press import press

pytestmark = pytest.mark.integration

Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def folders(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random Llama and a random GPT-2 of three layers, with the sample models' tokenizers, in float32."""
    import torch
    import transformers as library

    small = {"vocab_size": 2048, "initializer_range": 0.2}
    llama = library.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, **small
    )
    gpt2 = library.GPT2Config(n_embd=32, n_layer=3, n_head=4, n_positions=128, **small)
    made = {}
    for name, config in (("sample-llama", llama), ("sample-gpt2", gpt2)):
        torch.manual_seed(0)
        made[name] = tmp_path_factory.mktemp(name)
        for path in samples.joinpath(name).glob("*token*"):
            shutil.copyfile(path, made[name] / path.name)
        library.AutoModelForCausalLM.from_config(config).save_pretrained(made[name])
    return made


def variant(base: Path, target: Path, change: Change, **config: object) -> Path:
    """Copy a base, its tensors and config changed."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, target)
    tensors = load_file(target / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    path = target / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return target


def errors(folder: Path, base: Path) -> dict[str, LayerError]:
    engine = engines.load("transformers")
    return {found.layer: found for found in layer_errors.layer_errors(folder, engine.load(folder), engine.load(base))}


def blurred(tensors: dict[str, Any]) -> None:
    import torch

    for name, tensor in tensors.items():
        if name.startswith("model.layers.") and tensor.ndim == 2:
            tensors[name] = tensor + 0.02 * torch.randn_like(tensor)


def test_one_layer_that_is_off_is_found(folders: dict[str, Path], tmp_path: Path) -> None:
    def scaled(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.self_attn.q_proj.weight"] *= 1.25

    found = errors(variant(folders["sample-llama"], tmp_path / "v", scaled), folders["sample-llama"])
    assert len(found) == 3 * (1 + 7)
    assert found["model.layers.1.self_attn.q_proj"].error == pytest.approx(0.25, rel=1e-5)
    assert found["model.layers.1"].error > 0
    others = {name: error.error for name, error in found.items() if name not in ("model.layers.1", "model.layers.1.self_attn.q_proj")}
    assert set(others.values()) == {0.0}, "what follows a bad layer is not blamed for it"
    assert {error.tokens for error in found.values()} == {WINDOWS * TOKENS}
    assert {error.protocol for error in found.values()} == {"stdlib-calibration@256, 4 windows, seed 0"}


def test_errors_are_those_of_a_plain_reference(folders: dict[str, Path], tmp_path: Path) -> None:
    """The inputs that the base gives its layers, multiplied by both weights in float64."""
    import torch
    from safetensors.torch import load_file

    base = folders["sample-llama"]
    folder = variant(base, tmp_path / "v", blurred)
    loaded = engines.load("transformers").load(base)
    name = "model.layers.2.mlp.down_proj"
    inputs: list[Any] = []
    loaded.model.get_submodule(name).register_forward_pre_hook(lambda _, args: inputs.append(args[0][0].double()))
    shown = layer_errors.Calibration(text="stdlib-calibration", samples=WINDOWS, sequence_length=TOKENS, seed=0)
    for ids in texts.windows(shown, loaded.tokenizer):
        loaded.logits(ids)
    weights = [load_file(place / "model.safetensors")[f"{name}.weight"].double() for place in (folder, base)]
    x = torch.cat(inputs)
    mine, its = (x @ weight.T for weight in weights)
    assert errors(folder, base)[name].error == pytest.approx(float((mine - its).norm() / its.norm()), rel=1e-5)


def test_conv1d_layers_are_compared_too(folders: dict[str, Path], tmp_path: Path) -> None:
    def scaled(tensors: dict[str, Any]) -> None:
        for part in ("weight", "bias"):
            tensors[f"transformer.h.2.mlp.c_fc.{part}"] *= 0.5

    found = errors(variant(folders["sample-gpt2"], tmp_path / "v", scaled), folders["sample-gpt2"])
    assert len(found) == 3 * (1 + 4)
    assert found["transformer.h.2.mlp.c_fc"].error == pytest.approx(0.5, rel=1e-5)
    assert found["transformer.h.2"].tokens == WINDOWS * 128, "windows are no longer than the context"


def test_scales_folded_into_the_norms_leave_whole_layers_to_compare(folders: dict[str, Path], tmp_path: Path) -> None:
    """As SmoothQuant and AWQ do: the model computes the same, and no linear layer by itself does."""

    def folded(tensors: dict[str, Any]) -> None:
        tensors["model.layers.0.post_attention_layernorm.weight"] *= 4
        for name in ("gate_proj", "up_proj"):
            tensors[f"model.layers.0.mlp.{name}.weight"] /= 4

    found = errors(variant(folders["sample-llama"], tmp_path / "v", folded), folders["sample-llama"])
    assert list(found) == ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert max(error.error for error in found.values()) < 1e-5


def test_layers_of_other_widths_are_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    def narrow(tensors: dict[str, Any]) -> None:
        for layer in range(3):
            for name in ("gate_proj", "up_proj", "down_proj"):
                key = f"model.layers.{layer}.mlp.{name}.weight"
                tensors[key] = (tensors[key][:48] if name != "down_proj" else tensors[key][:, :48]).contiguous()

    found = errors(variant(folders["sample-llama"], tmp_path / "v", narrow, intermediate_size=48), folders["sample-llama"])
    assert len(found) == 3 * (1 + 4)
    assert not [name for name in found if ".mlp." in name]
    assert all(found[f"model.layers.{place}"].error > 0 for place in range(3))


@pytest.mark.parametrize("told", [True, False])
def test_removed_layers_are_named_by_the_manifest(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    def shorter(tensors: dict[str, Any]) -> None:
        last = {name: tensor for name, tensor in tensors.items() if name.startswith("model.layers.2.")}
        for name, tensor in last.items():
            del tensors[name]
            tensors[name.replace(".2.", ".1.", 1)] = tensor * (1.5 if name.endswith("up_proj.weight") else 1)

    layers = {f"model.layers.{place}": {"influence": 0.1, "removed": place == 1} for place in range(3)}
    manifest = SimpleNamespace(steps=(StepRecord(method="depth_prune", layers=layers if told else {}),))
    monkeypatch.setattr(checkpoint, "read_manifest", lambda folder: manifest)
    folder = variant(folders["sample-llama"], tmp_path / "v", shorter, num_hidden_layers=2)
    found = errors(folder, folders["sample-llama"])
    if not told:
        assert found == {}, "which layer is which cannot be known"
        return
    assert {name.split(".")[2] for name in found} == {"0", "2"}
    assert found["model.layers.2.mlp.up_proj"].error == pytest.approx(0.5, rel=1e-5)
    assert found["model.layers.0.mlp.up_proj"].error == 0


def test_layers_of_two_factors_are_compared_as_one(folders: dict[str, Path]) -> None:
    import torch

    base, twin = (engines.load("transformers").load(folders["sample-llama"]) for _ in range(2))
    assert isinstance(base, transformers.Loaded)
    assert isinstance(twin, transformers.Loaded)
    name = "model.layers.0.mlp.up_proj"
    into, out = torch.nn.Linear(32, 32, bias=False), torch.nn.Linear(32, 64, bias=False)
    into.weight.data, out.weight.data = torch.eye(32), base.model.get_submodule(name).weight.data * 1.5
    twin.model.set_submodule(name, torch.nn.Sequential(into, out))
    found = {error.layer: error.error for error in layer_errors.layer_errors(folders["sample-llama"], twin, base)}
    assert found[name] == pytest.approx(0.5, rel=1e-5)


def test_an_engine_without_modules_has_no_layers(folders: dict[str, Path]) -> None:
    base = engines.load("transformers").load(folders["sample-llama"])
    assert layer_errors.layer_errors(folders["sample-llama"], SimpleNamespace(context_length=512), base) == ()  # type: ignore[arg-type]


def test_packed_layers_are_compared_through_their_own_kernels(samples: Path, tmp_path: Path) -> None:
    base = samples / "sample-llama"
    press(ModelRef(repo_id="a/sample-llama", sha="local-0"), base, recipes.load("bnb-nf4"), tmp_path / "nf4")
    found = errors(tmp_path / "nf4", base)
    linears = {linear.name for linear in checkpoint.shape(base).linears}
    assert {name for name in found if not name.rpartition(".")[2].isdigit()} == linears
    assert all(0.02 < found[name].error < 0.3 for name in linears)
