from __future__ import annotations

import contextlib
import subprocess
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import get_args

import pytest

from hub.domain import Calibration, Step
from hub.errors import UnfitModel, UnknownName, UsageError
from runners import checkpoint, engines, formats, methods, plugins, press, recipes
from runners.checkpoint import ModelShape
from runners.headers import Tensor
from runners.method import Works

CALIBRATION = Calibration(text="stdlib-calibration", samples=8, sequence_length=512)


def llama(width: int = 256, mlp: int = 768, layers: int = 4, architecture: str = "LlamaForCausalLM", context: int = 512) -> ModelShape:
    tensors = {"model.embed_tokens.weight": (2048, width), "model.norm.weight": (width,)}
    for number in range(layers):
        root = f"model.layers.{number}"
        tensors |= {f"{root}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
        tensors |= {f"{root}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")}
        tensors |= {
            f"{root}.mlp.down_proj.weight": (width, mlp),
            **{f"{root}.{name}_layernorm.weight": (width,) for name in ("input", "post_attention")},
        }
    return ModelShape(
        architecture=architecture,
        layers=layers,
        hidden_size=width,
        intermediate_size=mlp,
        vocab_size=2048,
        context=context,
        dtype="BF16",
        tensors={name: Tensor(dtype="BF16", shape=shape) for name, shape in tensors.items()},
    )


def gpt2() -> ModelShape:
    tensors = {"transformer.wte.weight": (2048, 256), "transformer.wpe.weight": (512, 256)}
    for number in range(4):
        root = f"transformer.h.{number}"
        tensors |= {f"{root}.attn.c_attn.weight": (256, 768), f"{root}.attn.c_attn.bias": (768,), f"{root}.mlp.c_proj.weight": (1024, 256)}
    return replace(
        llama(), architecture="GPT2LMHeadModel", tensors={name: Tensor(dtype="BF16", shape=shape) for name, shape in tensors.items()}
    )


def step(method: str, scheme: str, calibrated: bool = True, **params: str | int | float | bool) -> Step:
    return Step(method=method, scheme=scheme, params=params, calibration=CALIBRATION if calibrated else None)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_described(name: str) -> None:
    info = next(info for info in methods.available() if info.name == name)
    assert info.family in ("quantization", "pruning", "distillation", "low-rank", "recovery", "export")
    assert methods.get(name).WORKS in get_args(Works)
    assert info.summary.endswith(".")
    assert info.paper.startswith("https://")
    assert info.schemes
    assert any(methods.get(name).FORMAT in engine.formats for engine in engines.available())
    assert info.available == (not info.reason)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_recipe(name: str) -> None:
    assert any(step.method == name for recipe in map(recipes.load, recipes.names()) for step in recipe.steps)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_refuses_what_it_does_not_know(name: str) -> None:
    method = methods.get(name)
    good = step(name, method.SCHEMES[0])
    with pytest.raises(UnfitModel, match="RwkvForCausalLM cannot be pressed"):
        method.check(good, llama(architecture="RwkvForCausalLM"))
    with pytest.raises(UsageError, match="W9A9"):
        method.check(replace(good, scheme="W9A9"), llama())
    with pytest.raises(UsageError, match="no parameter 'colour'"):
        method.check(replace(good, params={"colour": 1}), llama())


@pytest.mark.parametrize("name", methods.names())
def test_every_method_promises_all_linears_and_says_so_in_bytes(name: str) -> None:
    method = methods.get(name)
    for scheme in method.SCHEMES:
        asked = step(name, scheme)
        method.check(asked, llama())
        promise = method.promise(asked, llama())
        assert set(promise.changed) == {linear.name for linear in promise.shape.linears}
        assert promise.changed
        assert all(tensor in promise.tensors for tensors in promise.changed.values() for tensor in tensors)
        assert 0 < promise.bytes <= sum(tensor.bytes for tensor in llama().tensors.values())
        assert method.FAMILY == "export" or "model.embed_tokens.weight" in promise.tensors


def test_the_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; from runners import methods, recipes, press; methods.available(); [recipes.load(n) for n in recipes.names()];"
        "print([m for m in ('torch', 'transformers', 'gptqmodel', 'llmcompressor', 'bitsandbytes', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"


def test_a_broken_neighbour_breaks_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken_one.py").write_text("import no_such_library\n")
    methods.__path__.append(str(tmp_path))
    try:
        listed = {info.name: info for info in methods.available()}
    finally:
        methods.__path__.remove(str(tmp_path))
    assert listed["gptq"].summary
    assert not listed["broken_one"].available
    assert "no_such_library" in listed["broken_one"].reason


def test_a_missing_library_is_said_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "missing", lambda needs: tuple(name for name in needs if name == "gptqmodel"))
    gptq = next(info for info in methods.available() if info.name == "gptq")
    assert not gptq.available
    assert "gptqmodel" in gptq.reason
    assert gptq.install.startswith("pip install")


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        methods.get("gtpq")
    assert "gptq" in caught.value.hint


@pytest.mark.parametrize(
    ("asked", "shape", "says"),
    [
        (step("gptq", "W4A16", group_size=128), llama(192, 512), "192 inputs"),
        (step("gptq", "W4A16", group_size=-1), llama(64, 172), "words"),
        (step("rtn", "W3A16", group_size=64), llama(64, 172), "172 inputs"),
        (step("rtn", "W3A16", group_size=64), gpt2(), "Conv1D"),
        (step("w8a8", "W8A8"), gpt2(), "Conv1D"),
        (step("bitsandbytes", "NF4"), llama(64, 172), "down_proj has 172 inputs and 64 outputs"),
        (step("bitsandbytes", "NF4"), llama(64, 64 * 3 + 32), "224 inputs"),
        (step("wanda", "2:4"), llama(64, 170), "2:4 needs inputs divisible by 4; model.layers.0.mlp.down_proj has 170"),
        (step("gptq", "W4A16"), gpt2(), "transformers cannot load"),
        (step("gptq", "W4A16"), llama(context=256), "windows of 512 tokens; the model's context is 256"),
        (step("depth_prune", "depth"), llama(layers=1), "at least one must be left"),
    ],
)
def test_what_does_not_fit_is_refused_early_with_advice(asked: Step, shape: ModelShape, says: str) -> None:
    with pytest.raises(UnfitModel, match=says) as caught:
        methods.get(asked.method).check(asked, shape)
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_the_hint_names_group_sizes_that_fit() -> None:
    with pytest.raises(UnfitModel) as caught:
        methods.get("gptq").check(step("gptq", "W4A16", group_size=128), llama(192, 512))
    assert "64 or 32 or 16" in caught.value.hint


@pytest.mark.parametrize(
    "asked",
    [
        step("gptq", "W4A16", group_size=100),
        step("gptq", "W4A16", damp_percent=2.0),
        step("gptq", "W4A16", desc_act=1),
        step("gptq", "W4A16", calibrated=False),
        step("rtn", "W3A16", group_size=0),
        step("wanda", "unstructured", sparsity=1.5),
        step("wanda", "2:4", sparsity=0.6),
        step("depth_prune", "depth", fraction=0.0),
        step("distil", "logits", temperature=0.0),
        step("distil", "logits", tokens=0),
        step("distil", "logits", text_weight=2),
    ],
)
def test_senseless_values_are_refused(asked: Step) -> None:
    with pytest.raises(UsageError) as caught:
        methods.get(asked.method).check(asked, llama())
    assert caught.value.hint


def test_four_bits_in_groups_of_128_weigh_what_the_formula_says() -> None:
    shape = llama()
    promise = methods.get("gptq").promise(step("gptq", "W4A16", group_size=128), shape)
    weights = sum(linear.out_features * linear.in_features for linear in shape.linears)
    groups = sum(ceil(linear.in_features / 128) * linear.out_features for linear in shape.linears)
    indices = sum(linear.in_features for linear in shape.linears)
    dense = sum(tensor.bytes for tensor in shape.tensors.values()) - 2 * weights
    assert promise.bytes == dense + weights // 2 + groups * 2 + groups // 2 + indices * 4


def test_depth_pruning_renumbers_and_chains() -> None:
    recipe = recipes.load("depth-distil")
    promise = formats.promise_of(recipe, llama(layers=6))
    assert promise.shape.layers == 4
    assert max(int(name.split(".")[2]) for name in promise.changed) == 3
    assert promise.shape.parameters < llama(layers=6).parameters


def test_the_default_recipes_make_at_least_fourteen_variants_of_the_samples() -> None:
    fitting = []
    for recipe in map(recipes.load, recipes.default_names()):
        for shape in (llama(), llama(192, 512, 6, "Qwen3ForCausalLM"), gpt2()):
            with contextlib.suppress(UnfitModel):
                press.check(recipe, shape)
                fitting.append((recipe.name, shape.architecture))
    assert len(fitting) >= 14


@pytest.mark.shared
def test_real_shapes_are_read(shared: Path) -> None:
    shape = checkpoint.shape(shared / "models" / "stories260K")
    assert (shape.architecture, shape.layers, shape.hidden_size, shape.intermediate_size) == ("LlamaForCausalLM", 5, 64, 172)
    assert len(shape.linears) == 35
    rwkv = checkpoint.shape(shared / "models" / "tiny-rwkv-4v0-660K")
    with pytest.raises(UnfitModel, match="RwkvForCausalLM"):
        methods.get("w8a8").check(step("w8a8", "W8A8"), rwkv)
