"""The hub's answers against answers of the real Hub that huggingface_hub's own tests recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, ModelInfo

pytestmark = [pytest.mark.integration, pytest.mark.shared]

# What the real Hub tells of its own services, which the embedded hub does not have.
SERVICES = {"widgetData", "inference", "mask_token", "gitalyUid", "spaces", "resourceGroup"}
SERVICE_TAGS = {"autotrain_compatible", "endpoints_compatible", "text-generation-inference", "has_space", "text-embeddings-inference"}


@pytest.fixture(scope="session")
def recorded(shared: Path) -> list[dict[str, Any]]:
    path = shared / "data/hf-api-recorded/huggingface_hub_cassette_responses.json"
    if not path.exists():
        pytest.skip("no recorded answers of the Hub")
    answers: list[dict[str, Any]] = json.loads(path.read_text())
    return answers


@pytest.fixture(scope="session")
def infos(recorded: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All full model_info answers."""
    return [
        answer["json"]
        for answer in recorded
        if "/api/models/" in answer["uri"] and isinstance(answer["json"], dict) and "siblings" in answer["json"]
    ]


def shape(value: Any) -> str:
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def card_of(info: dict[str, Any]) -> str:
    import yaml

    return f"---\n{yaml.safe_dump(info['cardData'])}---\n# {info['id']}\n"


def replanted(api: Any, repo: str, info: dict[str, Any]) -> dict[str, Any]:
    """Put a recorded model's card and config into a repository here and return what this hub tells of it."""
    import httpx

    files = {sibling["rfilename"]: b"" for sibling in info["siblings"] if "/" not in sibling["rfilename"]}
    files.pop(".gitattributes", None)
    files["README.md"] = card_of(info).encode()
    config = dict(info.get("config") or {})
    files["tokenizer_config.json"] = json.dumps(config.pop("tokenizer_config", {})).encode()
    if config:
        files["config.json"] = json.dumps(config).encode()
    operations = [CommitOperationAdd(path, data) for path, data in files.items() if data or not path.endswith((".json", ".jinja"))]
    api.create_commit(repo, operations, commit_message="replant")
    answer: dict[str, Any] = httpx.get(f"{api.endpoint}/api/models/{repo}").json()
    return answer


def test_the_shape_of_model_info(api: Any, repo: str, infos: list[dict[str, Any]]) -> None:
    real = next(info for info in infos if info["id"] == "meta-llama/Llama-3.1-8B-Instruct")
    ours = replanted(api, repo, real)
    missing = set(real) - set(ours) - SERVICES - {"safetensors"}
    assert missing == set()
    for key in set(real) & set(ours) - {"gated"}:
        assert shape(ours[key]) == shape(real[key]), key
    assert ModelInfo(**ours).card_data.license == "llama3.1"


@pytest.mark.parametrize(
    "model",
    [
        "meta-llama/Llama-3.1-8B-Instruct",
        "HuggingFaceH4/zephyr-7b-beta",
        "openai-community/gpt2",
        "google-bert/bert-base-uncased",
        "facebook/bart-large-mnli",
    ],
)
def test_derived_facts_agree_with_the_real_hub(api: Any, repo: str, infos: list[dict[str, Any]], model: str) -> None:
    real = next(info for info in infos if info["id"] == model)
    ours = replanted(api, repo, real)
    for key in ("pipeline_tag", "library_name", "cardData", "config"):
        assert ours.get(key) == real.get(key), key
    formats = {"jax", "tf", "rust", "coreml", "tflite", "onnx"}  # from files in folders or of other libraries
    expected = {tag for tag in real["tags"] if not tag.startswith(("doi:", "arxiv:", "base_model:"))} - SERVICE_TAGS - formats
    assert expected <= set(ours["tags"]), expected - set(ours["tags"])


def test_every_recorded_card_is_accepted(infos: list[dict[str, Any]]) -> None:
    from hub.local import cards

    for info in infos:
        if info.get("cardData"):
            assert cards.validate(card_of(info))[0] == [], info["id"]


def test_the_shape_of_preupload_and_commit(raw: Any, hub: Any, repo: str, recorded: list[dict[str, Any]]) -> None:
    def newest(ending: str) -> dict[str, Any]:
        found: dict[str, Any] = [answer["json"] for answer in recorded if answer["uri"].endswith(ending)][-1]
        return found

    body = {"files": [{"path": "app.py", "sample": "cHJpbnQ=", "size": 5}]}
    ours = json.loads(raw("POST", f"/api/models/{repo}/preupload/main", body, token=hub.write_token)[2])
    real = newest("/preupload/main")
    assert set(ours) == set(real)
    assert ours["files"] == real["files"]
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": {"path": "app.py", "content": "print"}}]
    ours = json.loads(raw("POST", f"/api/models/{repo}/commit/main", "\n".join(map(json.dumps, lines)).encode(), token=hub.write_token)[2])
    real = newest("/commit/main")
    assert {key: shape(value) for key, value in ours.items()} == {key: shape(value) for key, value in real.items()}
    assert ours["commitUrl"].endswith(f"/{repo}/commit/{ours['commitOid']}")
