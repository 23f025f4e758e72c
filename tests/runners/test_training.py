"""Methods that train: the loop and its masks, exact shares of zeros, what is stored is what was trained, and what learning is worth."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub.domain import Calibration, ModelRef, Recipe, Scalar, Step
from hub.errors import UnfitModel, Unstable, UsageError
from runners import checkpoint, dense, formats, masking, methods, press, recipes, texts, training
from runners.headers import stored_tensors
from runners.method import PressContext
from runners.methods import lora, movement, qat

pytestmark = pytest.mark.integration
BASE = ModelRef(repo_id="modelpress-samples/sample", sha="0" * 40)
LENGTH, VOCABULARY = 32, 200
KINDS = ["Llama", "Qwen3", "GPT2"]


class Context(PressContext):
    """A press that shows seeded random tokens, which no tokenizer has to make."""

    def windows(self, step: Step) -> list[list[int]]:
        import torch

        wanted = step.calibration
        assert wanted is not None
        seed = torch.Generator().manual_seed(wanted.seed)
        shown: list[list[int]] = torch.randint(0, VOCABULARY, (wanted.samples, wanted.sequence_length), generator=seed).tolist()
        return shown


def make(folder: Path, kind: str) -> Path:
    """Save a random model of two layers in bfloat16."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": True}
    sizes["initializer_range"] = 0.2  # weights that say something: at the usual range a random model's logits are all alike
    if kind == "GPT2":
        sizes = {"vocab_size": 256, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
    config = getattr(transformers, f"{kind}Config")(**sizes)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    getattr(transformers, name)(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def step_of(method: str, scheme: str = "unstructured", *, windows: int = 8, **params: Scalar) -> Step:
    given: dict[str, Scalar] = {"tokens": 6 * LENGTH, "batch": 1, **params}
    shown = Calibration(text="stdlib-calibration", samples=windows, sequence_length=LENGTH)
    return Step(method=method, scheme=scheme, params=given, calibration=shown)


Work = Callable[[Step, Path], Path]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """Apply one step to a folder, the base being the model in `base`, and return the folder it leaves."""
    count = iter(range(100))

    def apply(step: Step, source: Path) -> Path:
        target = tmp_path / f"made-{next(count)}"
        target.mkdir()
        method = methods.get(step.method)
        method.check(step, checkpoint.shape(source))
        method.apply(step, source, target, Context(base_folder=tmp_path / "base", scratch=tmp_path, cache=tmp_path))
        return target

    return apply


def logits(folder: Path, model: Any = None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = model or AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, VOCABULARY, (4, LENGTH), generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        return model(ids).logits.float().flatten(0, 1)


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def zeros(folder: Path) -> dict[str, int]:
    """Return how many zeros each linear's weight has."""
    found = tensors(folder)
    return {linear.name: int((found[f"{linear.name}.weight"] == 0).sum()) for linear in checkpoint.shape(folder).linears}


def prune(folder: Path, target: Path, share: float) -> Path:
    """Write a copy of a model with the least weights of each linear at zero."""
    model = dense.load(folder, dtype="float32")
    for linear in checkpoint.shape(folder).linears:
        weight = model.get_submodule(linear.name).weight.data
        weight.mul_(masking.alive(weight.abs(), share))
    model.save_pretrained(target)
    dense.settle(target, folder)
    return target


# The loop


def test_the_rate_warms_up_and_falls_to_nothing() -> None:
    rates = [training.rate(number, 100) for number in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[4] == rates[5] == 1
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 1e-3
    assert training.rate(0, 1) == 1


def test_each_round_shows_every_window_once_in_an_order_of_its_own() -> None:
    windows = [[number] for number in range(10)]
    stream = training.batches(windows, 2, seed=3)
    rounds = [[int(token) for _ in range(5) for token in next(stream).flatten()] for _ in range(3)]
    assert all(sorted(shown) == list(range(10)) for shown in rounds)
    assert rounds[0] != rounds[1]
    again = training.batches(windows, 2, seed=3)
    assert rounds[0] == [int(token) for _ in range(5) for token in next(again).flatten()]


def test_a_budget_is_spent_in_whole_steps() -> None:
    windows = [[0] * 100] * 4
    assert training.Budget(tokens=1000, batch=2, learning_rate=1.0).steps(windows) == 5
    assert training.Budget(tokens=1000, batch=64, learning_rate=1.0).steps(windows) == 2
    assert training.Budget(tokens=1, batch=1, learning_rate=1.0).steps(windows) == 1


def test_the_divergence_is_that_of_the_definition() -> None:
    import torch

    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    wanted, given = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    assert float(training.divergence(student, teacher, temperature=2.0)) == pytest.approx(
        4 * float((wanted * (wanted / given).log()).sum(-1).mean())
    )
    assert float(training.divergence(teacher, teacher)) == pytest.approx(0)


def test_masked_weights_stay_zero_though_the_optimizer_remembers_them() -> None:
    import torch

    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 4))
    masks: dict[Any, Any] = {}

    def after(number: int) -> None:
        if number == 3:
            masks[weight] = torch.arange(24).reshape(6, 4) % 2 == 0

    training.train([weight], iter(lambda: torch.randn(5, 4), None), lambda batch: (batch @ weight.t()).square().mean() + weight.sum(),
                   steps=9, learning_rate=0.1, masks=masks, after=after)  # fmt: skip
    assert torch.equal(weight != 0, masks[weight])


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path, work: Work) -> None:
    import torch
    from safetensors.torch import save_file

    base = make(tmp_path / "base", "Llama")
    broken = tensors(base)
    broken["model.layers.1.mlp.up_proj.weight"][0, 0] = math.nan
    save_file(broken, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unstable, match="at step 1 of 6 the loss is nan") as caught:
        work(step_of("gradual", objective="text"), base)
    assert "learning_rate" in caught.value.hint
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(Unstable, match="at step 1 of 2 the loss is inf"):
        training.train([weight], iter([1.0, 1.0]), lambda _: weight.sum() / 0, steps=2, learning_rate=0.1)
    with pytest.raises(Unstable, match="at step 1 of 1 the gradients' norm is nan"):  # of a finite loss: no later step would tell
        training.train([weight], iter([1.0]), lambda _: (weight.sum() * 0).sqrt(), steps=1, learning_rate=0.1)
    assert weight.tolist() == [1.0]


@pytest.mark.parametrize(("name", "scheme"), [("gradual", "unstructured"), ("distil", "logits"), ("lora", "lora")])
def test_tied_heads_dtypes_and_shards_stay_as_they_were_stored(tmp_path: Path, work: Work, name: str, scheme: str) -> None:
    import torch
    from safetensors.torch import save_file

    base = make(tmp_path / "base", "Llama")
    stored = tensors(base)
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()  # some models are published with both
    stored = {key: tensor.float() if "norm" in key else tensor for key, tensor in stored.items()}
    (base / "model.safetensors").unlink()
    for number, part in enumerate((sorted(stored)[:9], sorted(stored)[9:]), start=1):
        file = base / f"model-0000{number}-of-00002.safetensors"
        save_file({key: stored[key] for key in part}, file, metadata={"format": "pt"})
    weight_map = {key: f"model-0000{1 + (place >= 9)}-of-00002.safetensors" for place, key in enumerate(sorted(stored))}
    (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    made = work(step_of(name, scheme), base)
    promise = methods.get(name).promise(step_of(name, scheme), checkpoint.shape(base))
    found = stored_tensors(made)
    assert {key: entry.tensor for key, entry in found.items()} == promise.tensors
    assert {key: entry.path.name for key, entry in found.items()} == weight_map
    loaded = dense.load(made, dtype="bfloat16")
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
    old, new = (tensors(folder) for folder in (base, made))
    assert bool((old["lm_head.weight"] != new["lm_head.weight"]).any()) == (name != "lora")
    assert torch.equal(new["lm_head.weight"], new["model.embed_tokens.weight"])


@pytest.mark.parametrize(("name", "scheme"), [("gradual", "unstructured"), ("distil", "logits"), ("lora", "lora")])
def test_dropout_is_off(tmp_path: Path, work: Work, name: str, scheme: str) -> None:
    base = make(tmp_path / "base", "GPT2")
    config = checkpoint.read_config(base)
    assert config["resid_pdrop"] == 0.1
    none = tmp_path / "none"
    shutil.copytree(base, none)
    dense.edit_config(none, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    first, second = (work(step_of(name, scheme), folder) / "model.safetensors" for folder in (base, none))
    assert first.read_bytes() == second.read_bytes()


# Pruning while training


def test_the_schedule_is_the_paper_s() -> None:
    shares = [masking.cubic(number, 10, share=0.8, ramp=0.5) for number in range(10)]
    assert shares == pytest.approx([0.8 * (1 - (1 - min(1, t / 5)) ** 3) for t in range(1, 11)])
    assert masking.cubic(0, 1, share=0.8, ramp=0.6) == 0.8


def test_a_share_is_exact_where_scores_are_equal_too() -> None:
    import torch

    score = torch.tensor([[3.0, 1.0, 1.0, 1.0], [1.0, -math.inf, 2.0, 1.0]])
    assert masking.alive(score, 0.5).tolist() == [[True, False, False, False], [True, False, True, True]]
    assert masking.alive(score, 0.0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["gradual", "movement", "lottery"])
def test_the_promised_share_is_zero_exactly_and_nothing_else(tmp_path: Path, work: Work, name: str, kind: str) -> None:
    base = make(tmp_path / "base", kind)
    step = step_of(name, sparsity=0.6)
    made = work(step, base)
    shape = checkpoint.shape(base)
    assert zeros(made) == {linear.name: round(0.6 * linear.in_features * linear.out_features) for linear in shape.linears}
    before, after = tensors(base), tensors(made)
    masked = {f"{linear.name}.weight" for linear in shape.linears}
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: tensor.dtype for name, tensor in before.items()}
    assert all(int((after[name] == 0).sum()) <= int((before[name] == 0).sum()) for name in before.keys() - masked)
    again = work(step, base)
    assert (again / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["gradual", "movement", "lottery"])
def test_what_was_pruned_before_stays_so(tmp_path: Path, work: Work, name: str) -> None:
    pruned = prune(make(tmp_path / "base", "Llama"), tmp_path / "pruned", 0.7)
    step = step_of(name, sparsity=0.5)
    shape = replace(checkpoint.shape(pruned), zeros=dict.fromkeys(zeros(pruned), 0.7))
    assert set(methods.get(name).promise(step, shape).shape.zeros.values()) == {0.7}
    before, after = tensors(pruned), tensors(work(step, pruned))
    assert all(not after[f"{linear}.weight"][before[f"{linear}.weight"] == 0].any() for linear in zeros(pruned))


def test_rewinding_goes_back_to_the_base(tmp_path: Path, work: Work) -> None:
    """So slow a training changes no stored weight, so the ticket must be the base under its own magnitudes' mask."""
    import torch

    base = make(tmp_path / "base", "Llama")
    made, wanted = tensors(work(step_of("lottery", sparsity=0.6, learning_rate=1e-9), base)), tensors(prune(base, tmp_path / "once", 0.6))
    same = [torch.equal(made[name], wanted[name]) for name in wanted]
    assert sum(same) == len(same)


def test_movement_lets_the_weights_go_that_move_towards_zero() -> None:
    import torch

    weight = torch.nn.Parameter(torch.tensor([[2.0, -2.0, 0.5, -0.5, 0.0]]))
    learner: Any = SimpleNamespace(weights=[weight], masks={weight: torch.ones(1, 5, dtype=torch.bool)})
    scores = movement.Scores(learner, start="equal", rate=1.0)
    weight.grad = torch.tensor([[1.0, 1.0, -1.0, 1.0, -9.0]])  # descent shrinks the first, and lets the other three grow
    scores.learn(0)
    scores.prune(0.4)
    assert learner.masks[weight].tolist() == [[False, True, True, True, False]]
    for _ in range(3):  # now the first one's own derivative says that it is missed: it lives again, with the value that it had
        weight.grad = torch.tensor([[-2.0, -1.0, -0.1, -0.1, 0.0]])
        scores.learn(0)
    scores.prune(0.4)
    assert weight.tolist() == [[2.0, 0.0, 0.5, -0.5, 0.0]]


# QAT


@pytest.mark.parametrize(("kind", "scheme"), [*(("Llama", scheme) for scheme in qat.SCHEMES), ("Qwen3", "W4A16")])
def test_what_is_stored_is_what_was_trained(tmp_path: Path, work: Work, scheme: str, kind: str) -> None:
    import torch

    base = make(tmp_path / "base", kind)
    groups: dict[str, Scalar] = {} if scheme == "W8A8" else {"group_size": 32}
    step = step_of("qat", scheme, learning_rate=1e-2, **groups)
    made = work(step, base)
    model, told = qat.learn(step, base, Context(base_folder=base, scratch=tmp_path, cache=tmp_path))
    assert {tuple(facts.items()) for facts in told.values()} == {(("start", "gptq"),)}
    for name, parameter in model.named_parameters():
        if "parametrizations" not in name:
            parameter.data = parameter.data.bfloat16().float()
    trained, stored = logits(made, model), logits(made)
    assert torch.allclose(stored, trained, rtol=1e-4, atol=1e-4 * float(trained.std()))
    assert float(training.divergence(logits(base), stored)) > 10 * float(training.divergence(trained, stored))
    promise = qat.promise(step, checkpoint.shape(base))
    assert {name: stored.tensor for name, stored in stored_tensors(made).items()} == promise.tensors


def test_scales_and_weights_have_the_gradients_of_lsq() -> None:
    import torch
    from compressed_tensors.quantization import QuantizationArgs

    args = QuantizationArgs(num_bits=3, type="int", symmetric=True, strategy="group", group_size=4)
    grid = qat.grid(torch.tensor([[0.5]]), args, torch.bfloat16)
    weight = torch.tensor([[0.6, -0.9, 3.0, -7.0]], requires_grad=True)
    rounded = grid(weight)
    assert rounded.tolist() == [[0.5, -1.0, 1.5, -2.0]]
    rounded.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    by_scale = (1 - 1.2) + (-2 + 1.8) + 3 - 4  # level - w / s inside the grid, the end's level beyond it
    assert grid.log.grad.item() == pytest.approx(0.5 * by_scale, rel=1e-5)


def test_qat_refuses_what_it_cannot_pack(tmp_path: Path) -> None:
    gpt2, llama = checkpoint.shape(make(tmp_path / "g", "GPT2")), checkpoint.shape(make(tmp_path / "l", "Llama"))
    with pytest.raises(UnfitModel, match="Conv1D"):
        qat.check(step_of("qat", "W4A16"), gpt2)
    with pytest.raises(UnfitModel, match="group size of 128"):
        qat.check(step_of("qat", "W4A16"), llama)
    with pytest.raises(UsageError, match="a scale a row"):
        qat.check(step_of("qat", "W8A8", group_size=32), llama)
    qat.check(step_of("qat", "W8A8"), llama)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("gradual", {"ramp": 0.0}),
        ("gradual", {"sparsity": 1.0}),
        ("movement", {"start": "random"}),
        ("movement", {"reach": 0.0}),
        ("lottery", {"rounds": 0}),
        ("lottery", {"objective": "both"}),
        ("gradual", {"tokens": 0}),
        ("gradual", {"learning_rate": -1.0}),
    ],
)
def test_senseless_values_are_refused(tmp_path: Path, method: str, params: dict[str, Scalar]) -> None:
    with pytest.raises(UsageError, match=next(iter(params))):
        methods.get(method).check(step_of(method, **params), checkpoint.shape(make(tmp_path / "base", "Llama")))


# LoRA


def perturbed(base: Path, target: Path) -> Path:
    """Write a copy of a model with something of rank 1 added to each linear: what an adapter can take back."""
    import torch

    torch.manual_seed(1)
    model = dense.load(base, dtype="float32")
    for linear in checkpoint.shape(base).linears:
        weight = model.get_submodule(linear.name).weight.data
        weight += 0.1 * torch.outer(torch.randn(weight.shape[0]), torch.randn(weight.shape[1]))
    model.save_pretrained(target)
    dense.settle(target, base)
    return target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", lora.SCHEMES)
def test_what_is_merged_is_what_was_learnt(tmp_path: Path, work: Work, scheme: str, kind: str) -> None:
    base = make(tmp_path / "base", kind)
    source = perturbed(base, tmp_path / "perturbed")
    step = step_of("lora", scheme, windows=32, tokens=64 * LENGTH, batch=2, learning_rate=1e-2)
    made = work(step, source)
    model, masks = lora.learn(step, source, Context(base_folder=base, scratch=tmp_path, cache=tmp_path))
    assert masks == {}
    trained, merged, before = logits(made, model), logits(made), logits(source)
    # In 4 bits the model learnt beside weights a little off from those to which the adapters are added.
    assert float(training.divergence(merged, trained)) < (0.05 if scheme == "lora" else 0.5) * float(training.divergence(before, trained))
    assert float(training.divergence(merged, logits(base))) < float(training.divergence(before, logits(base)))
    old, new = tensors(source), tensors(made)
    learnt = {f"{name}.weight" for name in zeros(source)}
    assert all(bool((old[name] == new[name]).all()) == (name not in learnt) for name in old)
    assert (work(step, source) / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_learn_around_zeros(tmp_path: Path, work: Work, kind: str) -> None:
    base = make(tmp_path / "base", kind)
    pruned = prune(base, tmp_path / "pruned", 0.5)
    step = step_of("lora", "lora", windows=32, tokens=64 * LENGTH, batch=2, learning_rate=1e-2)
    made = work(step, pruned)
    assert zeros(made) == zeros(pruned)
    trained = logits(made, lora.learn(step, pruned, Context(base_folder=base, scratch=tmp_path, cache=tmp_path))[0])
    assert float(training.divergence(logits(made), trained)) < 0.05 * float(training.divergence(logits(pruned), trained))


# What learning is worth, on a trained model


@pytest.fixture(scope="module")
def perplexity(samples: Path) -> Callable[[Path], float]:
    """Return a model's perplexity on six held-out windows of 512 tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens = texts.tokens("stdlib-heldout", dense.tokenizer(samples / "sample-llama"))
    ids = torch.tensor(tokens[: len(tokens) // 512 * 512]).view(-1, 512)[::25][:6]

    def measure(folder: Path) -> float:
        packed = "quantization_config" in checkpoint.read_config(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if packed else torch.float32).eval()
        with torch.inference_mode():
            return math.exp(float(training.cross_entropy(training.logits(model, ids).float(), ids)))

    return measure


def short(name: str, *, tokens: int, samples: int, scheme: str | None = None) -> Recipe:
    """Return a shipped recipe with a small budget for what learns."""
    recipe = recipes.load(name)
    steps = []
    for step in recipe.steps:
        shown = replace(step.calibration, samples=min(samples, step.calibration.samples)) if step.calibration else None
        params = {**step.params, "tokens": tokens} if "tokens" in step.params else step.params
        steps.append(replace(step, params=params, calibration=shown, scheme=scheme or step.scheme))
    return replace(recipe, steps=tuple(steps))


@pytest.mark.parametrize(("bits", "tokens"), [(2, 8_192), (3, 16_384)])
def test_qat_beats_gptq_and_rounding_at_the_same_bits_and_groups(
    samples: Path, tmp_path: Path, perplexity: Callable[[Path], float], bits: int, tokens: int
) -> None:
    source = samples / "sample-llama"
    found = {"base": perplexity(source)}
    for method, name in (("qat", f"qat-w{bits}a16-g64"), ("gptq", "gptq-w3a16-g64"), ("rtn", "rtn-w3a16-g64")):
        press.press(BASE, source, short(name, tokens=tokens, samples=32, scheme=f"W{bits}A16"), tmp_path / method)
        found[method] = perplexity(tmp_path / method)
    print(bits, {name: round(value, 3) for name, value in found.items()})
    assert found["base"] < found["qat"] < found["gptq"] < found["rtn"]


def test_pruning_while_learning_beats_pruning_at_once(samples: Path, tmp_path: Path, perplexity: Callable[[Path], float]) -> None:
    source = samples / "sample-llama"
    found = {"base": perplexity(source), "one-shot": perplexity(prune(source, tmp_path / "one-shot", 0.7))}
    for name in ("gradual-70", "movement-70"):
        press.press(BASE, source, short(name, tokens=8_192, samples=32), tmp_path / name)
        found[name] = perplexity(tmp_path / name)
        assert min(zeros(tmp_path / name).values()) > 0
        assert formats.packed(tmp_path / name, recipes.load(name), checkpoint.shape(source)).not_packed == ()
    print({name: round(value, 3) for name, value in found.items()})
    assert all(found["base"] < found[name] < found["one-shot"] for name in ("gradual-70", "movement-70"))


def test_lora_brings_back_part_of_what_depth_pruning_lost(samples: Path, tmp_path: Path, perplexity: Callable[[Path], float]) -> None:
    source = samples / "sample-llama"
    recipe = short("depth-lora", tokens=16_384, samples=32)
    found = {"base": perplexity(source)}
    for name, steps in (("depth", recipe.steps[:1]), ("depth-lora", recipe.steps)):
        press.press(BASE, source, replace(recipe, steps=steps), tmp_path / name)
        found[name] = perplexity(tmp_path / name)
    print({name: round(value, 3) for name, value in found.items()})
    assert found["depth-lora"] - found["base"] < 0.85 * (found["depth"] - found["base"])
