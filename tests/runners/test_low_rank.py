"""Low-rank factors: held against float64, against each other by quality, and loaded by the very lines that the card shows."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Calibration, ModelRef, Recipe, Scalar, Step, Thresholds
from hub.errors import BadCheckpoint, UnfitModel, UsageError
from runners import checkpoint, engines, factors, formats, headers, methods, press
from runners.checkpoint import Linear, ModelShape
from runners.headers import Tensor

BASE = ModelRef(repo_id="modelpress-samples/sample", sha="0" * 40)
WIDE = Linear(name="model.layers.0.mlp.up_proj", out_features=768, in_features=256)
SQUARE = Linear(name="model.layers.0.self_attn.q_proj", out_features=256, in_features=256)


def recipe(scheme: str, *, samples: int = 4, **params: Scalar) -> Recipe:
    shown = Calibration(text="stdlib-calibration", samples=samples, sequence_length=128) if scheme == "asvd" else None
    step = Step(method="low_rank", scheme=scheme, params=params, calibration=shown)
    return Recipe(
        name="x", title="x", summary="x", format="low-rank", steps=(step,), thresholds=Thresholds(kl_divergence=1, perplexity_ratio=2)
    )


def shape_of(*linears: Linear) -> ModelShape:
    tensors = {f"{item.name}.weight": Tensor(dtype="BF16", shape=(item.out_features, item.in_features)) for item in linears}
    return ModelShape(
        architecture="LlamaForCausalLM", layers=1, hidden_size=256, intermediate_size=768, vocab_size=8, context=512, dtype="BF16",
        tensors=tensors,
    )  # fmt: skip


def test_a_rank_is_worth_it_only_below_the_break_even() -> None:
    assert factors.most(WIDE) == 191  # 192 · (768 + 256) are the very parameters of the weight
    assert factors.most(SQUARE) == 127
    assert factors.most(Linear(name="x", out_features=1, in_features=9)) == 0


def test_a_uniform_budget_holds_in_every_layer() -> None:
    ranks = factors.uniform([WIDE, SQUARE], 0.8, 1)
    assert ranks == {WIDE.name: 153, SQUARE.name: 102}
    assert factors.uniform([WIDE, SQUARE], 0.8, 8) == {WIDE.name: 152, SQUARE.name: 96}
    assert factors.uniform([WIDE], 0.01, 8) == {WIDE.name: 1}  # rather a small rank than none


def test_energy_gives_the_least_rank_that_keeps_it_and_leaves_layers_dense_that_would_grow() -> None:
    falling = [2.0**-place for place in range(256)]
    assert factors.by_energy([WIDE], {WIDE.name: falling}, 0.99, 1) == {WIDE.name: 7}
    assert factors.by_energy([WIDE], {WIDE.name: falling}, 0.99, 8) == {WIDE.name: 8}
    assert factors.by_energy([WIDE], {WIDE.name: [1.0] * 256}, 0.99, 8) == {WIDE.name: 0}
    assert factors.parameters([WIDE], {WIDE.name: 0}) == 768 * 256


def test_a_budget_over_all_layers_goes_where_energy_is() -> None:
    flat, steep = [1.0] * 256, [0.5**place for place in range(256)]
    ranks = factors.over_all([WIDE, SQUARE], {WIDE.name: steep, SQUARE.name: flat}, 0.6, 8)
    whole = 768 * 256 + 256 * 256
    assert factors.parameters([WIDE, SQUARE], ranks) <= 0.6 * whole
    assert ranks[WIDE.name] < 0.6 * 192
    assert ranks[SQUARE.name] == 0  # it keeps its full rank, since the other one needs next to nothing


def test_a_budget_over_all_layers_loses_no_more_than_the_best_of_all_choices() -> None:
    import itertools
    import random

    draw = random.Random(0)
    linears = [Linear(name=str(n), out_features=out, in_features=8) for n, out in enumerate((8, 16, 12))]
    for share in (0.3, 0.5, 0.7, 0.9):
        energies = {item.name: sorted((draw.random() ** 4 for _ in range(8)), reverse=True) for item in linears}

        def lost(ranks: dict[str, int], energies: dict[str, list[float]] = energies) -> float:
            return sum(sum(energies[name][rank:]) / sum(energies[name]) if rank else 0.0 for name, rank in ranks.items())

        room = share * sum(item.out_features * item.in_features for item in linears)
        every = ({item.name: rank for item, rank in zip(linears, ranks, strict=True)} for ranks in itertools.product(range(8), repeat=3))
        allowed = [ranks for ranks in every if all(ranks[item.name] <= factors.most(item) for item in linears)]
        best = min(lost(ranks) for ranks in allowed if factors.parameters(linears, ranks) <= room)
        found = factors.over_all(linears, energies, share, 1)
        assert factors.parameters(linears, found) <= room
        assert lost(found) <= best + 0.12  # the last singular value that no longer fits


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"share": 0.0}, "share"),
        ({"share": 1.0}, "share"),
        ({"energy": 1.0}, "energy"),
        ({"allocation": "best"}, "uniform or global"),
        ({"multiple": 0}, "multiple"),
        ({"damp": 0.0}, "damp"),
    ],
)
def test_senseless_values_are_refused(params: dict[str, Scalar], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        methods.get("low_rank").check(recipe("svd", **params).steps[0], shape_of(WIDE))


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"share": 0.001}, "No rank that the recipe asks for"),
        ({"share": 0.01, "allocation": "global"}, r"take 4\.7% of the linear layers' parameters; the recipe allows 1\.0%"),
    ],
)
def test_a_budget_that_no_ranks_keep_is_refused_from_shapes(params: dict[str, Scalar], says: str) -> None:
    with pytest.raises(UnfitModel, match=says):
        methods.get("low_rank").check(recipe("svd", **params).steps[0], shape_of(WIDE, SQUARE))


@pytest.mark.integration
def test_what_waits_on_disk_is_no_larger_than_the_layers(samples: Path, tmp_path: Path) -> None:
    from runners.method import PressContext

    source, scratch, target = samples / "sample-llama", tmp_path / "scratch", tmp_path / "target"
    scratch.mkdir()
    target.mkdir()
    context = PressContext(base_folder=source, scratch=scratch, cache=scratch)
    methods.get("low_rank").apply(recipe("svd").steps[0], source, target, context)
    linears = checkpoint.shape(source).linears
    header = 400  # bytes of a file of two tensors
    assert sum(path.stat().st_size - header for path in scratch.iterdir()) <= sum(
        2 * item.out_features * item.in_features for item in linears
    )


def test_asvd_without_a_text_is_refused() -> None:
    step = replace(recipe("asvd").steps[0], calibration=None)
    with pytest.raises(UsageError, match="calibration"):
        methods.get("low_rank").check(step, shape_of(WIDE))


def test_what_was_delivered_is_exact_and_refused_over_the_budget() -> None:
    shape, step = shape_of(WIDE, SQUARE), recipe("svd", energy=0.9, share=0.5).steps[0]
    low_rank: Any = methods.get("low_rank")
    promise = low_rank.delivered(step, shape, {WIDE.name: {"rank": 10}, SQUARE.name: {"kept": "dear"}})
    assert promise.bytes == 2 * (10 * (768 + 256) + 256 * 256)
    assert set(promise.changed) == {WIDE.name}
    with pytest.raises(BadCheckpoint, match=r"take 78\.1% of the linear layers' parameters; the recipe allows 50\.0%"):
        low_rank.delivered(step, shape, {WIDE.name: {"rank": 150}, SQUARE.name: {"rank": 100}})
    with pytest.raises(BadCheckpoint, match="rank 192"):
        low_rank.delivered(step, shape, {WIDE.name: {"rank": 192}})
    with pytest.raises(BadCheckpoint, match="No rank"):
        low_rank.delivered(step, shape, {})


@pytest.mark.integration
def test_svd_is_that_of_float64_and_loses_the_tail_of_singular_values() -> None:
    import numpy as np
    import torch

    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    found = factors.decompose(weight, 14)
    out, into = found.split(9)
    left, values, right = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    reference = left[:, :9] * values[:9] @ right[:9]
    assert np.abs((out @ into).double().numpy() - reference).max() < 1e-5
    lost = np.linalg.norm(weight.double().numpy() - (out @ into).double().numpy()) ** 2
    assert lost == pytest.approx((values[9:] ** 2).sum(), rel=1e-5)
    assert sum(found.energies[9:]) == pytest.approx((values[9:] ** 2).sum(), rel=1e-5)


@pytest.mark.integration
def test_asvd_keeps_the_output_best_of_all_matrices_of_its_rank() -> None:
    """Reference: the best rank-k approximation of W X itself, in float64 (Eckart-Young), and the error that plain SVD makes of it."""
    import numpy as np
    import torch

    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(40, 24, generator=generator)
    inputs = torch.randn(24, 500, generator=generator) * torch.logspace(0, 2, 24)[:, None]
    found = factors.decompose(weight, 14, inputs @ inputs.t(), damp=1e-9)
    target = weight.double().numpy() @ inputs.double().numpy()

    def lost(out: Any, into: Any) -> float:
        return float(np.linalg.norm(target - (out.double() @ into.double() @ inputs.double()).numpy()) ** 2)

    tail = float((np.linalg.svd(target, compute_uv=False)[9:] ** 2).sum())
    mine, plain = lost(*found.split(9)), lost(*factors.decompose(weight, 14).split(9))
    print({"tail": tail, "asvd": mine, "svd": plain})
    assert mine == pytest.approx(tail, rel=1e-4)
    assert sum(found.energies[9:]) == pytest.approx(tail, rel=1e-4)
    assert mine < 0.5 * plain


@pytest.mark.integration
def test_a_singular_gram_matrix_takes_more_damping_and_a_hopeless_one_is_said() -> None:
    import torch

    weight, rows = torch.randn(6, 5), torch.randn(2, 5)
    gram = (rows.t() @ rows).double()
    gram -= 1e-4 * gram.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    found = factors.decompose(weight, 2, gram, damp=1e-5)
    assert found.damp == pytest.approx(1e-3)
    assert found.right.isfinite().all()
    with pytest.raises(ArithmeticError, match="no Cholesky factor"):
        factors.decompose(weight, 2, -torch.eye(5))


def perplexity(folder: Path, ids: list[int]) -> float:
    import torch

    loaded = engines.for_folder(folder).load(folder, dtype="float32")
    total = 0.0
    for start in range(0, len(ids), 512):
        window = ids[start : start + 512]
        scores = loaded.logits(window)[:-1].double().log_softmax(-1)
        total -= float(scores.gather(-1, torch.tensor(window[1:])[:, None]).mean())
    return math.exp(total * 512 / len(ids))


@pytest.mark.integration
def test_at_the_same_size_activation_aware_svd_beats_plain_svd_and_a_common_budget_beats_equal_shares(
    samples: Path, tmp_path: Path
) -> None:
    from runners import dense, texts

    source = samples / "sample-llama"
    ids = texts.tokens("stdlib-heldout", dense.tokenizer(source))[: 8 * 512]
    found, sizes = {"base": perplexity(source, ids)}, {}
    for name, asked in {
        "svd": recipe("svd"),
        "asvd": recipe("asvd", samples=32),
        "asvd global": recipe("asvd", samples=32, allocation="global", share=0.78),
    }.items():
        press.press(BASE, source, asked, tmp_path / name)
        found[name] = perplexity(tmp_path / name, ids)
        sizes[name] = sum(stored.tensor.bytes for stored in headers.stored_tensors(tmp_path / name).values())
    print({name: round(value, 2) for name, value in found.items()}, sizes)
    assert sizes["svd"] == sizes["asvd"] >= sizes["asvd global"]
    assert found["base"] < found["asvd global"] < found["asvd"] < 0.8 * found["svd"]


@pytest.fixture(scope="module")
def pressed(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A factorized Llama in which some layers stay dense, and a GPT-2, whose linears are Conv1D with biases."""
    folders = {}
    for name, asked in (("sample-llama", recipe("asvd", allocation="global")), ("sample-gpt2", recipe("svd"))):
        folders[name] = tmp_path_factory.mktemp("low-rank") / name
        press.press(BASE, samples / name, asked, folders[name])
    return folders


@pytest.mark.integration
@pytest.mark.parametrize("name", ["sample-llama", "sample-gpt2"])
def test_the_engine_runs_the_product_of_the_factors(pressed: dict[str, Path], samples: Path, name: str) -> None:
    import torch
    from safetensors.torch import load_file

    folder, base = pressed[name], samples / name
    steps = checkpoint.read_manifest(folder).steps  # type: ignore[union-attr]
    kept = [layer for layer, facts in steps[0].layers.items() if "kept" in facts]
    assert bool(kept) == (name == "sample-llama")
    assert all(facts.keys() & {"rank", "kept"} for facts in steps[0].layers.values())
    packing = formats.packed(folder, checkpoint.read_manifest(folder).recipe, checkpoint.shape(base), steps)  # type: ignore[union-attr]
    assert packing.found == packing.expected == len(steps[0].layers) - len(kept)
    assert packing.bytes_found == packing.bytes_expected
    assert packing.extra == ()

    loaded = engines.for_folder(folder).load(folder, dtype="float32")
    twin = engines.load("transformers").load(base, dtype="float32")
    tensors = load_file(folder / "model.low-rank.safetensors")
    for layer, rank in checkpoint.read_config(folder)["quantization_config"]["ranks"].items():
        out, into = tensors[f"{layer}.factor_out.weight"].float(), tensors[f"{layer}.factor_in.weight"].float()
        assert out.shape[1] == into.shape[0] == rank
        weight = twin.model.get_submodule(layer).weight  # type: ignore[attr-defined]
        weight.data = (out @ into).t().contiguous() if name == "sample-gpt2" else out @ into
    ids = list(range(40, 104))
    assert torch.allclose(loaded.logits(ids), twin.logits(ids), atol=2e-3)
    assert len(loaded.generate(ids, 8)) == 8
    assert engines.for_folder(folder).count_parameters(folder) == checkpoint.shape(base).parameters


@pytest.mark.integration
@pytest.mark.parametrize("name", ["sample-llama", "sample-gpt2"])
def test_the_lines_on_the_card_load_it_in_a_clean_process(pressed: dict[str, Path], tmp_path: Path, name: str) -> None:
    import jinja2

    template = (Path(__file__).resolve().parents[2] / "templates" / "use" / "low-rank.md.j2").read_text(encoding="utf-8")
    card = jinja2.Environment(trim_blocks=True).from_string(template).render(repo_id="x/y", requirements="torch", endpoint=None, chat=False)
    lines = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert lines
    loading = lines[1].split("tokenizer =")[0]
    assert len([line for line in loading.splitlines() if line]) <= 20
    ids = list(range(40, 60))
    shown = lines[1] + f"\nprint('LOGITS', model(torch.tensor([{ids}])).logits[0, -1, :5].tolist(), model.dtype)\n"
    (tmp_path / "MODEL").symlink_to(pressed[name])
    (tmp_path / "card.py").write_text(shown)
    clean = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "card.py"], cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"LOGITS (\[.*\]) torch.bfloat16", done.stdout)
    assert found
    expected = engines.for_folder(pressed[name]).load(pressed[name]).logits(ids)[-1, :5].tolist()
    assert json.loads(found[1]) == pytest.approx(expected, rel=0.02, abs=0.1)
    assert done.stdout.partition("LOGITS")[0].strip()


@pytest.mark.integration
def test_transformers_refuses_the_folder_and_under_the_usual_name_its_random_weights_are_seen(
    pressed: dict[str, Path], tmp_path: Path
) -> None:
    plain = engines.load("transformers")
    with pytest.raises(BadCheckpoint, match=r"model\.safetensors"):
        plain.load(pressed["sample-llama"])
    shutil.copytree(pressed["sample-llama"], tmp_path / "renamed")
    (tmp_path / "renamed" / "model.low-rank.safetensors").rename(tmp_path / "renamed" / "model.safetensors")
    defects = plain.load(tmp_path / "renamed").defects
    assert any("'low-rank' was skipped" in defect for defect in defects)
    assert any("no stored tensor fills" in defect for defect in defects)


@pytest.mark.integration
@pytest.mark.parametrize("harm", ["missing", "stranger", "shape", "ranks", "layer"])
def test_a_damaged_folder_is_refused_never_filled_up(pressed: dict[str, Path], tmp_path: Path, harm: str) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "harmed"
    shutil.copytree(pressed["sample-gpt2"], folder)
    path = folder / "model.low-rank.safetensors"
    tensors, config = load_file(path), checkpoint.read_config(folder)
    one = "transformer.h.1.mlp.c_fc"
    if harm == "missing":
        del tensors[f"{one}.factor_in.weight"]
    elif harm == "stranger":
        tensors["transformer.h.9.mlp.c_fc.factor_in.weight"] = tensors[f"{one}.factor_in.weight"].clone()
    elif harm == "shape":
        tensors[f"{one}.factor_in.weight"] = tensors[f"{one}.factor_in.weight"][:, :-1].contiguous()
    elif harm == "ranks":
        config["quantization_config"]["ranks"] = [1]
    else:
        config["quantization_config"]["ranks"]["transformer.h.9.mlp.c_fc"] = 8
    save_file(tensors, path, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadCheckpoint):
        engines.for_folder(folder).load(folder)


def tiny(folder: Path, **widths: Any) -> Path:
    """Write a Llama of two layers with random weights and the sample's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2, **widths}
    LlamaForCausalLM(LlamaConfig(vocab_size=2048, max_position_embeddings=512, **sizes)).save_pretrained(folder)
    return folder


@pytest.mark.integration
def test_a_model_in_shards_is_pressed_and_loaded(samples: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(samples / "sample-llama")
    model.save_pretrained(tmp_path / "base", max_shard_size="3MB")
    checkpoint.carry_over(samples / "sample-llama", tmp_path / "base")
    made = press.press(BASE, tmp_path / "base", recipe("svd"), tmp_path / "made")
    weights = [file.path for file in made.files if file.path.endswith(".safetensors")]
    assert len(weights) > 1
    assert all(path.endswith(".low-rank.safetensors") for path in weights)
    assert not (tmp_path / "made" / headers.INDEX).exists()
    assert engines.for_folder(tmp_path / "made").load(tmp_path / "made").logits([1, 2, 3]).isfinite().all()


@pytest.mark.integration
def test_the_same_press_gives_the_same_bytes(samples: Path, pressed: dict[str, Path], tmp_path: Path) -> None:
    again = press.press(BASE, samples / "sample-llama", recipe("asvd", allocation="global"), tmp_path / "again")
    before = checkpoint.read_manifest(pressed["sample-llama"])
    assert before is not None
    assert again.digest == before.digest


@pytest.mark.integration
def test_layers_with_nan_stay_and_are_named_and_an_energy_that_saves_nothing_is_refused(samples: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = tiny(tmp_path / "base")
    checkpoint.carry_over(samples / "sample-llama", base)
    with pytest.raises(UnfitModel, match="No rank that the recipe asks for"):
        press.press(BASE, base, recipe("svd", energy=0.999, share=1.0), tmp_path / "made")
    tensors = load_file(base / "model.safetensors")
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.weight"][3, 5] = math.nan
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    layers = press.press(BASE, base, recipe("svd"), tmp_path / "made").steps[0].layers
    assert "NaN" in str(layers[name]["kept"])
    assert [layer for layer, facts in layers.items() if "kept" in facts] == [name]
    stored = headers.stored_tensors(tmp_path / "made")
    assert f"{name}.weight" in stored
    assert f"{name}.factor_in.weight" not in stored
