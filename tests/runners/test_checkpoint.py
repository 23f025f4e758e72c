from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

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
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "gone.safetensors"}}'), "lacks gone"),
        (lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'), "outside"),
        (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "not a valid index"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(folder: Path, harm: object, message: str) -> None:
    harm(folder)  # type: ignore[operator]
    with pytest.raises(BadCheckpoint, match=message) as caught:
        checkpoint.check(folder)
    assert caught.value.hint


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


def test_leftovers_of_dead_processes_are_cleared_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    dead, living = tmp_path / "v.partial-4194399", tmp_path / "v.partial-1"
    dead.mkdir()
    living.mkdir()
    with checkpoint.partial(tmp_path / "v"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v", "v.partial-1"]


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
