from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Calibration, Step
from hub.errors import UsageError
from runners import checkpoint, dense, distillation, formats, methods, teachers, training
from runners.method import PressContext

pytestmark = pytest.mark.integration
TOKENS, VOCABULARY = 12, 20


def rows(seed: int, *shape: int) -> Any:
    """Return normal numbers in float64."""
    import torch

    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def probabilities(logits: Any, temperature: float = 1.0) -> Any:
    import numpy as np

    powers = np.exp(logits.detach().numpy() / temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_divergence_and_its_gradient_are_hinton_s(temperature: float) -> None:
    import numpy as np

    student, teacher = rows(1, TOKENS, VOCABULARY).requires_grad_(), rows(2, TOKENS, VOCABULARY)
    q, p = probabilities(student, temperature), probabilities(teacher, temperature)
    value = training.divergence(student, teacher, temperature=temperature)
    assert float(value.detach()) == pytest.approx(temperature**2 * (p * np.log(p / q)).sum() / TOKENS, rel=1e-12)
    value.backward()
    np.testing.assert_allclose(student.grad, temperature * (q - p) / TOKENS, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("count", [1, 5, VOCABULARY - 1, VOCABULARY])
def test_top_tokens_merge_all_others_into_one(count: int, temperature: float) -> None:
    import numpy as np

    student, teacher = rows(1, TOKENS, VOCABULARY).requires_grad_(), rows(2, TOKENS, VOCABULARY)
    kept = distillation.top(teacher, count, temperature=temperature)
    value = distillation.top_divergence(student, replace(kept, logs=kept.logs.double(), rest=kept.rest.double()), temperature=temperature)
    wanted = 0.0
    for q, p in zip(probabilities(student, temperature), probabilities(teacher, temperature), strict=True):
        best = np.argsort(-p)[:count]
        wanted += (p[best] * np.log(p[best] / q[best])).sum()
        rest = np.setdiff1d(np.arange(VOCABULARY), best)
        wanted += p[rest].sum() * np.log(p[rest].sum() / q[rest].sum()) if len(rest) else 0.0
    assert float(value.detach()) == pytest.approx(temperature**2 * wanted / TOKENS, rel=1e-6)
    whole = training.divergence(student, teacher, temperature=temperature)
    assert float(value.detach()) <= float(whole.detach()) + 1e-6
    if count >= VOCABULARY - 1:  # nothing is merged: the values and the gradients are those of the whole distribution
        found, expected = (_gradient(loss, student) for loss in (value, whole))
        np.testing.assert_allclose(found, expected, atol=1e-7)
    assert bool(_gradient(value, student).isfinite().all())


def _gradient(loss: Any, weight: Any) -> Any:
    import torch

    return torch.autograd.grad(loss, weight, retain_graph=True)[0]


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 1.0])
def test_the_generalised_divergence_is_the_paper_s(beta: float) -> None:
    import numpy as np

    student, teacher = rows(1, TOKENS, VOCABULARY), rows(2, TOKENS, VOCABULARY)
    q, p = probabilities(student, 2.0), probabilities(teacher, 2.0)
    middle = beta * p + (1 - beta) * q
    wanted = {0.0: (p * np.log(p / q)).sum(), 1.0: (q * np.log(q / p)).sum()}.get(
        beta, beta * (p * np.log(p / middle)).sum() + (1 - beta) * (q * np.log(q / middle)).sum()
    )
    value = distillation.generalised_divergence(student, teacher, beta=beta, temperature=2.0)
    assert float(value) == pytest.approx(4 * wanted / TOKENS, rel=1e-10)


def test_hidden_states_and_relations_are_compared_as_written() -> None:
    import numpy as np

    student, teacher = rows(1, 2, 5, 8), rows(2, 2, 5, 12)
    projected = student @ rows(3, 8, 12)
    own, other = projected.numpy(), teacher.numpy()
    value = distillation.hidden_difference(projected, teacher, measure="mse")
    assert float(value) == pytest.approx(((own - other) ** 2).mean() / (other**2).mean())
    cosines = (own * other).sum(-1) / np.linalg.norm(own, axis=-1) / np.linalg.norm(other, axis=-1)
    assert float(distillation.hidden_difference(projected, teacher, measure="cosine")) == pytest.approx((1 - cosines).mean())

    total = 0.0
    for window in range(2):
        for head in range(4):
            parts = (student[window, :, head * 2 : head * 2 + 2], teacher[window, :, head * 3 : head * 3 + 3])
            q, p = (probabilities(part @ part.T / part.shape[1] ** 0.5) for part in parts)
            total += (p * np.log(p / q)).sum()
    assert float(distillation.value_relations(student, teacher, heads=4)) == pytest.approx(total / (2 * 4 * 5))

    def similarity(states: Any) -> Any:
        unit = states.numpy() / np.linalg.norm(states.numpy(), axis=-1, keepdims=True)
        return np.einsum("wic,wjc->wij", unit, unit)

    wanted = ((similarity(student) - similarity(teacher)) ** 2).mean()
    assert float(distillation.similarity_difference(student, teacher)) == pytest.approx(wanted)


def test_layers_are_mapped_evenly_and_the_last_to_the_last() -> None:
    assert distillation.mapped(3, 6) == [2, 4, 6]
    assert distillation.mapped(3, 4) == [1, 3, 4]
    assert distillation.mapped(4, 2) == [1, 1, 2, 2]


def test_windows_are_cut_to_pieces() -> None:
    assert teachers.pieces([[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]], 2) == [[1, 2], [3, 4], [6, 7], [8, 9]]
    assert teachers.pieces([[1, 2, 3]], 8) == [[1, 2, 3]]


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Path, Path, PressContext]:
    """Return a random teacher and a student of other widths with a third of its zeros, and a context that shows random windows."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folders = []
    for seed, (hidden, mlp, layers) in enumerate(((32, 64, 3), (16, 32, 2))):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=64,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=layers,
            num_attention_heads=4 // (seed + 1),
            num_key_value_heads=2 // (seed + 1),
            head_dim=8,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        model = LlamaForCausalLM(config)
        if seed:
            for layer in model.model.layers:
                layer.mlp.up_proj.weight.data[::3] = 0
        folders.append(tmp_path / f"model-{seed}")
        model.save_pretrained(folders[-1])

    class Shown(PressContext):
        def windows(self, step: Step) -> list[list[int]]:
            return torch.randint(0, 64, (8, 16), generator=torch.Generator().manual_seed(3)).tolist()

    return folders[0], folders[1], Shown(base_folder=folders[0], scratch=tmp_path, cache=tmp_path / "cache")


SHOWN = Calibration(text="stdlib-calibration", samples=8, sequence_length=16)
FEW = {"tokens": 512, "batch": 4, "learning_rate": 3e-3}


def learnt(scheme: str, tiny: tuple[Path, Path, PressContext], name: str = "", **params: Any) -> Path:
    """Distil the tiny student, and return its folder."""
    _, student, context = tiny
    step = Step(method="distil", scheme=scheme, params={**FEW, **params}, calibration=SHOWN)
    target = student.with_name(f"made-{scheme}{name}")
    target.mkdir()
    distil = methods.get("distil")
    distil.check(step, replace(checkpoint.shape(student), context=64))
    distil.apply(step, student, target, context)
    return target


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


CASES: list[tuple[str, dict[str, Any]]] = [
    ("logits", {"text_weight": 0.3, "temperature": 2.0}),
    ("logits", {"teacher": "offline", "top_k": 8}),
    ("hard", {}),
    ("hard", {"teacher": "offline"}),
    ("text", {"piece": 8}),
    ("features", {"measure": "mse"}),
    ("features", {"measure": "cosine"}),
    ("relations", {"relation": "values"}),
    ("relations", {"relation": "hidden"}),
    ("on_policy", {"piece": 8, "own_share": 1.0}),
]


@pytest.mark.parametrize(("scheme", "params"), CASES)
def test_every_lesson_leaves_the_student_s_own_tensors_and_keeps_its_zeros(
    tiny: tuple[Path, Path, PressContext], scheme: str, params: dict[str, Any]
) -> None:
    import torch

    made = learnt(scheme, tiny, **params)
    before, after = weights(tiny[1]), weights(made)
    assert {name: tensor.shape for name, tensor in after.items()} == {name: tensor.shape for name, tensor in before.items()}
    assert not torch.equal(before["model.embed_tokens.weight"], after["model.embed_tokens.weight"])
    stored = checkpoint.stored_tensors(made)
    for layer in range(2):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        assert formats.zero_share(stored[name]) == pytest.approx(11 / 32)
        assert torch.equal(before[name] == 0, after[name] == 0)
    shape = replace(checkpoint.shape(tiny[1]), zeros={"model.layers.0.mlp.up_proj": 1 / 3})
    promise = methods.get("distil").promise(Step(method="distil", scheme=scheme, params=params), shape)
    assert promise.shape.zeros == shape.zeros
    again = learnt(scheme, tiny, "-again", **params)
    assert all(torch.equal(tensor, after[name]) for name, tensor in weights(again).items())


def test_offline_with_the_whole_vocabulary_is_online(tiny: tuple[Path, Path, PressContext]) -> None:
    import torch

    online = weights(learnt("logits", tiny))
    offline = weights(learnt("logits", tiny, "-offline", teacher="offline", top_k=64))
    few = weights(learnt("logits", tiny, "-few", teacher="offline", top_k=2))
    assert all(torch.allclose(offline[name], tensor, atol=2e-4) for name, tensor in online.items())
    assert not all(torch.allclose(few[name], tensor, atol=2e-3) for name, tensor in online.items())
    hard = weights(learnt("hard", tiny))
    assert all(torch.equal(tensor, hard[name]) for name, tensor in weights(learnt("hard", tiny, "-offline", teacher="offline")).items())


def test_a_teacher_s_answers_are_kept_once_for_each_question(tiny: tuple[Path, Path, PressContext]) -> None:
    base, _, context = tiny
    windows = context.windows(Step(method="distil", scheme="logits", calibration=SHOWN))
    path = teachers.keep(base, windows, context.cache, count=4, temperature=1.0)
    os.utime(path, (1, 1))
    assert teachers.keep(base, windows, context.cache, count=4, temperature=1.0) == path
    assert path.stat().st_mtime == 1
    others = [
        teachers.keep(base, windows, context.cache, count=5, temperature=1.0),
        teachers.keep(base, windows, context.cache, count=4, temperature=2.0),
        teachers.keep(base, windows[:4], context.cache, count=4, temperature=1.0),
    ]
    assert len({path, *others}) == 4
    assert sorted(context.cache.iterdir()) == sorted([path, *others])


def test_a_model_goes_on_as_it_predicts(tiny: tuple[Path, Path, PressContext]) -> None:
    import torch

    model = dense.load(tiny[0], dtype="float32").train()
    prompts = torch.randint(0, 64, (3, 5), generator=torch.Generator().manual_seed(1))
    greedy = teachers.continued(model, prompts, 4, temperature=0.0, generator=None)
    assert model.training
    assert greedy.shape == (3, 9)
    assert torch.equal(greedy[:, :5], prompts)
    with torch.inference_mode():
        assert torch.equal(model.eval()(greedy[:, :-1]).logits[:, 4:].argmax(-1), greedy[:, 5:])
    drawn = teachers.continued(model, prompts[:1].repeat(4000, 1), 1, temperature=2.0, generator=torch.Generator().manual_seed(2))[:, -1]
    with torch.inference_mode():
        wanted = torch.softmax(model(prompts[:1]).logits[0, -1] / 2.0, dim=-1)
    shares = torch.bincount(drawn, minlength=64) / 4000
    assert torch.allclose(shares, wanted, atol=0.03)


def test_distilled_is_better_than_only_pruned(samples: Path, tmp_path: Path) -> None:
    import torch

    source = samples / "sample-llama"
    context = PressContext(base_folder=source, scratch=tmp_path, cache=tmp_path)
    shown = Calibration(text="stdlib-calibration", samples=64, sequence_length=128)
    held = torch.tensor(context.windows(Step(method="x", scheme="x", calibration=replace(shown, text="stdlib-heldout", samples=16))))

    def log_probabilities(folder: Path) -> Any:
        with torch.inference_mode():
            return dense.load(folder, dtype="float32")(held).logits.log_softmax(-1)

    base = log_probabilities(source)

    def lost(method: str, scheme: str, start: Path, **params: Any) -> tuple[Path, float]:
        folder = tmp_path / f"{method}-{scheme}"
        folder.mkdir()
        methods.get(method).apply(Step(method=method, scheme=scheme, params=params, calibration=shown), start, folder, context)
        return folder, float((base.exp() * (base - log_probabilities(folder))).sum(-1).mean())

    pruned, only_pruned = lost("width_prune", "width", source, mlp=0.5)
    found = {"pruned": only_pruned}
    for scheme in ("logits", "relations", "on_policy"):
        found[scheme] = lost("distil", scheme, pruned, tokens=8192, batch=16)[1]
    print({name: round(value, 4) for name, value in found.items()})
    assert all(found[scheme] < 0.9 * only_pruned for scheme in found if scheme != "pruned")


@pytest.mark.parametrize(
    ("scheme", "params", "says"),
    [
        ("logits", {"teacher": "offline", "top_k": 65}, "at most 64, the vocabulary"),
        ("logits", {"teacher": "elsewhere"}, "online or offline"),
        ("logits", {"top_k": 0}, "above 0"),
        ("hard", {"temperature": 2.0}, "no parameter 'temperature'"),
        ("features", {"teacher": "offline"}, "no parameter 'teacher'"),
        ("features", {"measure": "l1"}, "mse or cosine"),
        ("text", {"piece": 1}, "above 1"),
        ("text", {"prompt_share": 1.0}, "below 1"),
        ("on_policy", {"beta": 2}, "between 0 and 1"),
    ],
)
def test_senseless_lessons_are_refused(tiny: tuple[Path, Path, PressContext], scheme: str, params: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        methods.get("distil").check(Step(method="distil", scheme=scheme, params=params, calibration=SHOWN), checkpoint.shape(tiny[1]))
