"""list_models through the real client: sorts, filters, search, pages, expansions."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

pytestmark = pytest.mark.integration

REFUSED = "modelpress-refusals"


def ids(models: Any) -> list[str]:
    return [model.id for model in models]


@pytest.mark.parametrize(
    ("sort", "key"),
    [
        ("downloads", lambda model: model.downloads),
        ("likes", lambda model: model.likes),
        ("trending_score", lambda model: model.trending_score),
        ("created_at", lambda model: model.created_at),
        ("last_modified", lambda model: model.last_modified),
    ],
)
def test_sorts_in_descending_order(api: Any, sort: str, key: Any) -> None:
    models = list(api.list_models(sort=sort, full=True))
    values = [key(model) for model in models]
    assert len(values) >= 7
    assert values == sorted(values, reverse=True)


def test_unknown_sort_is_refused(raw: Any) -> None:
    status, _, body = raw("GET", "/api/models?sort=size")
    assert status == 400
    assert "downloads, likes, trendingScore" in json.loads(body)["error"]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=x", "num_parameters=big", "cursor=!!", "cursor=W10=", "gated=maybe", "expand=everything"]
)
def test_malformed_queries_are_refused(raw: Any, query: str) -> None:
    assert raw("GET", f"/api/models?{query}")[0] == 400


def test_pages_follow_each_other_without_gap_or_double(api: Any, raw: Any, hub: Any) -> None:
    whole = ids(api.list_models(sort="downloads", author=REFUSED))
    seen: list[str] = []
    path = f"/api/models?sort=downloads&limit=2&author={REFUSED}"
    while path:
        status, headers, body = raw("GET", path)
        assert status == 200
        page = json.loads(body)
        assert 0 < len(page) <= 2
        seen += [model["id"] for model in page]
        link = headers.get("link", "")
        path = link.partition(">")[0].removeprefix("<").removeprefix(hub.endpoint)
    assert seen == whole
    assert len(whole) == 7


@pytest.mark.parametrize("sort", ["likes", "last_modified", "trending_score"])
def test_the_client_follows_pages(api: Any, monkeypatch: pytest.MonkeyPatch, sort: str) -> None:
    from huggingface_hub import hf_api

    whole = ids(api.list_models(sort=sort, author=REFUSED))
    paginate = hf_api.paginate
    monkeypatch.setattr(hf_api, "paginate", lambda path, params, headers: paginate(path, params={**params, "limit": 3}, headers=headers))
    assert ids(api.list_models(sort=sort, author=REFUSED)) == whole


def test_limit(api: Any) -> None:
    assert len(list(api.list_models(limit=3))) == 3


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"pipeline_tag": "image-classification"}, {"image-classifier"}),
        ({"filter": "gguf"}, {"sample-llama-GGUF"}),
        ({"filter": ["license:apache-2.0", "llama"]}, {"gated-llama"}),
        ({"filter": "base_model:quantized:modelpress-samples/sample-llama"}, {"sample-llama-GGUF"}),
        ({"filter": "custom_code"}, {"remote-code"}),
        ({"search": "COMMERCIAL"}, {"non-commercial"}),
        ({"search": "sample gguf"}, {"sample-llama-GGUF"}),
        ({"gated": True}, {"gated-llama"}),
        ({"apps": "llama.cpp"}, {"sample-llama-GGUF"}),
        ({"inference": "warm"}, set()),
        ({"inference_provider": "all"}, set()),
        ({"search": "no such model"}, set()),
    ],
)
def test_filters(api: Any, query: dict[str, Any], expected: set[str]) -> None:
    assert {model.id.removeprefix(f"{REFUSED}/") for model in api.list_models(author=REFUSED, **query)} == expected


def test_author_and_gated_false(api: Any) -> None:
    models = list(api.list_models(author=REFUSED, gated=False, full=True))
    assert len(models) == 6
    assert all(model.gated is False for model in models)


def header(**tensors: tuple[str, list[int]]) -> bytes:
    sizes = {"BF16": 2, "F32": 4}
    entries, start = {}, 0
    for name, (dtype, shape) in tensors.items():
        length = sizes[dtype] * shape[0] * shape[1]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + length]}
        start += length
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + bytes(start)


def test_parameters_are_counted_and_filtered(api: Any, repo: str) -> None:
    weights = header(a=("BF16", [100, 20]), b=("F32", [10, 5]))
    api.upload_file(path_or_fileobj=weights, path_in_repo="model.safetensors", repo_id=repo)
    info = api.model_info(repo)
    assert info.safetensors.parameters == {"BF16": 2000, "F32": 50}
    assert info.safetensors.total == 2050
    assert repo in ids(api.list_models(author="modelpress", num_parameters="min:2K,max:2.1K"))
    assert repo not in ids(api.list_models(author="modelpress", num_parameters="min:3K"))
    assert repo not in ids(api.list_models(author="modelpress", num_parameters="max:2K"))
    assert ids(api.list_models(author=REFUSED, num_parameters="min:1")) == []


def test_shards_are_counted_through_their_index(api: Any, repo: str) -> None:
    from huggingface_hub import CommitOperationAdd

    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {
        "model-1.safetensors": header(a=("BF16", [10, 10])),
        "model-2.safetensors": header(b=("BF16", [10, 20])),
        "model.safetensors.index.json": json.dumps(index).encode(),
    }
    api.create_commit(repo, [CommitOperationAdd(path, data) for path, data in files.items()], commit_message="shards")
    assert api.model_info(repo).safetensors.total == 300


@pytest.mark.parametrize("weights", [b"", b"\xff" * 8, b"\xff" * 100, struct.pack("<Q", 4) + b"[1]x", struct.pack("<Q", 2) + b"{}"])
def test_broken_weights_have_no_count(api: Any, repo: str, weights: bytes) -> None:
    api.upload_file(path_or_fileobj=weights, path_in_repo="model.safetensors", repo_id=repo)
    assert api.model_info(repo).safetensors is None


def test_expand_returns_what_was_asked_for(api: Any) -> None:
    (model,) = api.list_models(author=REFUSED, search="no-licence", expand=["downloads", "siblings", "cardData", "config", "gated"])
    assert model.downloads == 21400
    assert {sibling.rfilename for sibling in model.siblings} == {".gitattributes", "README.md", "config.json"}
    assert model.config["architectures"] == ["LlamaForCausalLM"]
    assert model.card_data.pipeline_tag == "text-generation"
    assert model.gated is False
    assert model.likes is None


def test_full_config_and_card_data(api: Any) -> None:
    (model,) = api.list_models(author=REFUSED, search="non-commercial", full=True, fetch_config=True, cardData=True)
    assert model.card_data.license == "cc-by-nc-4.0"
    assert model.config["model_type"] == "llama"
    assert model.sha == api.model_info(model.id).sha
    (brief,) = api.list_models(author=REFUSED, search="non-commercial")
    assert brief.siblings is None
    assert brief.config is None


def test_private_models_are_listed_for_their_owner_alone(api: Any, anonymous: Any, name: str) -> None:
    api.create_repo(name, private=True)
    assert name in ids(api.list_models(author="modelpress"))
    assert name not in ids(anonymous.list_models(author="modelpress"))


def test_samples_are_the_most_downloaded_text_models(api: Any, samples: Any) -> None:
    there = [folder.name for folder in samples.glob("*") if (folder / "README.md").exists()]
    if not there:
        pytest.skip("no sample models in this checkout")
    listed = list(
        api.list_models(author="modelpress-samples", filter="text-generation", sort="downloads", expand=["safetensors", "downloads"])
    )
    assert {model.id.split("/")[1] for model in listed} == set(there)
    assert all(model.safetensors.total > 1_000_000 and model.downloads > 0 for model in listed)


def test_datasets_and_models_are_apart(api: Any, name: str) -> None:
    api.create_repo(name, repo_type="dataset")
    assert name in [dataset.id for dataset in api.list_datasets(author="modelpress")]
    assert name not in ids(api.list_models(author="modelpress"))
    api.upload_file(path_or_fileobj=b"a,b\n", path_in_repo="data.csv", repo_id=name, repo_type="dataset")
    assert api.list_repo_files(name, repo_type="dataset") == [".gitattributes", "data.csv"]
