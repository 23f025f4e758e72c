from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.catalog import Discovery, Ranked, discover, judge, rank
from hub.client import HubClient
from hub.domain import Candidate, HubFile, ModelRef
from hub.errors import HubUnreachable
from hub.listing import unreadable
from hub.local.process import LocalHub
from hub.policy import screen
from hub.revisions import settle
from hub.settings import HubSettings, PolicySettings, PressSettings, Settings

if TYPE_CHECKING:
    from modelpress.session import Session

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
SNAPSHOTS = Path(__file__).parents[2] / "../shared/data/hub-snapshots"


def _model(name: str = "a/b", *, days: float | None = 400, **changes: Any) -> Candidate:
    made = "" if days is None else (NOW - timedelta(days=days)).isoformat(timespec="seconds")
    return replace(unreadable(name), created_at=made, **changes)


def _names(found: tuple[Ranked, ...]) -> list[str]:
    return [one.candidate.ref.repo_id for one in found]


@settings(deadline=None)
@given(st.permutations([("b/B", 5), ("a/x", 5), ("A/x", 5), ("c/c", 7), ("d/d", 0)]))
def test_the_order_depends_on_nothing_but_the_models(models: list[tuple[str, int]]) -> None:
    ranked = rank([_model(name, downloads=downloads) for name, downloads in models], NOW)
    assert _names(ranked) == ["c/c", "A/x", "a/x", "b/B", "d/d"]


@pytest.mark.shared
@pytest.mark.skipif(not SNAPSHOTS.exists(), reason="needs ../shared/data/hub-snapshots")
def test_a_real_listing_is_ranked_much_as_by_downloads() -> None:
    models = json.loads((SNAPSHOTS / "inferenceatlas/huggingface_models.json").read_text(encoding="utf-8"))["models"]
    ranked = rank([_model(model["model_id"], downloads=model["downloads"], likes=model["likes"]) for model in models], NOW)
    names = _names(ranked)
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
    found = {one.candidate.ref.repo_id: one.candidate for one in discover(client, settings)}
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
            one.candidate.ref.repo_id: refusal.code if (refusal := screen(one.candidate, Settings())) else None
            for one in discover(client, Settings())
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


# -- judged against the embedded hub: what a listing leaves out, and what a config holds

CARD = b"---\nlicense: mit\npipeline_tag: text-generation\n---\n"
CONFIG = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4, "num_hidden_layers": 1, "vocab_size": 8}


def _weights(*, filler: int = 0, shape: tuple[int, ...] = (4, 4)) -> bytes:
    size = 2 * shape[0] * shape[1]
    header = json.dumps({"a": {"dtype": "BF16", "shape": shape, "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes([filler]) * size


@pytest.fixture
def press(hub: LocalHub, tmp_path: Path) -> HubClient:
    return HubClient(endpoint=hub.endpoint, token=hub.write_token, cache_dir=tmp_path, patience_s=1)


def _put(press: HubClient, repo_id: str, **files: bytes) -> Candidate:
    """Make a repository, or add a commit to it; `config_json` stands for config.json."""
    usual = {"README.md": CARD, "config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}", "model.safetensors": _weights()}
    named = {path.replace("__", "."): content for path, content in files.items()}
    new = not press.exists(repo_id)
    press.create(repo_id)
    press.commit(repo_id, {**usual, **named} if new else named, message="Files", parent=None)
    return press.candidate(repo_id)


def _judged(press: HubClient, *found: Candidate, known: tuple[Candidate, ...] = (), free: int = 10**12, **policy: Any) -> Discovery:
    wanted = Settings(policy=PolicySettings(**policy))
    return judge(rank(found, NOW), press, wanted, known=lambda name: [one for one in known if one.ref.repo_id == name], free_bytes=free)


@pytest.mark.integration
def test_parameters_are_counted_from_headers_alone(press: HubClient, tmp_path: Path) -> None:
    listed = replace(_put(press, "modelpress/uncounted"), parameters=None)
    found = _judged(press, listed)
    assert [one.parameters for one in found.accepted] == [16]
    assert not list(tmp_path.rglob("model.safetensors"))
    small = _judged(press, listed, min_parameters=17)
    assert [(one.code, one.reason) for one in small.refused] == [("size", "it has 16 parameters; policy.min_parameters wants 17")]


@pytest.mark.integration
@pytest.mark.parametrize(
    "header",
    [b"", b"\xff" * 8, struct.pack("<Q", 2**40) + b"{}", struct.pack("<Q", 40_000) + b"[" * 40_000, struct.pack("<Q", 2) + b"[]"],
)
def test_headers_that_cannot_be_read_leave_the_size_unknown(press: HubClient, header: bytes) -> None:
    name = f"modelpress/header-{hashlib.sha256(header).hexdigest()[:8]}"
    found = _judged(press, replace(_put(press, name, model__safetensors=header), parameters=None))
    assert [one.code for one in found.refused] == ["size"]
    assert not found.accepted


@pytest.mark.integration
@pytest.mark.parametrize(
    ("config", "word"),
    [
        (b"", "not valid JSON"),
        (b"{}", "empty"),
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "not valid JSON"),
        (b"[1]", "no JSON object"),
        (b"\xff\xfe", "cannot be read"),
        (b" " * (5 << 20), "cannot be read"),
        (b'{"hidden_size": "4"}', "expected a whole number"),
        (b'{"vocab_size": -1}', "expected a whole number"),
        (b'{"num_hidden_layers": 1' + b"0" * 30 + b"}", "expected a whole number"),
        (b'{"num_hidden_layers": 1' + b"0" * 6000 + b"}", "not valid JSON"),
        (b'{"num_hidden_layers": true}', "expected a whole number"),
        (b'{"architectures": "Llama"}', "expected a list"),
        (b'{"architectures": [["x"]]}', "expected a list"),
        (b'{"auto_map": {"AutoModel": "x.Y"}}', "never run"),
        (b'{"quantization_config": {"quant_method": "fp8"}}', "quantized already"),
    ],
)
def test_a_malformed_config_is_refused_with_a_sentence(press: HubClient, config: bytes, word: str) -> None:
    name = f"modelpress/config-{hashlib.sha256(config).hexdigest()[:8]}"
    found = _judged(press, replace(_put(press, name, config__json=config), tags=(), architecture="LlamaForCausalLM", parameters=16))
    assert [one.code for one in found.refused] == ["config"], found
    assert word in found.refused[0].reason
    assert "\n" not in found.refused[0].reason
    assert len(found.refused[0].reason) < 400
    assert [one.ref.repo_id for one in found.turned_away] == [name]


@pytest.mark.integration
def test_weights_that_the_disk_cannot_hold_are_refused_unless_they_are_known(press: HubClient) -> None:
    candidate = _put(press, "modelpress/too-big-for-the-disk")
    found = _judged(press, candidate, free=50)
    assert [one.code for one in found.refused] == ["disk"]
    assert "50 free" in found.refused[0].reason
    assert _judged(press, candidate, free=50, known=(candidate,)).accepted == (candidate,)


@pytest.mark.integration
def test_a_commit_of_other_files_is_the_same_model_and_one_of_weights_a_new_revision(press: HubClient) -> None:
    first = _put(press, "modelpress/moving")
    readme = _put(press, "modelpress/moving", README__md=CARD + b"Now with words.\n", LICENSE=b"MIT")
    assert readme.ref.sha != first.ref.sha
    settled = _judged(press, replace(readme, likes=7), known=(first,))
    assert [one.ref for one in settled.accepted] == [first.ref]
    assert settled.accepted[0].files == first.files
    assert settled.accepted[0].likes == 7
    assert not settled.revisions

    weights = _put(press, "modelpress/moving", model__safetensors=_weights(filler=1))
    changed = _judged(press, weights, known=(first,))
    assert [one.ref for one in changed.accepted] == [weights.ref]
    assert [one.reason for one in changed.revisions] == [f"model.safetensors changed since {first.ref.sha[:8]}"]

    config = _put(press, "modelpress/moving", config__json=json.dumps({**CONFIG, "rope_theta": 1}).encode(), merges__txt=b"a b")
    again = _judged(press, config, known=(weights, first))
    assert [one.reason for one in again.revisions] == [f"config.json changed, merges.txt is new since {weights.ref.sha[:8]}"]

    back = _put(press, "modelpress/moving", model__safetensors=_weights())
    assert _judged(press, back, known=(config,)).revisions[0].changed == ("model.safetensors",)
    pinned = _judged(press, readme, known=(first,), pinned=[f"modelpress/moving@{readme.ref.sha}"])
    assert [one.ref for one in pinned.accepted] == [readme.ref]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(4)), st.integers(0, 3))
def test_what_returns_to_an_earlier_state_keeps_the_earliest_commit_of_it(order: list[int], now: int) -> None:
    def at(number: int, sha: str) -> Candidate:
        files = (
            HubFile(path="model.safetensors", size=1, blob_id="", sha256=str(number % 2)),
            HubFile(path="x.md", size=number, blob_id=""),
        )
        return replace(unreadable("a/b"), ref=ModelRef(repo_id="a/b", sha=sha), files=files)

    known = [at(number, f"{position:040x}") for position, number in enumerate(order)]
    settled, revision = settle(at(now, "f" * 40), known)
    assert revision is None
    assert settled.ref == [one.ref for one, number in zip(known, order, strict=True) if number % 2 == now % 2][-1]


@pytest.mark.integration
def test_discoveries_keep_dated_snapshots_of_all_and_queue_new_revisions(tmp_path: Path) -> None:
    from modelpress import pipeline
    from modelpress.session import Session

    wanted = Settings(press=PressSettings(work_dir=tmp_path / "work"), hub=HubSettings(port=0))
    with Session(wanted, exclusive=True) as session:
        _put(session.publisher, "modelpress/moving")
        first = pipeline.discover(session)
        listed = {one.ref.repo_id for one in (*first.accepted, *first.turned_away)}
        assert set(session.store.popularity()) == listed
        assert {one.repo_id for one in first.refused} == {one.ref.repo_id for one in first.turned_away} == _refused(session)
        old = next(one.ref for one in first.accepted if one.ref.repo_id == "modelpress/moving")

        _put(session.publisher, "modelpress/moving", README__md=CARD + b"More.")
        assert _base(session, pipeline.discover(session)) == old
        changed = _put(session.publisher, "modelpress/moving", model__safetensors=_weights(filler=1))
        third = pipeline.discover(session)
        assert [one.reason for one in third.revisions] == [f"model.safetensors changed since {old.sha[:8]}"]
        assert _base(session, third) == changed.ref
        assert not pipeline.discover(session).revisions  # it is known now
        assert [one.ref for one in session.store.candidates()["modelpress/moving"]] == [changed.ref, old]
        assert len({seen.at for seen in session.store.popularity()["modelpress-refusals/pickle-only"]}) >= 2

        ahead = (datetime.now(UTC) + timedelta(days=3)).isoformat(timespec="seconds")
        session.store.record_models([changed], ahead)  # as a clock that ran ahead would have
        assert _base(session, pipeline.discover(session)) == changed.ref
        assert len(session.store.bases(current=True)) == 4


def _refused(session: Session) -> set[str]:
    return {one.repo_id for one in session.store.refusals()}


def _base(session: Session, found: Discovery) -> ModelRef:
    """Return the commit at which the moving model is pressed: that found is that recorded."""
    (recorded,) = (base.candidate.ref for base in session.store.bases(current=True) if base.candidate.ref.name == "moving")
    assert recorded in [one.ref for one in found.accepted]
    return recorded
