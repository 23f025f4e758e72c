from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from hub import owners
from hub.domain import ModelRef
from hub.errors import BadCheckpoint, BadDocument, OutOfDisk
from runners import checkpoint, recipes

SAFETENSORS = {"__metadata__": {"format": "pt"}}


def write_weights(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    header: dict[str, object] = dict(SAFETENSORS)
    start = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(start))


def write_index(folder: Path, text: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)


def write_header(folder: Path, header: str) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(
        json.dumps({"architectures": ["GPT2LMHeadModel"], "n_layer": 1, "n_embd": 4, "vocab_size": 8, "n_positions": 16})
    )
    write_weights(
        made / "model.safetensors",
        {
            "wte.weight": ("BF16", [8, 4], 64),
            "h.0.attn.bias": ("BF16", [1, 1, 2, 2], 8),
            "h.0.attn.c_attn.weight": ("BF16", [4, 12], 96),
            "h.0.attn.c_attn.bias": ("BF16", [12], 24),
        },
    )
    return made


def test_shape_gives_old_gpt2_names_their_root_and_drops_masks(folder: Path) -> None:
    shape = checkpoint.shape(folder)
    assert sorted(shape.tensors) == ["transformer.h.0.attn.c_attn.bias", "transformer.h.0.attn.c_attn.weight", "transformer.wte.weight"]
    assert shape.linears == (checkpoint.Linear(name="transformer.h.0.attn.c_attn", out_features=12, in_features=4),)
    assert (shape.layers, shape.hidden_size, shape.intermediate_size, shape.context, shape.dtype) == (1, 4, 16, 16, "BF16")
    assert shape.parameters == 32 + 48 + 12


def test_a_whole_checkpoint_passes(folder: Path) -> None:
    checkpoint.check(folder)


def test_other_weights_beside_the_model_s_are_not_counted(folder: Path) -> None:
    write_weights(folder / "consolidated.safetensors", {"other.weight": ("BF16", [2], 4)})
    assert checkpoint.shape(folder).parameters == 32 + 48 + 12


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: shutil.rmtree(f), "no checkpoint folder"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "empty"),
        (lambda f: (f / "config.json").write_text('{"auto_map": {}}'), "custom code"),
        (lambda f: (f / "model.safetensors").unlink(), "no \\*.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-5]), "promises .* bytes"),
        (lambda f: (f / "model.safetensors").write_bytes(b"<html>not found</html>"), "does not begin"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "does not begin"),
        (lambda f: (f / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"nope"), "not valid"),
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"x"), "pickles and code"),
        (lambda f: (f / "modeling.py").write_text("x"), "pickles and code"),
        (lambda f: write_index(f, '{"weight_map": {"a": "gone.safetensors"}}'), "lacks gone"),
        (lambda f: write_index(f, '{"weight_map": {"a": "../x.safetensors"}}'), "outside"),
        (lambda f: write_index(f, "[]"), "not a valid index"),
        (lambda f: write_index(f, '{"weight_map": {"a": 5}}'), "not a valid index"),
        (lambda f: write_index(f, "[" * 100_000), "not a valid index"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "not valid JSON"),
        (lambda f: (f / "config.json").write_text('{"quantization_config": [1]}'), "no JSON object"),
        (lambda f: write_header(f, "[" * 100_000), "not valid"),
        (lambda f: write_header(f, '{"a": {"dtype": "U8", "shape": [Infinity], "data_offsets": [0, 1]}}'), "not valid"),
        (lambda f: write_header(f, '{"a": {"dtype": "U8", "shape": [-2, -2], "data_offsets": [0, 4]}}' + " " * 4), "not valid"),
        (lambda f: write_header(f, '{"a": {"dtype": "U8", "shape": [1e9, 1e9], "data_offsets": [0, 1]}}'), "not valid"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(folder: Path, harm: object, message: str) -> None:
    harm(folder)  # type: ignore[operator]
    with pytest.raises(BadCheckpoint, match=message) as caught:
        checkpoint.check(folder)
    assert caught.value.hint


@pytest.mark.parametrize("layers", [0, 2, 10**12, -1])
def test_a_config_that_counts_other_layers_than_are_stored_is_refused(folder: Path, layers: int) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": layers}))
    with pytest.raises(BadCheckpoint, match=f"{layers} layers; the weights hold 1"):
        checkpoint.shape(folder)


@pytest.mark.parametrize(
    "tensors",
    [
        {"wte.weight": None},
        {"wte.weight": ("BF16", [32], 64)},
        {"h.0.attn.c_attn.weight": ("BF16", [4, 4, 3], 96)},
        {"h.0.attn.c_attn.weight": ("BF16", [48], 96)},
        {"h.0.attn.c_attn.weight": ("BF16", [0, 0], 0)},
        {"h.0.attn.c_attn.bias": ("BF16", [3, 4], 24)},
        {"h.0.ln_1.weight": ("BF16", [2, 2], 8)},
    ],
)
def test_weights_that_no_model_has_are_refused_before_a_recipe_counts_on_them(folder: Path, tensors: dict[str, Any]) -> None:
    whole = {"wte.weight": ("BF16", [8, 4], 64), "h.0.attn.c_attn.weight": ("BF16", [4, 12], 96), "h.0.ln_1.weight": ("BF16", [4], 8)}
    write_weights(folder / "model.safetensors", {name: entry for name, entry in (whole | tensors).items() if entry})
    with pytest.raises(BadCheckpoint, match=r"lack transformer\.wte\.weight|which no GPT2LMHeadModel has") as caught:
        checkpoint.shape(folder)
    assert caught.value.hint


@pytest.mark.parametrize("architectures", [None, [], "GPT2LMHeadModel", {"a": 1}, 5])
def test_a_config_without_a_list_of_architectures_names_none(folder: Path, architectures: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    assert checkpoint.shape(folder).architecture == "unknown"


def test_a_quantized_checkpoint_has_no_dense_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(BadCheckpoint, match="already quantized \\(gptq\\)"):
        checkpoint.shape(folder)


def test_the_manifest_is_read_back_and_describes_every_file(folder: Path) -> None:
    recipe = recipes.load(recipes.names()[0])
    assert checkpoint.read_manifest(folder) is None
    made = checkpoint.write(folder, base=ModelRef(repo_id="a/b", sha="0" * 40), recipe=recipe, parameters=3, libraries={"torch": "2"})
    assert checkpoint.read_manifest(folder) == made
    assert [file.path for file in made.files] == ["config.json", "model.safetensors"]
    (folder / checkpoint.MANIFEST).write_text('{"surprise": 1}')
    with pytest.raises(BadDocument):
        checkpoint.read_manifest(folder)


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out" / "variant"

    def fail() -> None:
        with checkpoint.partial(target) as work:
            (work / "half").write_text("x")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert list(target.parent.iterdir()) == []
    with checkpoint.partial(target) as work:
        (work / "whole").write_text("x")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert [path.name for path in target.parent.iterdir()] == ["variant"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), RuntimeError("I/O error: No space left on device (os error 28)")])
def test_a_full_disk_is_named(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OutOfDisk) as caught, checkpoint.partial(tmp_path / "v"):
        raise error
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_dead_processes_are_cleared_and_those_of_living_ones_and_other_machines_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owners, "host", lambda: "a-host/4026")
    mine, dead = "v[1].partial-a-host_4026-1", "v[1].partial-a-host_4026-4194399"
    others = {"v1.partial-a-host_4026-4194399", "v[1].partial-other-4194399", "v[1].partial-a-4194399", "v[1].partial-4194399"}
    for name in {mine, dead, *others, "v[1].partial-old-7", "v[1].partial-busy-7"}:
        (tmp_path / name).mkdir()
    (tmp_path / "v[1].partial-busy-7" / "just-written").touch()
    for name in ("old", "busy"):
        os.utime(tmp_path / f"v[1].partial-{name}-7", (0, 0))
    with checkpoint.partial(tmp_path / "v[1]") as work:
        assert work.name == f"v[1].partial-a-host_4026-{os.getpid()}"
    assert {path.name for path in tmp_path.iterdir()} == {"v[1]", mine, *others, "v[1].partial-busy-7"}


def test_strays_go_and_the_base_s_files_stay(tmp_path: Path) -> None:
    source, target = tmp_path / "base", tmp_path / "made"
    source.mkdir()
    target.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "LICENSE", "NOTICE", "USE_POLICY.md", "generation_config.json", "README.md"):
        (source / name).write_text("of the base")
    for name in ("recipe.yaml", "quant_log.csv", "modeling_x.py", "quantize_config.json"):
        (target / name).write_text("of a library")
    for name in ("config.json", "generation_config.json"):
        (target / name).write_text("made")
    checkpoint.carry_over(source, target)
    checkpoint.remove_strays(target, source)
    kept = {path.name: path.read_text() for path in target.iterdir()}
    assert kept.pop("config.json") == "made"
    assert set(kept) == {"tokenizer.json", "chat_template.jinja", "LICENSE", "NOTICE", "USE_POLICY.md", "generation_config.json"}
    assert set(kept.values()) == {"of the base"}
