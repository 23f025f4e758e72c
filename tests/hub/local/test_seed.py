"""What a hub starts with: the same everywhere, planted once, and each refused model with its one fault."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from hub.local import commits, repos, seed, summary
from hub.local.app import Hub, open_hub
from hub.local.config import HubConfig


def heads(hub: Hub) -> dict[str, str]:
    with hub.database.read() as connection:
        found = [repos.from_row(row) for row in connection.execute("SELECT * FROM repos").fetchall()]
        return {repo.id: commits.resolve(connection, repo, "main").id for repo in found}


def planted(root: Path) -> Hub:
    hub = open_hub(root, HubConfig())
    seed.plant(hub, samples=True)
    return hub


def test_two_hubs_start_with_the_same_commits(tmp_path: Path) -> None:
    first = heads(planted(tmp_path / "one"))
    assert first == heads(planted(tmp_path / "two"))
    assert len(first) >= 7


def test_planting_again_changes_nothing(tmp_path: Path) -> None:
    before = heads(planted(tmp_path))
    with planted(tmp_path).database.write() as connection:
        connection.execute("UPDATE repos SET likes = likes + 1 WHERE name = 'no-licence'")
    hub = planted(tmp_path)
    assert heads(hub) == before
    with hub.database.read() as connection:
        repo = repos.find(connection, "model", "modelpress-refusals", "no-licence")
    assert repo is not None
    assert repo.likes == 78


def test_without_samples_the_hub_is_empty(tmp_path: Path) -> None:
    hub = open_hub(tmp_path, HubConfig())
    seed.plant(hub, samples=False)
    assert heads(hub) == {}


def test_only_complete_sample_folders_are_planted(tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete = sorted(folder for folder in samples.glob("*") if (folder / "README.md").exists())
    if not complete:
        pytest.skip("no sample models in this checkout")
    copies = tmp_path / "samples"
    shutil.copytree(complete[0], copies / "modelpress-samples" / "whole-one")
    shutil.copytree(complete[0], copies / "modelpress-samples" / "half-done", ignore=shutil.ignore_patterns("README.md"))
    monkeypatch.setattr(seed, "SAMPLES", copies)
    found = heads(planted(tmp_path / "hub"))
    assert "modelpress-samples/whole-one" in found
    assert "modelpress-samples/half-done" not in found


@pytest.mark.parametrize(
    ("name", "trait"),
    [
        ("no-licence", lambda known: "license" not in known["cardData"]),
        ("pickle-only", lambda known: "pytorch" in known["tags"] and "safetensors" not in known["tags"]),
        ("remote-code", lambda known: "custom_code" in known["tags"] and "auto_map" in known["config"]),
        ("sample-llama-GGUF", lambda known: "base_model:quantized:modelpress-samples/sample-llama" in known["tags"]),
        ("non-commercial", lambda known: known["cardData"]["license"] == "cc-by-nc-4.0"),
        ("image-classifier", lambda known: known["pipeline_tag"] == "image-classification"),
        ("gated-llama", lambda known: known["pipeline_tag"] == "text-generation"),
    ],
)
def test_each_refused_model_has_its_fault(tmp_path: Path, name: str, trait: Any) -> None:
    hub = planted(tmp_path)
    with hub.database.read() as connection:
        repo = repos.find(connection, "model", "modelpress-refusals", name)
        assert repo is not None
        assert repo.gated == ("manual" if name == "gated-llama" else "")
        assert trait(summary.of(connection, hub.blobs, commits.resolve(connection, repo, "main").tree))


def test_the_numbers_are_said_to_be_made_up() -> None:
    import json

    assert "made up" in json.loads((Path(seed.__file__).parent / "seed.json").read_text())["about"]
