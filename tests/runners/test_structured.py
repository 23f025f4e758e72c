from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Calibration, Step
from hub.errors import UnfitModel, Unstable, UsageError
from runners import checkpoint, dense, gates, methods, widths
from runners.method import PressContext

pytestmark = pytest.mark.integration
SHOWN = Calibration(text="stdlib-calibration", samples=4, sequence_length=24)
WIDTHS = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
Make = Callable[..., Path]


class Shown(PressContext):
    """A context whose windows are random tokens: the tiny models have no tokenizer."""

    def windows(self, step: Step) -> list[list[int]]:
        import torch

        assert step.calibration
        size = (step.calibration.samples, step.calibration.sequence_length)
        return torch.randint(0, 128, size, generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Return what writes a tiny random model of an architecture and returns its folder; `edit` changes it before."""

    def of(kind: str, edit: Callable[[Any], None] | None = None, dtype: str = "float32", **config: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = {"n_embd": 64, "n_inner": 96, "n_head": 4, "n_layer": 2} if kind == "gpt2" else {**WIDTHS, "num_hidden_layers": 2}
        settings = {"vocab_size": 128, "max_position_embeddings": 64, "initializer_range": 0.2, **sizes, **config}
        if kind == "gpt2":
            settings["n_positions"] = settings.pop("max_position_embeddings")
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():  # what begins as zeros and ones would hide a mistake
                if parameter.dim() == 1:
                    parameter.copy_(torch.randn_like(parameter) * 0.1 + (0.0 if name.endswith("bias") else 1.0))
            if edit:
                edit(model)
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        model.to(getattr(torch, dtype)).save_pretrained(folder)
        return folder

    return of


def press(method: str, source: Path, scheme: str = "", **params: str | float) -> tuple[Path, Any]:
    """Check and apply one step; return its folder and what it told. What is promised lies on disk."""
    module = methods.get(method)
    step = Step(method=method, scheme=scheme or module.SCHEMES[0], params=params, calibration=SHOWN)
    shape = checkpoint.shape(source)
    module.check(step, shape)
    target = source.with_name(f"{source.name}-{method}")
    target.mkdir()
    outcome = module.apply(step, source, target, Shown(base_folder=source, scratch=source, cache=source))
    promise = module.promise(step, shape)
    found = checkpoint.shape(target)
    assert found.tensors == promise.tensors
    assert widths.of(found) == widths.of(promise.shape)
    assert found.layers == promise.shape.layers
    return target, outcome


def logits(folder: Path) -> Any:
    import torch

    with torch.inference_mode():
        return dense.load(folder, dtype="float32")(torch.arange(40)[None] * 3).logits


def same(first: Path, second: Path) -> bool:
    import torch

    return torch.allclose(logits(first), logits(second), atol=1e-4, rtol=1e-4)


def dead(axis: str, places: list[int]) -> Callable[[Any], None]:
    """Return what makes neurons or hidden channels (`axis` mlp or hidden) silent: whatever writes there writes zeros."""

    def edit(model: Any) -> None:
        conv1d = type(model).__name__ == "GPT2LMHeadModel"
        for name, parameter in model.named_parameters():
            embeds = name.endswith(("embed_tokens.weight", "wte.weight", "wpe.weight"))
            writing = -1 if embeds or conv1d else 0  # the dimension along which a stored tensor writes
            if (
                widths.axes(name, parameter.dim(), conv1d)[writing] != axis
                or "norm" in name
                or name.endswith((".ln_1.weight", ".ln_2.weight"))
            ):
                continue
            alive = parameter.new_ones(parameter.shape[writing])
            alive[places] = 0
            alive = alive if writing else alive.view(-1, *[1] * (parameter.dim() - 1))
            parameter.mul_(alive)
            if axis == "hidden" and conv1d and ".ln_" not in name:
                parameter.sub_(parameter.sum(dim=-1, keepdim=True) / alive.sum() * alive)  # a mean of zero is the mean of fewer, too

    return edit


EXACT = {"rms_norm_eps": 1e-12}  # a larger one weighs otherwise in a mean over fewer channels
CASES = [
    ("llama", {"tie_word_embeddings": True, **EXACT}),
    ("llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True, **EXACT}),
    ("qwen3", {"tie_word_embeddings": True, **EXACT}),
    ("qwen2", {"tie_word_embeddings": True, **EXACT}),
    ("gpt2", {}),
]


@pytest.mark.parametrize(("kind", "config"), CASES)
def test_dead_neurons_go_and_nothing_is_lost(make: Make, kind: str, config: dict[str, Any]) -> None:
    places = list(range(1, 96, 3))
    # A gelu of a zero is a zero too, so a silent neuron passes nothing in any of these.
    source = make(kind, dead("mlp", places), **config)
    made, outcome = press("width_prune", source, mlp=1 / 3)
    assert same(made, source)
    assert {told["importance_left"] for told in outcome.layers.values()} == {1.0}
    assert {told["neurons"] for told in outcome.layers.values()} == {64}


@pytest.mark.parametrize("criterion", ["activation", "taylor", "magnitude-l1", "magnitude-l2"])
def test_each_criterion_finds_what_is_dead(make: Make, criterion: str) -> None:
    source = make("llama", dead("mlp", list(range(0, 96, 3))))
    made, _ = press("width_prune", source, mlp=1 / 3, criterion=criterion)
    if criterion.startswith("activation"):
        assert same(made, source)
    else:  # a neuron that writes nothing still weighs something where it is read
        found = dense.load(made, dtype="float32").model.layers[0].mlp.up_proj.weight
        assert bool((found.abs().sum(dim=1) > 0).all())


@pytest.mark.parametrize(("kind", "config"), CASES[:4])
def test_dead_heads_go_with_their_group_and_nothing_is_lost(make: Make, kind: str, config: dict[str, Any]) -> None:
    source = make(kind, **config)
    model = dense.load(source, dtype="float32")
    for layer, group in enumerate((0, 1)):
        values = model.model.layers[layer].self_attn.v_proj
        values.weight.data[group * 16 : (group + 1) * 16] = 0
        if values.bias is not None:
            values.bias.data[group * 16 : (group + 1) * 16] = 0
    model.save_pretrained(source)
    made, outcome = press("width_prune", source, mlp=0.0, heads=0.5)
    assert same(made, source)
    assert [told["head_groups"] for told in outcome.layers.values()] == ["1", "0"]
    config_json = json.loads((made / "config.json").read_text())
    assert (config_json["num_attention_heads"], config_json["num_key_value_heads"], config_json["head_dim"]) == (2, 1, 16)


@pytest.mark.parametrize(("kind", "config"), CASES[:4])
def test_dead_hidden_channels_go_and_nothing_is_lost(make: Make, kind: str, config: dict[str, Any]) -> None:
    source = make(kind, dead("hidden", [*range(5, 21), *range(40, 56)]), **config)
    made, outcome = press("width_prune", source, mlp=0.0, hidden=0.5)
    assert same(made, source)
    assert "with 100.0% of the importance" in outcome.notes[0]


def test_gpt2_loses_heads_and_hidden_channels_together(make: Make) -> None:
    def edit(model: Any) -> None:
        dead("hidden", [*range(5, 21), *range(40, 56)])(model)
        for layer in model.transformer.h:  # the values of heads 1 and 3 are zero
            for head in (1, 3):
                place = slice(128 + head * 16, 128 + head * 16 + 16)
                layer.attn.c_attn.weight[:, place] = 0
                layer.attn.c_attn.bias[place] = 0

    source = make("gpt2", edit, layer_norm_epsilon=1e-12)
    made, outcome = press("width_prune", source, mlp=0.0, hidden=0.5, heads=0.5)
    assert same(made, source)
    assert outcome.layers["transformer.h.0.attn.c_proj"]["head_groups"] == "0, 2"


def reference(folder: Path) -> tuple[Any, Any, list[list[int]]]:
    """Return a model in float64 with the windows and, by module name, what was read and written in each window."""
    import torch

    model = dense.load(folder, dtype="float64")
    windows = Shown(base_folder=folder, scratch=folder, cache=folder).windows(Step(method="x", scheme="x", calibration=SHOWN))
    seen: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.setdefault(name, []).append((inputs, output)))
    for window in windows:
        model(torch.tensor([window]), use_cache=False)
    return model, seen, windows


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_activation_scores_are_minitron_s(make: Make, kind: str) -> None:
    import numpy as np

    folder = make(kind)
    _, seen, windows = reference(folder)
    shape = checkpoint.shape(folder)
    found = gates.measure(dense.load(folder, dtype="float32"), shape, windows, "activation")
    for layer in range(2):
        neurons, heads = np.zeros(96), np.zeros(4)
        mlp, attention = gates.ends(shape, layer)
        for window in range(len(windows)):
            values = seen[mlp][window][0][0][0].detach().numpy()
            neurons += np.abs(values).mean(axis=0) ** 2
            values = seen[attention][window][0][0][0].detach().numpy().reshape(-1, 4, 16)
            heads += np.sqrt((values**2).sum(axis=-1)).mean(axis=0) ** 2
        np.testing.assert_allclose(found.mlp[layer], np.sqrt(neurons), rtol=1e-4)
        np.testing.assert_allclose(found.heads[layer], np.sqrt(heads), rtol=1e-4)
    assert len(widths.norms(shape)) == 5
    hidden = np.zeros(64)
    for norm in widths.norms(shape):
        hidden += np.sqrt(sum(np.abs(output.detach().numpy()[0]).mean(axis=0) ** 2 for _, output in seen[norm]))
    np.testing.assert_allclose(found.hidden, hidden, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_taylor_scores_are_weight_times_gradient(make: Make, kind: str) -> None:
    """What passes a gate times its gradient is the same sum as the weights that read it times theirs."""
    import numpy as np
    import torch

    folder = make(kind)
    shape = checkpoint.shape(folder)
    model, _, windows = reference(folder)
    found = gates.measure(dense.load(folder, dtype="float32"), shape, windows, "taylor")
    wanted = {name: 0.0 for layer in range(2) for name in gates.ends(shape, layer)} | {"hidden": 0.0}
    for window in windows:
        batch = torch.tensor([window])
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(batch).logits[0, :-1], batch[0, 1:]).backward()
        for name in wanted:
            if name != "hidden":
                weight = model.get_submodule(name).weight
                product = (weight * weight.grad).sum(dim=1 if shape.conv1d else 0)
                product = product.view(4, 16).sum(dim=1) if len(product) == 64 else product
                wanted[name] = wanted[name] + product.detach().abs().numpy()
        for norm in widths.norms(shape):
            module = model.get_submodule(norm)
            product = module.weight * module.weight.grad
            product = product + module.bias * module.bias.grad if shape.conv1d else product
            wanted["hidden"] = wanted["hidden"] + product.detach().abs().numpy()
    for layer in range(2):
        mlp, attention = gates.ends(shape, layer)
        np.testing.assert_allclose(found.mlp[layer], wanted[mlp], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.heads[layer], wanted[attention], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(found.hidden, wanted["hidden"], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_magnitude_scores_are_norms_of_all_weights_of_a_structure(make: Make, kind: str, power: int) -> None:
    import numpy as np

    folder = make(kind, attention_bias=True, tie_word_embeddings=False)  # Qwen3 has norms of a head's channels besides
    model = dense.load(folder, dtype="float64")
    model.requires_grad_(False)
    tensors = dict(model.named_parameters())
    found = gates.magnitude(tensors.items(), checkpoint.shape(folder), power)
    layer = model.model.layers[1]
    parts = (layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight.t())
    neurons = [sum(float((part[place].abs() ** power).sum()) for part in parts) ** (1 / power) for place in range(96)]
    np.testing.assert_allclose(found.mlp[1], neurons)
    attention, heads = layer.self_attn, []
    for head in range(4):
        own, shared = slice(head * 16, head * 16 + 16), slice(head // 2 * 16, head // 2 * 16 + 16)
        total = sum(float((part[own].abs() ** power).sum()) for part in (attention.q_proj.weight, attention.q_proj.bias))
        total += float((attention.o_proj.weight[:, own].abs() ** power).sum())
        for module in (attention.k_proj, attention.v_proj):
            total += sum(float((part[shared].abs() ** power).sum()) for part in (module.weight, module.bias)) / 2
        heads.append(total ** (1 / power))
    np.testing.assert_allclose(found.heads[1], heads)


def test_the_result_loads_with_transformers_alone_and_its_config_is_true(make: Make) -> None:
    made, _ = press("width_prune", make("qwen3", dtype="bfloat16"), mlp=1 / 3, heads=0.5, hidden=0.5)
    code = (
        "import sys; from transformers import AutoModelForCausalLM as M;"
        "m, info = M.from_pretrained(sys.argv[1], output_loading_info=True);"
        "assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info; c = m.config;"
        "print(c.hidden_size, c.intermediate_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim, m.dtype)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.split() == ["32", "64", "2", "1", "16", "torch.bfloat16"]


def test_important_structures_stay_and_random_ones_are_no_match(samples: Path, tmp_path: Path) -> None:
    import torch

    source = samples / "sample-llama"
    context = PressContext(base_folder=source, scratch=tmp_path, cache=tmp_path)
    shown = Calibration(text="stdlib-calibration", samples=8, sequence_length=128)
    held = Calibration(text="stdlib-heldout", samples=8, sequence_length=128)
    batch = torch.tensor(context.windows(Step(method="x", scheme="x", calibration=held)))
    width = methods.get("width_prune")

    def log_probabilities(folder: Path) -> Any:
        with torch.inference_mode():
            return dense.load(folder, dtype="float32")(batch).logits.log_softmax(-1)

    base = log_probabilities(source)
    lost = {}
    for kind, params in {"mlp": {"mlp": 0.25}, "hidden": {"mlp": 0.0, "hidden": 0.125}}.items():
        for criterion in ("activation", "taylor", "magnitude-l2", "random"):
            step = Step(method="width_prune", scheme="width", params={**params, "criterion": criterion}, calibration=shown)
            folder = tmp_path / f"{kind}-{criterion}"
            folder.mkdir()
            width.apply(step, source, folder, context)
            lost[kind, criterion] = float((base.exp() * (base - log_probabilities(folder))).sum(-1).mean())
    print({" ".join(key): round(value, 4) for key, value in lost.items()})
    for kind, criterion in lost:
        if criterion in ("activation", "taylor"):
            assert lost[kind, criterion] < 0.8 * lost[kind, "random"]


@pytest.mark.parametrize(
    ("method", "params"),
    [("depth_prune", {}), ("width_prune", {}), ("width_prune", {"criterion": "magnitude-l2", "hidden": 0.5})],
)
def test_nothing_is_chosen_by_numbers_that_are_none(make: Make, method: str, params: dict[str, float]) -> None:
    """All weights are finite, but what the second layer puts out is beyond float16."""

    def edit(model: Any) -> None:
        mlp = model.model.layers[1].mlp
        mlp.up_proj.weight.mul_(1e3)
        mlp.gate_proj.weight.mul_(1e3)

    source = make("llama", edit, dtype="float16")
    with pytest.raises(Unstable, match="NaN or infinity") as caught:
        press(method, source, **params)
    assert "float16" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "params", "says"),
    [
        ("gpt2", {"mlp": 0.0, "heads": 0.5}, "as wide as its heads together; 2 heads of 16 and 64 hidden channels"),
        ("gpt2", {"mlp": 0.0, "hidden": 0.5}, "4 heads of 16 and 32 hidden channels"),
        ("llama", {"mlp": 0.0, "heads": 0.1}, "10% of 2 groups of heads: less than one"),
        ("llama", {"mlp": 0.1}, "10% of 96 neurons: in multiples of 32, none"),
        ("llama", {"mlp": 0.0, "hidden": 0.5, "multiple": 17}, "34 hidden channels and 4 heads"),
    ],
)
def test_widths_that_cannot_be_are_refused_before_anything_runs(make: Make, kind: str, params: dict[str, float], says: str) -> None:
    step = Step(method="width_prune", scheme="width", params=params, calibration=SHOWN)
    with pytest.raises(UnfitModel, match=says) as caught:
        methods.get("width_prune").check(step, checkpoint.shape(make(kind)))
    assert caught.value.hint


@pytest.mark.parametrize("params", [{"mlp": 0.0}, {"mlp": 1.0}, {"heads": -0.1}, {"multiple": 0}, {"criterion": "hessian"}])
def test_senseless_shares_are_refused(make: Make, params: dict[str, str | float]) -> None:
    with pytest.raises(UsageError):
        methods.get("width_prune").check(
            Step(method="width_prune", scheme="width", params=params, calibration=SHOWN), checkpoint.shape(make("llama"))
        )


def test_depth_pruning_tells_each_layer_s_influence(make: Make) -> None:
    import torch

    source = make("qwen3", num_hidden_layers=4)
    model, seen, _ = reference(source)
    influence = []
    for layer in range(4):
        found = [(inputs[0][0], output[0] if output.dim() == 3 else output) for inputs, output in seen[f"model.layers.{layer}"]]
        cosines = [(before * after).sum(-1) / before.norm(dim=-1) / after.norm(dim=-1) for before, after in found]
        influence.append(1 - float(torch.cat(cosines).mean().detach()))
    made, outcome = press("depth_prune", source, fraction=0.25)
    assert "same machine" in outcome.notes[0]
    told = [outcome.layers[f"model.layers.{layer}"] for layer in range(4)]
    assert [facts["influence"] for facts in told] == pytest.approx(influence, abs=1e-5)
    gone = influence.index(min(influence))
    assert [facts["removed"] for facts in told] == [layer == gone for layer in range(4)]
    left = dense.load(made, dtype="float64")
    kept = [layer for layer in range(4) if layer != gone]
    for new, old in enumerate(kept):
        assert torch.equal(left.model.layers[new].mlp.up_proj.weight, model.model.layers[old].mlp.up_proj.weight)
    assert len(left.config.layer_types) == 3


def test_layers_keep_their_kind_of_attention_where_the_config_lists_none(make: Make) -> None:
    """As Qwen2's published configs: the layers from `max_window_layers` on look at a window only."""
    from transformers import AutoConfig

    from runners import depth

    source = make("qwen2", num_hidden_layers=4, use_sliding_window=True, sliding_window=8, max_window_layers=2)
    config = checkpoint.read_config(source)
    del config["layer_types"]
    (source / "config.json").write_text(json.dumps(config))
    before = AutoConfig.from_pretrained(source).layer_types
    assert before == ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    target = source.with_name("shorter")
    target.mkdir()
    depth.write(source, target, [0, 2, 3])
    assert AutoConfig.from_pretrained(target).layer_types == [before[place] for place in (0, 2, 3)]


def test_depth_pruning_keeps_the_promise_of_zeros_that_all_layers_made() -> None:
    from dataclasses import replace

    from runners.headers import Tensor

    tensors = {f"model.layers.{layer}.mlp.{name}_proj.weight": Tensor(dtype="BF16", shape=(4, 4)) for layer in range(3) for name in "ab"}
    tensors["model.embed_tokens.weight"] = Tensor(dtype="BF16", shape=(8, 4))
    shape = checkpoint.shape_of({"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 3}, tensors, where="here")
    zeros = {f"model.layers.{layer}.mlp.a_proj": 0.5 - layer / 10 for layer in range(3)} | {"model.layers.0.mlp.b_proj": 0.5}
    promise = methods.get("depth_prune").promise(Step(method="depth_prune", scheme="depth"), replace(shape, zeros=zeros))
    assert promise.shape.zeros == {f"model.layers.{layer}.mlp.a_proj": 0.3 for layer in range(2)}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_a_student_of_layers_holds_evenly_spaced_ones(make: Make, kind: str) -> None:
    import torch

    source = make(kind, **{"n_layer" if kind == "gpt2" else "num_hidden_layers": 6})
    made, outcome = press("student", source, "layers", layers=3)
    removed = [facts["removed"] for facts in outcome.layers.values()]
    assert [place for place, gone in enumerate(removed) if not gone] == [0, 2, 5]
    teacher, student = dense.load(source, dtype="float32").base_model, dense.load(made, dtype="float32").base_model
    root = "h" if kind == "gpt2" else "layers"
    for new, old in zip(student.get_submodule(root), [teacher.get_submodule(root)[place] for place in (0, 2, 5)], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(new.parameters(), old.parameters(), strict=True))


def test_distilbert_s_choice_of_layers() -> None:
    assert methods.get("student").evenly(6, 12) == [0, 2, 4, 7, 9, 11]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("llama", {"hidden": 32, "heads": 2, "kv_heads": 1}),
        ("qwen3", {"hidden": 48, "intermediate": 64, "heads": 3, "kv_heads": 1, "head_dim": 8}),
        ("gpt2", {"hidden": 32, "intermediate": 64, "heads": 2}),
        ("gpt2", {}),
    ],
)
def test_a_random_student_is_of_the_widths_asked_for_and_of_its_seed(make: Make, kind: str, params: dict[str, float]) -> None:
    import torch

    source = make(kind, dtype="bfloat16")
    made, outcome = press("student", source, "random", layers=1, **params)
    first = logits(made)
    assert "random" in outcome.notes[0]
    assert checkpoint.shape(made).dtype == "BF16"
    made.rename(made.with_name("first"))
    made, _ = press("student", source, "random", layers=1, **params)
    assert torch.equal(logits(made), first)
    made.rename(made.with_name("second"))
    made, _ = press("student", source, "random", layers=1, seed=1, **params)
    assert not torch.equal(logits(made), first)


def test_a_random_student_has_the_head_and_the_dtypes_that_its_teacher_stores(make: Make) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source = make("llama", dtype="bfloat16", tie_word_embeddings=True)
    stored = load_file(source / "model.safetensors")
    stored["lm_head.weight"] = stored["model.embed_tokens.weight"].clone()
    stored = {name: tensor.float() if "norm" in name else tensor for name, tensor in stored.items()}
    save_file(stored, source / "model.safetensors", metadata={"format": "pt"})
    made, _ = press("student", source, "random", layers=1, intermediate=64)  # what is promised lies on disk
    found = load_file(made / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("scheme", "params", "error", "says"),
    [
        ("layers", {"layers": 3}, UnfitModel, "3 layers, its teacher has 2"),
        ("layers", {"hidden": 32}, UsageError, "whose widths are the teacher's"),
        ("random", {"layers": -1}, UsageError, "at least 0"),
        ("random", {"heads": 3}, UnfitModel, "64 hidden channels and 3 heads"),
    ],
)
def test_students_that_cannot_be_are_refused(make: Make, scheme: str, params: dict[str, float], error: type[Exception], says: str) -> None:
    step = Step(method="student", scheme=scheme, params=params)
    with pytest.raises(error, match=says):
        methods.get("student").check(step, checkpoint.shape(make("llama")))
