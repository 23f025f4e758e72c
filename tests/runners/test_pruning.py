from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Calibration, ModelRef, Recipe, Step, StepRecord
from hub.errors import BadCheckpoint, UnfitModel, UsageError
from runners import checkpoint, dense, formats, layerwise, masks, method, methods, press, recipes, texts
from runners.checkpoint import ModelShape
from runners.headers import Tensor
from runners.methods import magnitude, sparsegpt, taylor, wanda

pytestmark = pytest.mark.integration
BASE = ModelRef(repo_id="modelpress-samples/sample", sha="0" * 40)
SHOWN = Calibration(text="stdlib-calibration", samples=4, sequence_length=128)
PRUNING = ["wanda", "sparsegpt", "magnitude", "random_prune", "taylor"]


def step(name: str, scheme: str = "unstructured", calibration: Calibration = SHOWN, **params: str | int | float) -> Step:
    needs = name in ("wanda", "sparsegpt", "taylor")
    return Step(method=name, scheme=scheme, params=params, calibration=calibration if needs else None)


def recipe(*steps: Step) -> Recipe:
    return replace(recipes.load("wanda-50"), steps=steps)


def drawn(*shape: int, seed: int = 0) -> Any:
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(folder: Path) -> dict[str, Any]:
    """Return the weights of all decoder linears as (out, in)."""
    from safetensors.torch import load_file

    shape, tensors = checkpoint.shape(folder), load_file(folder / "model.safetensors")
    found = {linear.name: tensors[f"{linear.name}.weight"] for linear in shape.linears}
    return {name: weight.t() if shape.conv1d else weight for name, weight in found.items()}


# --- golden: references in float64, plain Python over numbers ---


def lowest_by_hand(scores: list[float], count: int) -> set[int]:
    return set(sorted(range(len(scores)), key=lambda place: (scores[place], place))[:count])


def rows_by_hand(scores: Any, scheme: str, sparsity: float) -> list[list[bool]]:
    """Return which go in every row: the lowest share of it, or the lowest half of every two, four or eight in order."""
    size = int(scheme[-1]) if ":" in scheme else scores.shape[1]
    gone = []
    for row in scores.double().tolist():
        places: set[int] = set()
        for start in range(0, len(row), size):
            places |= {start + place for place in lowest_by_hand(row[start : start + size], round(size * sparsity))}
        gone.append([place in places for place in range(len(row))])
    return gone


@pytest.mark.parametrize(("scheme", "sparsity"), [("unstructured", 0.5), ("unstructured", 0.3), ("2:4", 0.5), ("4:8", 0.5)])
def test_wanda_s_mask_is_the_paper_s(scheme: str, sparsity: float) -> None:
    weight, inputs = drawn(24, 32), drawn(100, 32, seed=1) * drawn(32, seed=2).exp()
    found = wanda.mask(weight, inputs.norm(dim=0), sparsity=sparsity, scheme=scheme)
    norms = inputs.double().square().sum(dim=0).sqrt()
    assert found.tolist() == rows_by_hand(weight.double().abs() * norms, scheme, sparsity)


@pytest.mark.parametrize("scheme", ["unstructured", "2:4", "4:8"])
def test_magnitude_s_mask_by_row_is_the_plain_one(scheme: str) -> None:
    weight = drawn(24, 32)
    scope = "row" if scheme == "unstructured" else "layer"
    assert magnitude.mask(weight, sparsity=0.5, scheme=scheme, scope=scope).tolist() == rows_by_hand(weight.abs(), scheme, 0.5)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_magnitude_s_mask_by_layer_is_the_plain_one(sparsity: float) -> None:
    import torch

    weight = drawn(1200, 12).to(torch.bfloat16)  # as often in bfloat16, many are equal
    found = magnitude.mask(weight.float(), sparsity=sparsity, scheme="unstructured", scope="layer").flatten()
    wanted = lowest_by_hand(weight.double().abs().flatten().tolist(), round(weight.numel() * sparsity))
    assert set(found.nonzero().flatten().tolist()) == wanted


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_blocks_go_whole_and_by_their_norm(norm: str) -> None:
    weight, power = drawn(16, 6), 1 if norm == "l1" else 2
    found = magnitude.mask(weight, sparsity=0.25, scheme="4x1", scope="layer", norm=norm)
    scores = [sum(abs(float(weight[4 * b + k, c])) ** power for k in range(4)) for b in range(4) for c in range(6)]
    wanted = lowest_by_hand(scores, 6)
    assert found.tolist() == [[(row // 4) * 6 + column in wanted for column in range(6)] for row in range(16)]


def test_l1_and_l2_differ_on_blocks() -> None:
    weight = drawn(64, 32)
    l1, l2 = (magnitude.mask(weight, sparsity=0.5, scheme="4x1", scope="layer", norm=norm) for norm in ("l1", "l2"))
    assert (l1 != l2).any()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.87])
def test_the_cut_over_all_layers_is_exact(share: float) -> None:
    import torch

    parts = [drawn(30, 20), drawn(40, 10, seed=1).to(torch.bfloat16), drawn(50, 8, seed=2).to(torch.float16) / 64, torch.zeros(5, 5)]
    cut = masks.Cut(lambda: iter(parts), share)
    gone = torch.cat([cut.gone(part.float()).flatten() for part in parts])
    values = torch.cat([part.double().abs().flatten() for part in parts])
    assert set(gone.nonzero().flatten().tolist()) == lowest_by_hand(values.tolist(), round(len(values) * share))


@pytest.mark.parametrize("base", ["sample-llama", "sample-gpt2"])
def test_taylor_s_scores_are_those_of_float64(samples: Path, base: str) -> None:
    import torch

    names = [linear.name for linear in checkpoint.shape(samples / base).linears]
    windows = torch.randint(0, 2000, (3, 40), generator=torch.Generator().manual_seed(0)).tolist()
    model = dense.load(samples / base, dtype="float32")
    found = taylor.scores(model, names, windows)
    assert all(parameter.grad is None for parameter in model.parameters())
    model = model.double()
    wanted: dict[str, Any] = dict.fromkeys(names, 0.0)
    for window in windows:
        logits = model(torch.tensor([window])).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]))
        parameters = [model.get_submodule(name).weight for name in names]
        for name, weight, gradient in zip(names, parameters, torch.autograd.grad(loss, parameters), strict=True):
            wanted[name] = wanted[name] + (gradient * weight).detach().abs()
    for name in names:
        assert float((found[name] - wanted[name]).norm() / wanted[name].norm()) < 1e-4
        mine, theirs = (masks.least(scores, sparsity=0.5, scheme="unstructured") for scores in (found[name], wanted[name]))
        assert float((mine != theirs).double().mean()) < 1e-3


def obs_by_hand(weight: Any, gram: Any, sparsity: float, block: int) -> Any:
    """Return the weight pruned as Optimal Brain Surgeon does it column by column, each time with a fresh inverse over what is left."""
    import torch

    left = weight.double().clone()
    columns = left.shape[1]
    for start in range(0, columns, block):
        end = min(start + block, columns)
        diagonal = torch.stack([torch.linalg.inv(gram[place:, place:])[0, 0] for place in range(start, end)])
        scores = (left[:, start:end].square() / diagonal).flatten().tolist()
        gone = lowest_by_hand(scores, round(len(scores) * sparsity))
        for place in range(start, end):
            inverse = torch.linalg.inv(gram[place:, place:])
            for row in range(len(left)):
                if row * (end - start) + place - start in gone:
                    left[row, place:] -= left[row, place] / inverse[0, 0] * inverse[0]
                    left[row, place] = 0.0
    return left


@pytest.mark.parametrize("block", [4, 6, 128])
def test_sparsegpt_is_optimal_brain_surgeon_column_by_column(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    import torch

    monkeypatch.setattr(sparsegpt, "BLOCK", block)
    weight, inputs = drawn(5, 12).double(), (drawn(200, 12, seed=1) @ drawn(12, 12, seed=2)).double()
    gram = inputs.t() @ inputs
    upper, damp = sparsegpt.factor(gram, 1e-9)
    assert damp == 1e-9
    found = sparsegpt.prune(weight, upper, sparsity=0.5, scheme="unstructured")
    torch.testing.assert_close(found, obs_by_hand(weight, gram, 0.5, block), rtol=1e-5, atol=1e-5)
    plain = weight.masked_fill(found == 0, 0.0)
    assert ((weight - found) @ inputs.t()).norm() < ((weight - plain) @ inputs.t()).norm()


@pytest.mark.parametrize("scheme", ["2:4", "4:8"])
def test_sparsegpt_s_patterns_hold(scheme: str) -> None:
    weight, inputs = drawn(6, 136), drawn(300, 136, seed=1)
    upper, _ = sparsegpt.factor(inputs.t() @ inputs, 0.01)
    found = sparsegpt.prune(weight, upper, sparsity=0.5, scheme=scheme)
    size = int(scheme[-1])
    assert ((found.reshape(-1, size) == 0).sum(dim=1) == size // 2).all()


def test_damping_is_raised_until_there_is_a_factor_and_else_the_layer_is_kept() -> None:
    import torch

    upper, damp = sparsegpt.factor(torch.tensor([[1.0, 1.5], [1.5, 1.0]]), 0.01)
    assert damp == pytest.approx(1.0)
    assert upper.isfinite().all()
    with pytest.raises(layerwise.KeptError, match="no Cholesky factor, not even with a damping of 100"):
        sparsegpt.factor(torch.tensor([[1.0, 1e6], [1e6, 1.0]]), 0.01)
    upper, damp = sparsegpt.factor(torch.zeros(3, 3), 0.01)  # what no input ever reaches
    assert damp == 0.01
    assert upper.isfinite().all()


# --- what lies on disk ---


@pytest.mark.parametrize("base", ["sample-llama", "sample-qwen3-chat", "sample-gpt2"])
@pytest.mark.parametrize("name", PRUNING)
def test_half_of_each_linear_is_zero_and_all_else_is_the_base_s(samples: Path, tmp_path: Path, name: str, base: str) -> None:
    import torch
    from safetensors.torch import load_file

    source, made = samples / base, tmp_path / "made"
    press.press(BASE, source, recipe(step(name)), made)
    old, new = load_file(source / "model.safetensors"), load_file(made / "model.safetensors")
    linears = weights(made)
    assert old.keys() == new.keys()
    assert (made / "config.json").read_bytes() == (source / "config.json").read_bytes()
    for tensor, found in new.items():
        assert found.dtype == old[tensor].dtype == torch.bfloat16
        if tensor.removesuffix(".weight") in linears:
            gone = found == 0
            assert float(gone.float().mean()) == pytest.approx(0.5, abs=2e-3)
            assert name == "sparsegpt" or torch.equal(found[~gone], old[tensor][~gone])
        else:
            assert torch.equal(found, old[tensor])
    rows = torch.stack([(weight == 0).float().mean(dim=1).std() for weight in linears.values()])
    assert bool((rows < 1e-4).all()) == (name == "wanda")  # Wanda alone is to prune every row alike


@pytest.mark.parametrize("base", ["sample-llama", "sample-gpt2"])
@pytest.mark.parametrize("name", PRUNING)
def test_two_of_four_hold_along_the_inputs(samples: Path, tmp_path: Path, name: str, base: str) -> None:
    press.press(BASE, samples / base, recipe(step(name, "2:4")), tmp_path / "made")
    for weight in weights(tmp_path / "made").values():
        assert ((weight.reshape(-1, 4) == 0).sum(dim=1) >= 2).all()
        assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=1e-3)


def test_wanda_s_zeros_on_a_model_are_those_of_float64(samples: Path, tmp_path: Path) -> None:
    import torch

    source = samples / "sample-llama"
    press.press(BASE, source, recipe(step("wanda")), tmp_path / "made")
    found, base = weights(tmp_path / "made"), weights(source)
    model = dense.load(source, dtype="float32").double()
    windows = torch.tensor(texts.windows(SHOWN, dense.tokenizer(source)))
    root = "model.layers."
    shown: dict[str, Any] = {}
    for layer in range(2):  # the second is shown what the first makes of it once pruned
        names = [name for name in base if name.startswith(f"{root}{layer}.")]
        hooks = [
            model.get_submodule(name).register_forward_pre_hook(lambda _, given, name=name: shown.update({name: given[0].flatten(0, 1)}))
            for name in names
        ]
        with torch.no_grad():
            model.base_model(windows, use_cache=False)
        for hook in hooks:
            hook.remove()
        for name in names:
            scores = base[name].double().abs() * shown[name].norm(dim=0)
            least = scores.argsort(dim=1)[:, : scores.shape[1] // 2]
            gone = torch.zeros_like(scores, dtype=torch.bool).scatter(1, least, True)
            assert float((gone != (found[name] == 0)).double().mean()) < 1e-4
            model.get_submodule(name).weight.data[gone] = 0.0


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
def test_zeros_over_all_layers_are_told_by_layer_and_hold_as_a_whole(samples: Path, tmp_path: Path, name: str) -> None:
    source, made = samples / "sample-gpt2", tmp_path / "made"
    wanted = recipe(step(name, scope="global", sparsity=0.6))
    artifact = press.press(BASE, source, wanted, made)
    told = {layer: facts["zeros"] for layer, facts in artifact.steps[0].layers.items()}
    linears = weights(made)
    assert told.keys() == linears.keys()
    assert len(set(told.values())) > 3
    for layer, weight in linears.items():
        assert told[layer] == pytest.approx(float((weight == 0).double().mean()), abs=1e-6)
    total = sum(int((weight == 0).sum()) for weight in linears.values()) / sum(weight.numel() for weight in linears.values())
    assert total == pytest.approx(0.6, abs=1e-3)
    shape = checkpoint.shape(source)
    assert formats.promise_of(wanted, shape, artifact.steps).shape.zeros == told
    packing = formats.packed(made, wanted, shape, artifact.steps)
    assert packing.found == packing.expected == 16
    few = {layer: {"zeros": 0.5} for layer in told}
    with pytest.raises(BadCheckpoint, match=r"left 0\.500 zeros where 0\.6"):
        formats.promise_of(wanted, shape, (StepRecord(method=name, layers=few),))


@pytest.mark.parametrize("name", PRUNING)
def test_zeros_of_a_step_before_stay(samples: Path, tmp_path: Path, name: str) -> None:
    source = samples / "sample-llama"
    first = step("random_prune", sparsity=0.4, seed=7)
    press.press(BASE, source, recipe(first), tmp_path / "first")
    chain = recipe(first, step(name, sparsity=0.5))
    artifact = press.press(BASE, source, chain, tmp_path / "both")
    before, after = weights(tmp_path / "first"), weights(tmp_path / "both")
    for layer, weight in before.items():
        assert bool((after[layer][weight == 0] == 0).all())
        assert float((after[layer] == 0).double().mean()) == pytest.approx(0.5, abs=0.02)
    packing = formats.packed(tmp_path / "both", chain, checkpoint.shape(source), artifact.steps)
    assert packing.found == packing.expected
    fewer = masks.promise(replace(checkpoint.shape(source), zeros=dict.fromkeys(before, 0.7)), 0.5)
    assert set(fewer.shape.zeros.values()) == {0.7}


def test_the_lot_is_drawn_by_seed_and_layer(samples: Path, tmp_path: Path) -> None:
    made = {}
    for number, seed in enumerate((0, 0, 1)):
        made[number] = press.press(BASE, samples / "sample-llama", recipe(step("random_prune", seed=seed)), tmp_path / str(number)).digest
    assert made[0] == made[1] != made[2]
    found = weights(tmp_path / "0")
    one, other = (found[f"model.layers.{place}.mlp.up_proj"] == 0 for place in (0, 1))
    assert 0.2 < float((one & other).double().mean()) < 0.3


@pytest.mark.parametrize("name", ["sparsegpt", "taylor", "magnitude"])
def test_the_same_press_gives_the_same_bytes(samples: Path, tmp_path: Path, name: str) -> None:
    digests = {press.press(BASE, samples / "sample-qwen3-chat", recipe(step(name)), tmp_path / place).digest for place in "ab"}
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "magnitude"])
def test_a_layer_that_fails_numerically_is_kept_and_named(samples: Path, tmp_path: Path, name: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source, target, broken = tmp_path / "base", tmp_path / "made", "model.layers.3.mlp.down_proj"
    shutil.copytree(samples / "sample-llama", source)
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    tensors[f"{broken}.weight"][3, 5] = float("inf")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    context = method.PressContext(base_folder=source, scratch=tmp_path, cache=tmp_path)
    outcome = methods.get(name).apply(step(name), source, target, context)
    assert outcome.layers == {broken: {"kept": "its weights hold NaN or infinity"}}
    assert torch.equal(load_file(target / "model.safetensors")[f"{broken}.weight"], tensors[f"{broken}.weight"])
    record = StepRecord(method=name, layers=outcome.layers)
    packing = formats.packed(target, recipe(step(name)), checkpoint.shape(source), (record,))
    assert packing.found == packing.expected == 27


# --- what does not fit ---


def narrow(width: int, mlp: int, outputs: int | None = None) -> ModelShape:
    tensors = {"model.embed_tokens.weight": (64, width), "model.layers.0.mlp.down_proj.weight": (outputs or width, mlp)}
    return ModelShape(
        architecture="LlamaForCausalLM", layers=1, hidden_size=width, intermediate_size=mlp, vocab_size=64, context=512, dtype="BF16",
        tensors={name: Tensor(dtype="BF16", shape=shape) for name, shape in tensors.items()},
    )  # fmt: skip


@pytest.mark.parametrize("name", PRUNING)
@pytest.mark.parametrize(("scheme", "mlp"), [("2:4", 42), ("4:8", 44)])
def test_widths_that_a_pattern_does_not_divide_are_refused(name: str, scheme: str, mlp: int) -> None:
    with pytest.raises(UnfitModel, match=f"{scheme} needs inputs divisible by {scheme[-1]}; model.layers.0.mlp.down_proj has {mlp}"):
        methods.get(name).check(step(name, scheme), narrow(64, mlp))


def test_outputs_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(UnfitModel, match=r"outputs divisible by 4; model\.layers\.0\.mlp\.down_proj has 66"):
        magnitude.check(step("magnitude", "4x1"), narrow(64, 44, outputs=66))


@pytest.mark.parametrize(
    "asked",
    [
        step("magnitude", scope="channel"),
        step("magnitude", "2:4", scope="row"),
        step("magnitude", "4x1", scope="global"),
        step("magnitude", norm="l2"),
        step("magnitude", "4x1", norm="l3"),
        step("magnitude", sparsity=0.0),
        step("random_prune", seed=-1),
        step("sparsegpt", damp=0.0),
        step("sparsegpt", "4:8", sparsity=0.6),
        step("taylor", scope="row"),
        step("taylor", "2:4", scope="global"),
        replace(step("taylor"), calibration=None),
    ],
)
def test_senseless_options_are_refused(asked: Step) -> None:
    with pytest.raises(UsageError) as caught:
        methods.get(asked.method).check(asked, narrow(64, 64))
    assert caught.value.hint


# --- quality ---


def perplexity(folder: Path, ids: Any) -> float:
    import torch

    model = dense.load(folder, dtype="float32")
    with torch.inference_mode():
        losses = [model(row[None], labels=row[None]).loss.double() for row in ids]
    return math.exp(float(torch.stack(losses).mean()))


def test_the_better_the_criterion_the_less_is_lost(samples: Path, tmp_path: Path) -> None:
    import torch

    source = samples / "sample-llama"
    ids = torch.tensor(texts.tokens("stdlib-heldout", dense.tokenizer(source)))[: 40 * 512].view(-1, 512)[::4]
    found = {"base": perplexity(source, ids)}
    for name in ("sparsegpt-50", "wanda-50", "taylor-50-global", "magnitude-50", "magnitude-50-row", "magnitude-50-global", "random-50"):
        shipped = recipes.load(name)
        steps = tuple(replace(one, calibration=one.calibration and replace(one.calibration, samples=16)) for one in shipped.steps)
        press.press(BASE, source, replace(shipped, steps=steps), tmp_path / name)
        found[name] = perplexity(tmp_path / name, ids)
    print({name: round(value, 2) for name, value in found.items()})
    # Wanda is not held against magnitude here: on a model so small its smaller errors by layer (below) are none by perplexity.
    assert found["base"] < found["sparsegpt-50"] < min(found["wanda-50"], found["magnitude-50"], found["magnitude-50-row"])
    assert found["taylor-50-global"] < found["magnitude-50-global"]
    assert max(value for name, value in found.items() if name != "random-50") < found["random-50"] / 10


@pytest.mark.parametrize("scheme", ["unstructured", "2:4"])
def test_sparsegpt_loses_less_of_every_linear_s_output_than_wanda_and_wanda_than_magnitude(samples: Path, scheme: str) -> None:
    source, worst = samples / "sample-llama", {"sparsegpt/wanda": 0.0, "wanda/magnitude": 0.0}
    shown = texts.windows(replace(SHOWN, samples=16, sequence_length=256), dense.tokenizer(source))
    for layer in layerwise.walk(source, shown, gram=True):
        for name, inputs in layer.inputs.items():
            weight, gram = layer.weight(name), inputs.gram
            by = {
                "magnitude": weight.masked_fill(masks.least(weight.abs(), sparsity=0.5, scheme=scheme, scope="row"), 0.0),
                "wanda": weight.masked_fill(wanda.mask(weight, inputs.norms, sparsity=0.5, scheme=scheme), 0.0),
                "sparsegpt": sparsegpt.prune(weight, sparsegpt.factor(gram, 0.01)[0], sparsity=0.5, scheme=scheme),
            }
            lost = {criterion: float((((weight - pruned) @ gram) * (weight - pruned)).sum()) for criterion, pruned in by.items()}
            for pair in worst:
                better, plain = pair.split("/")
                worst[pair] = max(worst[pair], lost[better] / lost[plain])
    print({pair: round(ratio, 3) for pair, ratio in worst.items()})
    assert all(ratio < 1 for ratio in worst.values())


@pytest.mark.shared
def test_sparsegpt_saves_a_real_model_that_magnitude_ruins(shared: Path, tmp_path: Path) -> None:
    import torch

    source = shared / "models" / "stories260K"
    stories = json.loads((shared / "data" / "tinystories-sample" / "tinystories_1000.json").read_text(encoding="utf-8"))
    tokenizer = dense.tokenizer(source)
    ids = [torch.tensor([1, *tokenizer(story, add_special_tokens=False)["input_ids"]][:512]) for story in stories[:40]]
    text = tmp_path / "stories.txt"
    text.write_text("\n".join(stories[100:400]), encoding="utf-8")
    shown = Calibration(text=str(text), samples=64, sequence_length=256)
    found = {"base": perplexity(source, ids)}
    for name in ("sparsegpt", "wanda", "magnitude"):
        press.press(BASE, source, recipe(step(name, calibration=shown)), tmp_path / name)
        found[name] = perplexity(tmp_path / name, ids)
    print({name: round(value, 2) for name, value in found.items()})
    assert found["sparsegpt"] < found["wanda"] < found["magnitude"]
    assert found["sparsegpt"] < found["magnitude"] / 2


def test_what_is_lost_is_no_more_than_with_llm_compressor(samples: Path, tmp_path: Path, one_shot: Callable[..., None]) -> None:
    import torch
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    source = samples / "sample-llama"
    asked = step("sparsegpt", calibration=replace(SHOWN, samples=8, sequence_length=256))
    context = method.PressContext(base_folder=source, scratch=tmp_path, cache=tmp_path)
    shown = context.windows(asked)
    (tmp_path / "ours").mkdir()
    sparsegpt.apply(asked, source, tmp_path / "ours", context)
    theirs = SparseGPTModifier(sparsity=0.5, mask_structure="0:0", block_size=128, targets=["Linear"], ignore=["lm_head"])
    one_shot(theirs, dense.load(source, dtype="float32"), tmp_path / "theirs", shown)
    base, ours, others = weights(source), weights(tmp_path / "ours"), weights(tmp_path / "theirs")
    # In the first layer alone both are shown the same: later ones see what each made of it.
    layer = next(layerwise.walk(source, shown, gram=True))
    ratios = {}
    for name, inputs in layer.inputs.items():

        def lost(weight: Any, name: str = name, gram: Any = inputs.gram) -> float:
            change = base[name].float() - weight.float()
            return float(((change @ gram) * change).sum())

        assert float((others[name] == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
        ratios[name] = lost(ours[name]) / lost(others[name])
    print({name: round(ratio, 3) for name, ratio in ratios.items()})
    assert all(0.9 < ratio < 1.1 for ratio in ratios.values())
    assert torch.isfinite(torch.tensor(list(ratios.values()))).all()
