"""Mixed precision: the solver against brute force, the sensitivity against the whole model, the promise against what is delivered."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Artifact, Calibration, ModelRef, Recipe, Scalar, Step, Thresholds
from hub.errors import BadCheckpoint, UnfitModel, Unstable, UsageError
from runners import allocation, checkpoint, formats, methods, press, rounding, sensitivity, sizes
from runners.allocation import Option
from runners.checkpoint import Linear, ModelShape
from runners.headers import Tensor

BASE = ModelRef(repo_id="modelpress-samples/sample", sha="0" * 40)
WINDOWS = 2


def recipe(method: str = "mixed", scheme: str = "WxA16", **params: Scalar) -> Recipe:
    shown = Calibration(text="stdlib-calibration", samples=16, sequence_length=256) if method == "mixed" else None
    params = {"windows": WINDOWS, **params} if method == "mixed" else params
    step = Step(method=method, scheme=scheme, params=params, calibration=shown)
    return Recipe(
        name="x", title="x", summary="x", format="compressed-tensors", steps=(step,),
        thresholds=Thresholds(kl_divergence=1, perplexity_ratio=2),
    )  # fmt: skip


def shape_of(names: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"), width: int = 256) -> ModelShape:
    tensors = {f"model.layers.0.{name}.weight": Tensor(dtype="BF16", shape=(256, width)) for name in names}
    return ModelShape(
        architecture="LlamaForCausalLM", layers=1, hidden_size=256, intermediate_size=768, vocab_size=8, context=512, dtype="BF16",
        tensors=tensors,
    )  # fmt: skip


def items(draw: random.Random, step: int) -> list[list[Option]]:
    """Return a few items with options as layers have them: more bytes, less loss, mostly."""
    found = []
    for _ in range(draw.randint(1, 5)):
        weights = draw.choice((16, 24, 40)) * step
        scale = draw.random() ** 3
        found.append([Option(key=bits, bytes=weights * bits + draw.choice((0, 0, 3)), loss=scale * 4.0**-bits) for bits in (2, 3, 4, 8)])
    return found


def brute(found: list[list[Option]], *, budget: float = math.inf, loss: float = math.inf) -> list[tuple[int, float]]:
    """Return bytes and loss of all choices within a budget."""
    sums = [(sum(one.bytes for one in choice), sum(one.loss for one in choice)) for choice in itertools.product(*found)]
    return [(size, lost) for size, lost in sums if size <= budget and lost <= loss]


def taken(found: list[list[Option]], keys: list[int]) -> tuple[int, float]:
    chosen = [next(option for option in options if option.key == key) for options, key in zip(found, keys, strict=True)]
    return sum(option.bytes for option in chosen), sum(option.loss for option in chosen)


def test_the_solver_finds_the_best_of_all_choices() -> None:
    draw = random.Random(0)
    for _ in range(60):
        found = items(draw, 1)
        every = brute(found)
        budget = draw.randint(min(size for size, _ in every), max(size for size, _ in every) + 5)
        keys = allocation.least_loss(found, budget)
        assert keys is not None
        size, lost = taken(found, keys)
        assert size <= budget
        assert lost == pytest.approx(min(lost for _, lost in brute(found, budget=budget)), abs=1e-12)
        limit = draw.uniform(min(lost for _, lost in every), max(lost for _, lost in every))
        keys = allocation.least_bytes(found, limit)
        assert keys is not None
        assert taken(found, keys)[0] == min(size for size, _ in brute(found, loss=limit * (1 + 1e-12)))


def test_no_choice_is_said_as_such() -> None:
    found = items(random.Random(1), 1)
    every = brute(found)
    assert allocation.least_loss(found, min(size for size, _ in every) - 1) is None
    assert allocation.least_bytes(found, 0.5 * min(lost for _, lost in every)) is None


def test_sizes_too_fine_for_the_grid_keep_the_budget_and_lose_next_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "GRID", 2000)
    draw = random.Random(2)
    for _ in range(20):
        found = items(draw, 100_003)
        every = brute(found)
        budget = draw.randint(min(size for size, _ in every), max(size for size, _ in every))
        keys = allocation.least_loss(found, budget)
        assert keys is not None
        size, lost = taken(found, keys)
        assert size <= budget
        slack = len(found) * (max(size for size, _ in every) - min(size for size, _ in every)) / 2000
        assert lost <= min(lost for size, lost in every if size <= max(budget - slack, min(size for size, _ in every))) + 1e-12


def test_a_large_model_is_solved_at_once() -> None:
    draw = random.Random(3)
    layers = [(6144 * 4096, 4096 * 4096, 28672 * 4096, 14336 * 4096)] * 80
    found = [
        [Option(key=bits, bytes=weights * bits // 8, loss=draw.random() * 4.0**-bits) for bits in (2, 3, 4, 8, 16)]
        for sets in layers
        for weights in sets
    ]
    whole = sum(weights for sets in layers for weights in sets)
    keys = allocation.least_loss(found, whole * 7 // 16)
    assert keys is not None
    assert taken(found, keys)[0] <= whole * 7 // 16
    assert len(set(keys)) >= 3


def test_what_engines_fuse_stands_together() -> None:
    names = [f"model.layers.{n}.{name}" for n in (0, 1) for name in ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj", "self_attn.k_proj")]
    linears = [Linear(name=name, out_features=4, in_features=4) for name in (*names, "model.layers.1.self_attn.q_proj")]
    sets = [[linear.name.removeprefix("model.layers.") for linear in found] for found in allocation.together(linears)]
    assert sets == [
        ["0.mlp.down_proj"], ["0.mlp.gate_proj", "0.mlp.up_proj"], ["0.self_attn.k_proj"],
        ["1.mlp.down_proj"], ["1.mlp.gate_proj", "1.mlp.up_proj"], ["1.self_attn.k_proj", "1.self_attn.q_proj"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"choices": "4,5"}, "2,3,4,8,16"),
        ({"choices": ""}, "2,3,4,8,16"),
        ({"choices": "16"}, "not 16 alone"),
        ({"bits": 17.0}, "between 0 and 16"),
        ({"kl": -1.0}, "above 0"),
        ({"rounding": "awq"}, "gptq or rtn"),
        ({"windows": 0}, "windows"),
    ],
)
def test_senseless_values_are_refused(params: dict[str, Scalar], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        methods.get("mixed").check(recipe(**params).steps[0], shape_of())


def test_a_budget_that_nothing_meets_is_refused_from_the_shape_alone() -> None:
    with pytest.raises(UnfitModel, match=r"3 bits per weight; 4-bit weights with their scales take 4\.25 here"):
        methods.get("mixed").check(recipe(bits=3.0, choices="4,8").steps[0], shape_of())
    with pytest.raises(UnfitModel, match="100 inputs"):
        methods.get("mixed").check(recipe().steps[0], shape_of(width=100))


def test_the_promise_fills_the_budget_and_keeps_it() -> None:
    shape, step = shape_of(), recipe(bits=3.5).steps[0]
    promise = methods.get("mixed").promise(step, shape)
    taken = sum(tensor.bytes for name, tensor in promise.tensors.items() if not name.endswith("weight_shape"))
    weights = 3 * 256 * 256
    assert 3.2 <= 8 * taken / weights <= 3.5


def test_what_was_delivered_is_exact_and_refused_where_it_breaks_the_promise() -> None:
    shape, step = shape_of(), recipe(bits=3.6, choices="2,3,4,16").steps[0]
    mixed: Any = methods.get("mixed")
    q, k, down = (f"model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"))
    good = {q: {"bits": 3}, k: {"bits": 3}, down: {"bits": 4}}
    promise = mixed.delivered(step, shape, good)
    assert promise.bytes == 256 * 256 * 10 // 8 + 3 * (256 * 4 * 2 + 16)
    with pytest.raises(BadCheckpoint, match=r"take 3\.9167 bits per weight; the recipe allows 3\.6"):
        mixed.delivered(step, shape, {**good, q: {"bits": 4}, k: {"bits": 4}, down: {"bits": 3}})
    with pytest.raises(BadCheckpoint, match="other bits"):
        mixed.delivered(step, shape, {**good, k: {"bits": 2}})
    with pytest.raises(BadCheckpoint, match="no choice"):
        mixed.delivered(step, shape, {**good, down: {"bits": 8}})
    dense = mixed.delivered(
        replace(step, params={"bits": 8.0, "choices": "3,16"}), shape, {**good, down: {"bits": 16, "kept": mixed.CHOSEN}}
    )
    assert set(dense.changed) == {q, k}
    assert dense.tensors[f"{down}.weight"].dtype == "BF16"
    failed = mixed.delivered(step, shape, {**good, down: {"bits": 16, "kept": mixed.FAILED}})
    assert set(failed.changed) == {q, k}


def tiny(folder: Path, samples: Path, architecture: str = "llama", **sizes: Any) -> Path:
    """Write a small model of random weights, those of its second layer large, with a sample's tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if architecture == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_embd=64, n_layer=2, n_head=2, n_positions=512))
    else:
        widths = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, **sizes}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=2048, max_position_embeddings=512, **widths))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)
    model.save_pretrained(folder)
    checkpoint.carry_over(samples / "sample-llama", folder)
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_sensitivity_is_that_of_the_model_run_whole(samples: Path, tmp_path: Path, architecture: str) -> None:
    """Reference: each weight rounded by hand, the whole model run, KL in float64."""
    import torch

    from runners import dense

    source = tiny(tmp_path / "base", samples, architecture)
    windows = [[(7 * n + 13 * k) % 2048 for k in range(24)] for n in range(5)]
    found = sensitivity.sensitivity(source, windows, 32, tmp_path / "cache").losses
    model, shape, ids = dense.load(source, dtype="float32"), checkpoint.shape(source), torch.tensor(windows)

    def predictions() -> Any:
        with torch.no_grad():
            return model(ids).logits.double().log_softmax(-1)

    base = predictions()
    assert set(found) == {linear.name for linear in shape.linears}
    for linear in shape.linears[::3]:
        module = model.get_submodule(linear.name)
        original = module.weight.data
        for bits in (2, 4):
            rows = (original.t() if shape.conv1d else original).reshape(linear.out_features, -1, 32)
            scale = rows.abs().amax(-1, keepdim=True) / ((2**bits - 1) / 2)
            rounded = ((rows / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale).flatten(1)
            module.weight.data = rounded.t() if shape.conv1d else rounded
            expected = float((base.exp() * (base - predictions())).sum(-1).mean())
            assert found[linear.name][bits] == pytest.approx(expected, rel=1e-3, abs=1e-9)
        module.weight.data = original
    assert all(losses[2] > losses[4] > losses[8] >= 0 for losses in found.values())


@pytest.mark.integration
def test_the_sensitivity_is_measured_once_and_damaged_files_anew(samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = tiny(tmp_path / "base", samples), tmp_path / "cache"
    windows = [list(range(24))] * 2
    first = sensitivity.sensitivity(source, windows, 32, cache)
    assert not first.reused
    (path,) = (cache / "sensitivity").iterdir()
    whole = path.read_text()
    again = sensitivity.sensitivity(source, windows, 32, cache)
    assert again.reused
    assert again.losses == first.losses
    layers = json.loads(whole)["layers"]
    name = next(iter(layers))
    for damaged in (
        whole[:-40],
        "[]",
        whole.replace('"layers"', '"lairs"'),
        json.dumps({"layers": {**layers, name: {**layers[name], "2": "much"}}}),
        json.dumps({"layers": {**layers, name: {**layers[name], "2": -1.0}}}),
        json.dumps({"layers": {**layers, name: {**layers[name], "2": math.nan}}}),
        json.dumps({"layers": {other: found for other, found in layers.items() if other != name}}),
    ):
        path.write_text(damaged)
        anew = sensitivity.sensitivity(source, windows, 32, cache)
        assert not anew.reused
        assert path.read_text() == whole
    assert not sensitivity.sensitivity(source, windows, 16, cache).reused
    assert not sensitivity.sensitivity(source, windows[:1], 32, cache).reused
    monkeypatch.setattr(sensitivity, "VERSION", sensitivity.VERSION + 1)
    assert not sensitivity.sensitivity(source, windows, 32, cache).reused


@pytest.mark.integration
def test_a_model_that_predicts_no_numbers_is_refused(samples: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = tiny(tmp_path / "base", samples)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][0] = math.inf
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unstable, match="no finite numbers"):
        sensitivity.sensitivity(source, [[1, 2, 3]], 32, tmp_path / "cache")


Pressing = Callable[..., tuple[Path, Artifact]]


@pytest.fixture(scope="module")
def pressing(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Pressing:
    """Return what presses the sample Llama, each recipe once, all with one cache."""
    cache = tmp_path_factory.mktemp("cache")
    done: dict[str, tuple[Path, Artifact]] = {}

    def of(asked: Recipe) -> tuple[Path, Artifact]:
        key = repr(asked)
        if key not in done:
            folder = tmp_path_factory.mktemp("mixed") / "made"
            done[key] = folder, press.press(BASE, samples / "sample-llama", asked, folder, cache=cache)
        return done[key]

    of.cache = cache  # type: ignore[attr-defined]
    return of


def kl(folder: Path, base: Path) -> float:
    import torch

    from runners import dense, engines, texts

    ids = texts.tokens("stdlib-heldout", dense.tokenizer(base))
    mine, theirs = engines.for_folder(folder).load(folder, dtype="float32"), engines.load("transformers").load(base, dtype="float32")
    total = 0.0
    for start in range(0, 8 * 512, 512):
        found, wanted = (loaded.logits(ids[start : start + 512]).double().log_softmax(-1) for loaded in (mine, theirs))
        total += float((wanted.exp() * (wanted - found)).sum(-1).mean())
    assert isinstance(found, torch.Tensor)
    return total / 8


@pytest.mark.integration
def test_at_the_same_size_mixed_precision_beats_one_width_for_all(samples: Path, pressing: Pressing) -> None:
    source = samples / "sample-llama"
    folders = {
        "rtn": pressing(recipe("rtn", "W3A16", group_size=64))[0],
        "mixed rtn": pressing(recipe(bits=3.25, rounding="rtn"))[0],
        "mixed gptq": pressing(recipe(bits=3.25))[0],
    }
    found = {name: kl(folder, source) for name, folder in folders.items()}
    bytes_of = {name: sizes.tensor_bytes(folder) for name, folder in folders.items()}
    print({name: round(value, 4) for name, value in found.items()}, bytes_of)
    assert bytes_of["mixed gptq"] == bytes_of["mixed rtn"] <= bytes_of["rtn"]
    assert found["mixed rtn"] < 0.9 * found["rtn"]
    assert found["mixed gptq"] < 0.6 * found["mixed rtn"]


@pytest.mark.integration
def test_the_promised_and_the_delivered_are_told_and_fused_layers_share(samples: Path, pressing: Pressing) -> None:
    asked = recipe(bits=3.25, rounding="rtn")
    folder, made = pressing(asked)
    shape, layers = checkpoint.shape(samples / "sample-llama"), made.steps[0].layers
    assert len({facts["bits"] for facts in layers.values()}) >= 2
    for linears in allocation.together(shape.linears):
        assert len({layers[linear.name]["bits"] for linear in linears}) == 1
    packing = formats.packed(folder, asked, shape, made.steps)
    assert packing.found == packing.expected == 28
    assert packing.bytes_found == packing.bytes_expected
    assert packing.extra == ()
    note = made.steps[0].notes[0]
    numbers = re.search(
        r"at most 3\.25 bits; delivered ([\d.]+) bits .* KL divergence of ([\d.]+) .* on 512 tokens .* add up to ([\d.]+)", note
    )
    assert numbers, note
    mean, measured, predicted = map(float, (numbers[1], numbers[2], numbers[3].rstrip(".")))
    assert mean <= 3.25
    assert measured == pytest.approx(predicted, rel=0.35)
    assert predicted == pytest.approx(sum(float(facts[f"kl_w{facts['bits']}"]) for facts in layers.values()), rel=1e-3)
    groups = checkpoint.read_config(folder)["quantization_config"]["config_groups"].values()
    by_name = {name: group["weights"]["num_bits"] for group in groups for name in group["targets"]}
    assert by_name == {name: facts["bits"] for name, facts in layers.items()}


@pytest.mark.integration
def test_a_quality_budget_is_met_by_measurement_with_less_than_one_width_takes(samples: Path, pressing: Pressing) -> None:
    folder, made = pressing(recipe(kl=0.08, rounding="rtn"))
    found = re.search(r"at most 0\.08 nats/token; .* KL divergence of ([\d.]+)", made.steps[0].notes[0])
    assert found
    assert 0.04 < float(found[1]) <= 0.08
    assert kl(folder, samples / "sample-llama") < 0.12
    assert sizes.tensor_bytes(folder) < sizes.tensor_bytes(pressing(recipe("rtn", "W4A16", group_size=64))[0])
    with pytest.raises(UnfitModel, match=r"budget of 0\.02 nats/token and 3 bits"):
        pressing(recipe(kl=0.02, bits=3.0, rounding="rtn"))
    with pytest.raises(UnfitModel, match="1e-09"):
        pressing(recipe(kl=1e-9, rounding="rtn"))


@pytest.mark.integration
def test_layers_of_16_bits_stay_as_they_are_and_are_named(samples: Path, pressing: Pressing) -> None:
    asked = recipe(bits=6.0, choices="4,16", rounding="rtn")
    folder, made = pressing(asked)
    kept = [name for name, facts in made.steps[0].layers.items() if "kept" in facts]
    assert 0 < len(kept) < 28
    assert all(made.steps[0].layers[name]["bits"] == 16 for name in kept)
    assert set(kept) < set(checkpoint.read_config(folder)["quantization_config"]["ignore"])
    packing = formats.packed(folder, asked, checkpoint.shape(samples / "sample-llama"), made.steps)
    assert packing.found == packing.expected == 28 - len(kept)
    assert packing.bytes_found == packing.bytes_expected
    assert packing.extra == ()


@pytest.mark.integration
def test_the_same_press_gives_the_same_bytes_with_what_is_in_the_cache_or_without(
    samples: Path, pressing: Pressing, tmp_path: Path
) -> None:
    asked = recipe(bits=3.25)
    assert len(list((pressing.cache / "sensitivity").iterdir())) == 1  # type: ignore[attr-defined]
    again = press.press(BASE, samples / "sample-llama", asked, tmp_path / "again", cache=tmp_path / "cache")
    assert again.digest == pressing(asked)[1].digest
    assert again.steps == pressing(asked)[1].steps


@pytest.mark.integration
def test_plain_transformers_loads_it_in_a_clean_process(pressing: Pressing, tmp_path: Path) -> None:
    folder, made = pressing(recipe(bits=3.25))
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as A; m = A.from_pretrained(sys.argv[1]).eval();"
        "out = m(torch.arange(40, 60)[None]).logits; assert out.isfinite().all();"
        "l = m.model.layers[0]; n = lambda w: max(len(set(row.tolist())) for row in w.reshape(-1, 64)[:200].double());"
        "print('LEVELS', *(n(x.weight) for x in (l.mlp.down_proj, l.self_attn.q_proj, l.mlp.up_proj)))"
    )
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder)], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    levels = re.search(r"LEVELS (\d+) (\d+) (\d+)", done.stdout)
    assert levels
    for count, name in zip(levels.groups(), ("mlp.down_proj", "self_attn.q_proj", "mlp.up_proj"), strict=True):
        assert int(count) <= 2 ** int(made.steps[0].layers[f"model.layers.0.{name}"]["bits"])


@pytest.mark.integration
def test_a_budget_that_leaves_every_layer_dense_is_refused(samples: Path, pressing: Pressing) -> None:
    with pytest.raises(UnfitModel, match="No choice out of 4, 16 bits that rounds a layer keeps the budget of 16 bits"):
        pressing(recipe(bits=16.0, choices="4,16", rounding="rtn"))


@pytest.mark.integration
def test_a_hessian_without_a_factor_takes_more_damping(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.manual_seed(0)
    inputs, weight = torch.randn(16, 64), torch.randn(32, 64)
    gram, args = inputs.t() @ inputs, rounding.arguments(4, 32)
    gram -= 0.005 * gram.diagonal().mean() * torch.eye(64)  # rounded sums give such negative eigenvalues
    scale = rounding.scales(weight, args, torch.float32)
    monkeypatch.setattr(rounding, "DAMPS", (1e-9, 0.1))
    found = rounding.gptq(weight, scale, args, gram, 16)
    assert found is not None
    assert found[1] == 0.1
    lost = [float(((made - weight) @ gram * (made - weight)).sum()) for made in (found[0], rounding.nearest(weight, scale, args))]
    assert lost[0] < lost[1]
    assert rounding.gptq(weight, scale, args, gram * torch.nan, 16) is None


@pytest.mark.integration
def test_gpt2_is_refused_with_a_way_out(samples: Path) -> None:
    with pytest.raises(UnfitModel, match="Conv1D") as caught:
        press.check(recipe(), checkpoint.shape(samples / "sample-gpt2"))
    assert caught.value.hint
