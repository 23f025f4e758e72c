import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.catalog import discover, rank, score
from hub.client import HubClient
from hub.domain import Candidate, ModelRef
from hub.errors import HubUnreachable
from hub.listing import unreadable
from hub.local.process import LocalHub
from hub.policy import screen
from hub.settings import HubSettings, PolicySettings, Settings

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SNAPSHOTS = Path(__file__).parents[2] / "../shared/data/hub-snapshots"


def _model(name: str = "a/b", *, days: float | None = 400, **changes: Any) -> Candidate:
    made = "" if days is None else (NOW - timedelta(days=days)).isoformat(timespec="seconds")
    return replace(unreadable(name), created_at=made, **changes)


counts = st.integers(0, 10**9)


@settings(deadline=None)
@given(counts, counts, st.floats(0, 1e6), st.floats(-10, 10_000), counts)
def test_more_of_anything_never_lowers_the_score(downloads: int, likes: int, trend: float, days: float, more: int) -> None:
    base = _model(days=days, downloads=downloads, likes=likes, trending_score=trend)
    for better in (
        replace(base, downloads=downloads + more),
        replace(base, likes=likes + more),
        replace(base, trending_score=trend + more),
    ):
        assert score(better, NOW) >= score(base, NOW) >= 0


def test_the_stated_formula() -> None:
    assert score(_model(), NOW) == 0
    assert score(_model(downloads=999), NOW) == pytest.approx(3)
    assert score(_model(downloads=999, likes=99), NOW) == pytest.approx(4)
    assert score(_model(downloads=999, likes=99, trending_score=99.0), NOW) == pytest.approx(4.5)
    assert score(_model(downloads=333, days=10), NOW) == pytest.approx(3)  # 333 in 10 days are 999 in 30
    assert score(_model(downloads=999, days=None), NOW) == pytest.approx(3)  # of unknown age: taken as old
    assert score(_model(downloads=9, days=0), NOW) == score(_model(downloads=9, days=3), NOW)  # an hour is no trend
    assert score(_model(downloads=9, days=-5), NOW) == score(_model(downloads=9, days=3), NOW)  # a clock that is ahead
    assert score(_model(trending_score=-3.0), NOW) == 0
    assert score(replace(_model(downloads=9), created_at="nonsense"), NOW) == pytest.approx(1)


@settings(deadline=None)
@given(st.permutations([("b/B", 5), ("a/x", 5), ("A/x", 5), ("c/c", 7), ("d/d", 0)]))
def test_the_order_depends_on_nothing_but_the_models(models: list[tuple[str, int]]) -> None:
    ranked = rank([_model(name, downloads=downloads) for name, downloads in models], NOW)
    assert [candidate.ref.repo_id for candidate in ranked] == ["c/c", "A/x", "a/x", "b/B", "d/d"]


@pytest.mark.shared
@pytest.mark.skipif(not SNAPSHOTS.exists(), reason="needs ../shared/data/hub-snapshots")
def test_a_real_listing_is_ranked_much_as_by_downloads() -> None:
    models = json.loads((SNAPSHOTS / "inferenceatlas/huggingface_models.json").read_text(encoding="utf-8"))["models"]
    ranked = rank([_model(model["model_id"], downloads=model["downloads"], likes=model["likes"]) for model in models], NOW)
    names = [candidate.ref.repo_id for candidate in ranked]
    by_downloads = {model["model_id"] for model in sorted(models, key=lambda model: -model["downloads"])[:20]}
    assert len(by_downloads & set(names[:20])) >= 14
    assert names.index("meta-llama/Llama-3.1-8B-Instruct") < names.index("trl-internal-testing/tiny-Qwen2ForCausalLM-2.5")


# -- against the embedded hub


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0, samples=False, faults=True) as running:
        client = HubClient(endpoint=running.endpoint, token=running.write_token, cache_dir=tmp_path_factory.mktemp("cache"))
        for name, tag in (("one", "text-generation"), ("two", "text-generation"), ("three", "translation")):
            client.create(f"modelpress/{name}")
            card = f"---\nlicense: mit\npipeline_tag: {tag}\n---\n"
            client.commit(f"modelpress/{name}", {"README.md": card.encode()}, message="A card", parent=None)
        yield running


@pytest.fixture
def client(hub: LocalHub, tmp_path: Path) -> HubClient:
    return HubClient(endpoint=hub.endpoint, token=None, cache_dir=tmp_path, patience_s=1)


def _names(found: tuple[Candidate, ...]) -> list[str]:
    return [candidate.ref.repo_id for candidate in found]


@pytest.mark.integration
def test_discover_finds_what_the_settings_ask_for(client: HubClient) -> None:
    assert sorted(_names(discover(client, Settings()))) == ["modelpress/one", "modelpress/two"]
    every = Settings(policy=PolicySettings(pipeline_tags=()))
    assert sorted(_names(discover(client, every))) == ["modelpress/one", "modelpress/three", "modelpress/two"]
    both = Settings(policy=PolicySettings(pipeline_tags=("translation", "text-generation")))
    assert len(discover(client, both)) == 3
    assert len(discover(client, Settings(hub=HubSettings(limit=1)))) == 1
    for sort in ("likes", "last_modified", "created_at", "trending_score"):
        assert len(discover(client, Settings(hub=HubSettings(sort=sort)))) == 2


@pytest.mark.integration
def test_pinned_models_are_found_beside_the_popular_ones(client: HubClient) -> None:
    first = client.head("modelpress/one") or ""
    pinned = ("modelpress/three", f"modelpress/one@{first}", "modelpress/gone", f"modelpress/two@{'f' * 40}")
    settings = Settings(policy=PolicySettings(pinned=pinned))
    found = {candidate.ref.repo_id: candidate for candidate in discover(client, settings)}
    assert set(found) == {"modelpress/one", "modelpress/two", "modelpress/three", "modelpress/gone"}
    assert found["modelpress/one"].ref == ModelRef(repo_id="modelpress/one", sha=first)
    for name in ("modelpress/gone", "modelpress/two"):
        refusal = screen(found[name], settings)
        assert refusal is not None
        assert refusal.code == "unavailable"


@pytest.mark.integration
def test_a_hub_that_is_down_is_an_error_not_an_empty_list(tmp_path: Path) -> None:
    dead = HubClient(endpoint="http://127.0.0.1:9", token=None, cache_dir=tmp_path, patience_s=0.5)
    with pytest.raises(HubUnreachable):
        discover(dead, Settings())


@pytest.mark.integration
def test_each_model_of_the_embedded_hub_is_let_in_or_refused_for_what_it_shows(tmp_path: Path) -> None:
    with LocalHub(tmp_path / "hub", port=0) as running:
        client = HubClient(endpoint=running.endpoint, token=running.read_token, cache_dir=tmp_path / "cache")
        codes = {
            candidate.ref.repo_id: refusal.code if (refusal := screen(candidate, Settings())) else None
            for candidate in discover(client, Settings())
        }
    assert codes.pop("modelpress-samples/sample-llama") is None
    assert not any(code for name, code in codes.items() if name.startswith("modelpress-samples/"))
    expected = {
        "gated-llama": "gated",
        "sample-llama-GGUF": "derivative",
        "remote-code": "remote_code",
        "no-licence": "license",
        "pickle-only": "no_safetensors",
        "non-commercial": "license",
    }
    assert {name: codes[f"modelpress-refusals/{name}"] for name in expected} == expected
