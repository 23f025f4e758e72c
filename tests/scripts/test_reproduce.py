"""`modelpress measure --json`, then `modelpress reproduce`, on a sample model; then of a stored job and of a release."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from .conftest import Folder, QuickRun, new_folder

pytestmark = pytest.mark.integration
CERTAIN = ("perplexity", "perplexity_ratio", "kl_divergence", "same_top_token", "disk_size", "bits_per_weight")
"""What does not depend on how busy the machine is."""
ONLY_CERTAIN = [word for name in CERTAIN for word in ("--metric", name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return new_folder(tmp_path_factory.mktemp("reproduce"))


@pytest.fixture(scope="module")
def measured(folder: Folder, samples: Path) -> Path:
    """A sample model with a little noise in one matrix, measured beside the sample itself."""
    import torch
    from safetensors.torch import load_file, save_file

    variant = folder.path / "variant"
    shutil.copytree(samples / "sample-llama", variant)
    tensors = load_file(variant / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    tensors[name] = (tensors[name] * (1 + 0.3 * noise)).to(tensors[name].dtype)
    save_file(tensors, variant / "model.safetensors", metadata={"format": "pt"})
    words = ("measure", "variant", "--base", str(samples / "sample-llama"), "--protocol", "stdlib-heldout@512-quick", "--json")
    done = folder.run(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    path = folder.path / "measured.json"
    path.write_text(done.stdout)
    return path


def test_a_measurement_comes_out_the_same(folder: Folder, measured: Path) -> None:
    found = folder.json("reproduce", measured.name, *ONLY_CERTAIN)
    assert {row["then"]["metric"] for row in found["repeats"]} == set(CERTAIN)
    assert all(row["agrees"] for row in found["repeats"])
    assert max(abs(row["difference"]) for row in found["repeats"]) < 1e-6
    assert found["changes"] == []


def edited(path: Path, **changes: Any) -> Path:
    """A copy of a measurement's file, to be measured for its text alone."""
    document = json.loads(path.read_text())
    document["protocol"] |= {"speed": None, "memory": None, "quality": {"sequence_length": 64, "windows": 4}}
    document |= changes
    other = path.with_name("edited.json")
    other.write_text(json.dumps(document))
    return other


def test_a_number_that_was_never_measured_does_not_come_out(folder: Folder, measured: Path) -> None:
    number = next(one for one in json.loads(measured.read_text())["measurements"] if one["metric"] == "perplexity")
    wrong = number | {name: number[name] * 1e6 for name in ("value", "ci_low", "ci_high")}
    done = folder.run("reproduce", edited(measured, measurements=[wrong]).name)
    assert done.returncode == 31
    assert "1 of 1 numbers do not agree: perplexity" in done.stderr
    assert "does not agree: differs" in done.stdout
    assert "-100.00%" in done.stdout


def test_other_weights_are_not_the_same_measurement(folder: Folder, measured: Path) -> None:
    done = folder.run("reproduce", edited(measured, folder_sha="local-0123456789abcdef").name)
    assert done.returncode == 8
    assert "other weights" in done.stderr


def contents(folder: Folder) -> list[Any]:
    with closing(sqlite3.connect(folder.press / "modelpress.db")) as connection:
        return [connection.execute(f"SELECT * FROM {table}").fetchall() for table in ("jobs", "measurements", "scores")]


def test_a_stored_measurement_is_taken_again_on_its_release_and_nothing_is_recorded(quick_run: QuickRun, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "copy", quick_run.folder.port)
    shutil.copytree(quick_run.folder.path, folder.path, symlinks=True)
    with closing(sqlite3.connect(folder.press / "modelpress.db")) as connection:
        joined = "releases JOIN variants ON variants.id = variant_id JOIN models ON models.id = model_id"
        label, variant, base = connection.execute(f"SELECT label, variant_id, models.repo_id FROM {joined}").fetchone()
    before = contents(folder)
    assert all(before), "the run kept jobs, numbers and scores"
    compared = folder.json("compare", label, base)
    assert {"perplexity", "kl_divergence", "same_top_token"} <= {row["metric"] for row in compared["pairs"]}
    shutil.rmtree(folder.press / "artifacts" / variant)
    found = folder.json("reproduce", label, *ONLY_CERTAIN)
    assert {row["then"]["metric"] for row in found["repeats"]} == set(CERTAIN)
    assert all(row["agrees"] for row in found["repeats"])
    assert [row["now"]["value"] for row in found["repeats"]] == pytest.approx([row["then"]["value"] for row in found["repeats"]], rel=1e-5)
    assert found["changes"] == []
    assert contents(folder) == before
    assert not (folder.press / "artifacts" / variant).exists()
