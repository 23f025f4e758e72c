from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hub.errors import BadCheckpoint
from runners import checkpoint, dense, layerwise, methods, recipes, streaming
from runners.layerwise import Inputs, KeptError

pytestmark = pytest.mark.integration
SAMPLES = ["sample-llama", "sample-qwen3-chat", "sample-gpt2"]


def windows(count: int = 6, length: int = 48, vocabulary: int = 200) -> list[list[int]]:
    import torch

    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(0)).tolist()  # type: ignore[no-any-return]


def make(folder: Path, kind: str, shards: str = "50GB", **config: Any) -> Path:
    """Save a random model in bfloat16."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    made = getattr(transformers, f"{kind}Config")(**{**sizes, "vocab_size": 256, "max_position_embeddings": 128, **config})
    getattr(transformers, f"{kind}ForCausalLM")(made).to(torch.bfloat16).save_pretrained(folder, max_shard_size=shards)
    return folder


def states(folder: Path, shown: list[list[int]]) -> list[list[Any]]:
    """Return the whole model's hidden states in float32: by layer, by batch."""
    import torch

    model = dense.load(folder, dtype="float32")
    with torch.no_grad():
        runs = [
            model.base_model(batch, use_cache=False, output_hidden_states=True).hidden_states
            for batch in torch.tensor(shown).split(layerwise.BATCH)
        ]
    return [list(column) for column in zip(*runs, strict=True)]


@pytest.mark.parametrize("base", SAMPLES)
def test_a_layer_at_a_time_is_the_whole_model_bit_for_bit(samples: Path, base: str) -> None:
    import torch

    whole, shape = states(samples / base, windows()), checkpoint.shape(samples / base)
    seen = []
    for layer in layerwise.walk(samples / base, windows(), gram=True):
        assert all(torch.equal(mine, other) for mine, other in zip(layer.hidden, whole[layer.place], strict=True))
        for name, inputs in layer.inputs.items():
            assert inputs.tokens == 6 * 48
            torch.testing.assert_close(inputs.gram.diagonal().double(), inputs.squares, rtol=1e-4, atol=1e-4)
            assert layer.weight(name).shape[1] == len(inputs.norms)
            seen.append(name)
    assert sorted(seen) == [linear.name for linear in shape.linears]


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("Llama", {"tie_word_embeddings": False}),
        ("Mistral", {"sliding_window": 16}),
        ("Qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 2}),
    ],
)
def test_masks_of_each_layer_s_own_and_untied_heads(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    import torch

    source = make(tmp_path / "base", kind, **config)
    whole = states(source, windows())
    for layer in layerwise.walk(source, windows()):
        assert all(torch.equal(mine, other) for mine, other in zip(layer.hidden, whole[layer.place], strict=True))


def test_what_a_linear_is_shown_is_counted_as_in_float64(samples: Path) -> None:
    import torch

    model = dense.load(samples / "sample-llama", dtype="float32")
    rows: list[Any] = []
    name = "model.layers.2.mlp.down_proj"
    model.get_submodule(name).register_forward_pre_hook(lambda _, given: rows.append(given[0].detach().double().flatten(0, -2)))
    with torch.no_grad():
        model.base_model(torch.tensor(windows()), use_cache=False)
    inputs = next(layer.inputs[name] for layer in layerwise.walk(samples / "sample-llama", windows(), gram=True) if layer.place == 2)
    torch.testing.assert_close(inputs.gram.double(), rows[0].t() @ rows[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(inputs.norms.double(), rows[0].norm(dim=0), rtol=1e-5, atol=1e-6)


def test_query_key_and_value_share_what_they_are_shown(samples: Path) -> None:
    layer = next(layerwise.walk(samples / "sample-llama", windows()))
    root = "model.layers.0.self_attn."
    assert layer.inputs[f"{root}q_proj"] is layer.inputs[f"{root}k_proj"] is layer.inputs[f"{root}v_proj"]
    assert layer.inputs[f"{root}q_proj"] is not layer.inputs[f"{root}o_proj"]


def halve(name: str, weight: Any, inputs: Inputs) -> tuple[Any, dict[str, float]]:
    return weight / 2, {"half": 0.5}


@pytest.mark.parametrize("base", SAMPLES)
def test_later_layers_see_the_changed_ones_and_all_else_stays(samples: Path, tmp_path: Path, base: str) -> None:
    import torch
    from safetensors.torch import load_file

    before = (samples / base / "model.safetensors").read_bytes()
    shown: list[Any] = []

    def change(name: str, weight: Any, inputs: Inputs) -> tuple[Any, dict[str, float]]:
        shown.append(inputs.norms)
        return halve(name, weight, inputs)

    told = layerwise.press(samples / base, tmp_path, windows(), change)
    assert (samples / base / "model.safetensors").read_bytes() == before
    assert set(told) == {linear.name for linear in checkpoint.shape(samples / base).linears}
    assert all(facts == {"half": 0.5} for facts in told.values())
    old, new = load_file(samples / base / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        factor = 2 if name.removesuffix(".weight") in told else 1
        assert torch.equal(new[name] * factor, tensor)
    again = [layer for made in layerwise.walk(tmp_path, windows()) for layer in [inputs.norms for inputs in made.inputs.values()]]
    # Linears late in a layer are shown what its unchanged ones make; those that come first see just what the finished model shows them.
    firsts = range(0, len(shown), len(shown) // checkpoint.shape(tmp_path).layers)
    attention = next(place for place, name in enumerate(told) if name.endswith(("q_proj", "c_attn")))
    assert all(torch.equal(shown[first + attention], again[first + attention]) for first in firsts)


def test_nothing_changed_gives_the_very_bytes(samples: Path, tmp_path: Path) -> None:
    layerwise.press(samples / "sample-llama", tmp_path, windows(), lambda name, weight, inputs: (weight, {}))
    assert (tmp_path / "model.safetensors").read_bytes() == (samples / "sample-llama" / "model.safetensors").read_bytes()
    assert (tmp_path / "config.json").read_bytes() == (samples / "sample-llama" / "config.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_shards_are_kept_with_a_true_index(tmp_path: Path) -> None:
    source, target = make(tmp_path / "base", "Llama", shards="100KB"), tmp_path / "made"
    target.mkdir()
    layerwise.press(source, target, windows(), halve)
    names = sorted(path.name for path in source.glob("*.safetensors"))
    assert len(names) > 3
    assert sorted(path.name for path in target.iterdir()) == sorted([*names, "config.json", "model.safetensors.index.json"])
    old, new = (json.loads((folder / "model.safetensors.index.json").read_text()) for folder in (source, target))
    assert new["weight_map"] == old["weight_map"]
    assert new["metadata"]["total_size"] == old["metadata"]["total_size"]
    assert checkpoint.shape(target) == checkpoint.shape(source)
    dense.load(target, dtype="float32")


def test_numbers_that_fail_keep_their_linear_and_are_named(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source, target = make(tmp_path / "base", "Llama"), tmp_path / "made"
    tensors = load_file(source / "model.safetensors")
    broken, refused, overflown = (f"model.layers.{place}" for place in ("3.mlp.down_proj", "1.mlp.up_proj", "1.mlp.gate_proj"))
    tensors[f"{broken}.weight"][0, 0] = float("nan")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    target.mkdir()

    def change(name: str, weight: Any, inputs: Inputs) -> tuple[Any, dict[str, float]]:
        if name == refused:
            raise KeptError("its matrix has no inverse")
        return (weight * float("inf"), {}) if name == overflown else halve(name, weight, inputs)

    told = layerwise.press(source, target, windows(), change)
    kept = {name: facts["kept"] for name, facts in told.items() if "kept" in facts}
    assert kept == {
        broken: "its weights hold NaN or infinity",
        refused: "its matrix has no inverse",
        overflown: "the changed weights hold NaN or infinity",
    }
    made = load_file(target / "model.safetensors")
    assert all(torch.equal(made[f"{name}.weight"], tensors[f"{name}.weight"]) for name in (refused, overflown))

    tensors[f"{broken}.weight"][0, 0] = 0.0
    tensors["model.layers.0.post_attention_layernorm.weight"][5] = float("inf")
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    told = layerwise.press(source, target, windows(), halve)
    assert told["model.layers.0.mlp.up_proj"] == {"kept": "its inputs on the calibration text hold NaN or infinity"}
    assert "half" in told["model.layers.0.self_attn.o_proj"]
    assert "kept" in told["model.layers.1.self_attn.q_proj"]


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = make(tmp_path / "base", "Llama")
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadCheckpoint, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        next(layerwise.walk(source, windows()))


def test_old_names_of_gpt2_become_today_s_and_needless_buffers_go(samples: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(samples / "sample-gpt2" / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old["h.0.attn.bias"] = torch.ones(1, 1, 8, 8)
    (tmp_path / "base").mkdir()
    (tmp_path / "made").mkdir()
    save_file(old, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "base" / "config.json").write_bytes((samples / "sample-gpt2" / "config.json").read_bytes())
    streaming.rewrite(tmp_path / "base", tmp_path / "made", lambda name, tensor: {name: tensor})
    assert (tmp_path / "made" / "model.safetensors").read_bytes() == (samples / "sample-gpt2" / "model.safetensors").read_bytes()


def test_streaming_writes_what_safetensors_would_and_names_what_is_new(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    (tmp_path / "base").mkdir()
    (tmp_path / "made").mkdir()
    given = {
        "b.weight": torch.randn(3, 5).to(torch.bfloat16), "a.weight": torch.zeros(0, 4), "c.scale": torch.tensor(2.5),
        "d.codes": torch.arange(7, dtype=torch.uint8),
        "e.low": torch.randn(3).to(torch.float8_e4m3fn), "f.flag": torch.tensor([True, False]),
    }  # fmt: skip
    save_file(given, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "base" / "config.json").write_text('{"architectures": ["Some"]}')

    def change(name: str, tensor: Any) -> dict[str, Any]:
        if name == "d.codes":
            return {}
        return {name: tensor.t(), f"{name}.twice": tensor.float() * 2} if name == "b.weight" else {name: tensor}

    streaming.rewrite(tmp_path / "base", tmp_path / "made", change)
    made = load_file(tmp_path / "made" / "model.safetensors")
    expected = {name: tensor for name, tensor in given.items() if name != "d.codes"}
    expected |= {"b.weight": given["b.weight"].t(), "b.weight.twice": given["b.weight"].float() * 2}
    assert made.keys() == expected.keys()
    assert all(made[name].dtype == tensor.dtype and torch.equal(made[name], tensor) for name, tensor in expected.items())
    assert [path.name for path in sorted((tmp_path / "made").iterdir())] == ["config.json", "model.safetensors"]


def test_what_streaming_is_told_twice_or_never_is_an_error(samples: Path, tmp_path: Path) -> None:
    given = streaming.Source(samples / "sample-gpt2")
    with pytest.raises(ValueError, match="nothing was said of"), streaming.Writer(tmp_path, given):
        pass
    for again, says in ((given.names[0], "was said before"), (given.names[1], "was stored before")):
        with pytest.raises(ValueError, match=says), streaming.Writer(tmp_path, given) as out:  # noqa: PT012 - the second call raises
            out.copy(given.names[0])
            out.add(again, {given.names[0]: given.read(given.names[0])})
    assert list(tmp_path.iterdir()) == []


CHILD = """
import json, sys
from pathlib import Path
from runners import layerwise, memory, streaming
import torch
small, source, target = map(Path, sys.argv[1:4])
shown = torch.randint(0, 200, (8, 64), generator=torch.Generator().manual_seed(0)).tolist()
keep = lambda name, weight, inputs: (weight * 1.0, {})
for folder in ("layers", "tensors"):
    (target / folder).mkdir(parents=True)
for _ in layerwise.walk(small, shown, gram=True):  # libraries and their pools are not the model's
    pass
grown = {}
for what, work in {
    "layers": lambda to: layerwise.press(source, to, shown, keep, gram=True),
    "tensors": lambda to: streaming.rewrite(source, to, lambda name, tensor: {name: tensor * 1.0}),
}.items():
    memory.release()
    memory.reset_peak()
    before = memory.resident()
    work(target / what)
    grown[what] = memory.peak() - before
print(json.dumps(grown))
"""


def test_the_peak_of_memory_stays_far_below_the_model(samples: Path, tmp_path: Path) -> None:
    source = make(
        tmp_path / "base", "Llama", shards="20MB", hidden_size=512, num_hidden_layers=20, num_attention_heads=8, num_key_value_heads=8,
        intermediate_size=1536, vocab_size=2048,
    )  # fmt: skip
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    assert size > 130_000_000
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(samples / "sample-llama"), str(source), str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, env=environment)
    grown = json.loads(done.stdout.splitlines()[-1])
    print({name: f"{value / size:.2f} x {size / 1e6:.0f} MB" for name, value in grown.items()})
    assert grown["layers"] < 0.8 * size
    assert grown["tensors"] < 0.2 * size
    for path in source.glob("*.safetensors"):
        assert (tmp_path / "made" / "layers" / path.name).read_bytes() == path.read_bytes()


PRESSES = """
import json, sys
from pathlib import Path
from hub.domain import ModelRef
from runners import memory, press, recipes, rehearsal
import torch
torch.set_num_threads(1)
name, small, source, target = sys.argv[1:]
recipe = rehearsal.shortened(recipes.load(name), samples=4, sequence_length=128)
base = ModelRef(repo_id="a/b", sha="0" * 40)
press.press(base, Path(small), recipe, Path(target) / "small")  # libraries and their pools are not the model's
memory.release()
memory.reset_peak()
before = memory.resident()
press.press(base, Path(source), recipe, Path(target) / "made")
print(json.dumps(memory.peak() - before))
"""


@pytest.fixture(scope="module")
def deep(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 64 thin layers, 111 MB: a layer is next to nothing of the whole."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 768}
    folder = make(tmp_path_factory.mktemp("deep") / "base", "Llama", shards="20MB", vocab_size=2048, **sizes)
    checkpoint.carry_over(samples / "sample-llama", folder)
    return folder


@pytest.mark.parametrize("name", ["smoothquant-w8a8", "awq-w4a16-g64", "sparsegpt-50", "asvd-80-global"])
def test_pressing_a_layer_at_a_time_takes_less_memory_than_the_model(samples: Path, deep: Path, tmp_path: Path, name: str) -> None:
    assert methods.get(recipes.load(name).method).WORKS in ("streaming", "layerwise")
    size = checkpoint.shape(deep).bytes
    command = [sys.executable, "-c", PRESSES, name, *map(str, (samples / "sample-llama", deep, tmp_path))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    grown = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {grown / size:.2f} x {size / 1e6:.0f} MB")
    assert grown < 0.95 * size  # the model in its own dtype is 1, in float32 2; what may be taken is 1.5
