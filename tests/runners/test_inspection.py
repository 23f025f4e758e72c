"""The facts that the gate judges: each kind of defect is seen."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hub.domain import Artifact, ModelRef
from runners import checkpoint, recipes
from runners.inspection import inspect

pytestmark = [pytest.mark.integration, pytest.mark.shared]

RECIPE = recipes.load("bnb-nf4")
BASE = ModelRef(repo_id="local/stories260K", sha="local-0")


@pytest.fixture
def base(shared: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    shutil.copytree(shared / "models" / "stories260K", folder, copy_function=shutil.copyfile)
    (folder / "SOURCES.md").unlink()
    (folder / "LICENSE").write_text("MIT")
    return folder


@pytest.fixture
def variant(base: Path, tmp_path: Path) -> Path:
    """A checkpoint that claims to be NF4 and is the dense base: it loads, and nothing is packed."""
    folder = tmp_path / "variant"
    shutil.copytree(base, folder)
    _write(folder)
    return folder


def _write(folder: Path) -> Artifact:
    (folder / checkpoint.MANIFEST).unlink(missing_ok=True)
    return checkpoint.write(folder, base=BASE, recipe=RECIPE, parameters=260_032, libraries={})


def test_a_checkpoint_that_was_not_packed_is_seen_through(variant: Path, base: Path) -> None:
    facts = inspect(variant, RECIPE, base)
    assert facts.loads
    assert facts.packed_expected == 35
    assert facts.packed_found == 0
    assert len(facts.not_packed) == 20
    assert facts.tensor_bytes_found > 1.5 * facts.tensor_bytes_expected
    assert (facts.missing_files, facts.unexpected_files, facts.checksum_errors, facts.non_finite) == ((), (), (), ())
    assert len(facts.generated_ids) == 16
    assert facts.generated_text
    assert set(facts.layers.values()) == {(7, 0)}
    assert len(facts.layers) == 5
    assert facts.outlines["model.norm.weight"] == ("F32", (64,))
    assert '"model_type": "llama"' in facts.config


def test_files_that_should_not_be_there_and_files_that_should(variant: Path, base: Path) -> None:
    (variant / "weights.bin").write_bytes(b"pickle")
    (variant / "modeling_x.py").write_text("")
    (variant / "notes.txt").write_text("")
    (variant / "README.md").write_text("a card is added on publishing")
    (variant / "link.json").symlink_to("/etc/hostname")
    (variant / "LICENSE").unlink()
    (variant / "tokenizer_config.json").write_text("{}")
    facts = inspect(variant, RECIPE, base)
    assert facts.missing_files == ("LICENSE",)
    assert facts.unexpected_files == (
        "link.json: symbolic link",
        "modeling_x.py: pickle or code",
        "weights.bin: pickle or code",
        "notes.txt: not in the manifest",
    )
    assert set(facts.checksum_errors) == {
        "LICENSE: missing",
        "tokenizer_config.json: not the bytes that the manifest lists",
    }
    assert facts.unlike_base == ("tokenizer_config.json",)


def test_numbers_that_are_not_finite(variant: Path, base: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(variant / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.weight"))
    tensors[name][0, 0] = float("nan")
    save_file(tensors, variant / "model.safetensors", metadata={"format": "pt"})
    _write(variant)
    facts = inspect(variant, RECIPE, base)
    assert facts.loads
    assert set(facts.non_finite) == {name, "logits"}


def test_a_cut_file_does_not_load_and_raises_nothing(variant: Path, base: Path) -> None:
    weights = variant / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300_000])
    facts = inspect(variant, RECIPE, base)
    assert not facts.loads
    assert "truncated" in facts.load_error
    assert facts.checksum_errors == ("model.safetensors: not the bytes that the manifest lists",)


def test_without_a_manifest_a_checkpoint_is_not_whole(variant: Path, base: Path) -> None:
    (variant / checkpoint.MANIFEST).unlink()
    assert inspect(variant, RECIPE, base).missing_files == (checkpoint.MANIFEST,)
    (variant / checkpoint.MANIFEST).write_text("{}")
    assert inspect(variant, RECIPE, base).checksum_errors[0].startswith(checkpoint.MANIFEST)
