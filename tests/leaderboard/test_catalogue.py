"""What takes a release's place, and the collections of the catalogue on a real hub."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Set
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from hub.collections import TITLE, Collections, moves
from hub.domain import Candidate, Job, JobResult, ModelRef
from hub.errors import HubRefused, HubUnreachable
from hub.history import Check, Release, VariantRecord, Verdict
from hub.local.process import LocalHub
from hub.scheduling import Plan
from hub.store import Store
from leaderboard import catalogue, looks, succession

from .conftest import AT, BASE, make_base, make_recipe, make_variant, measured

OLD, NEW = BASE, ModelRef(repo_id=BASE.repo_id, sha="f" * 40)


def released(
    name: str, kl: float = 0.02, *, size: int = 2_000_000, verified: bool = True, group: int = 128, base: ModelRef = BASE, **changes: Any
) -> VariantRecord:
    """A variant that is on the hub as `press/<name>`; changes go to its release, or to its recipe (`format`, `track`)."""
    words = {key: changes.pop(key) for key in ("format", "track") if key in changes}
    recipe = make_recipe(name, **words)
    recipe = replace(recipe, steps=(replace(recipe.steps[0], params={"group_size": group}),))
    record = make_variant(recipe, kl=kl, size=size)
    release = Release(
        variant_id=f"{name} of {base.sha[:8]}",
        repo_id=f"press/{name}",
        sha="a" * 40,
        artifact_digest="d",
        url="",
        released_at=AT,
        verified_at=AT if verified else None,
    )
    return replace(record, variant_id=release.variant_id, base=base, release=replace(release, **changes))


def follow(*records: VariantRecord, withdrawn: Set[str] = frozenset()) -> dict[str, str | None]:
    """Return by name what takes the place of each, whatever order they are looked at in."""
    bases = {ref: replace(make_base(ref=ref), rank=1) for ref in (OLD, NEW)}
    answers = []
    for seed in range(3):
        shuffled = random.Random(seed).sample(records, len(records))
        found = succession.successors(shuffled, bases, {BASE.repo_id: [NEW.sha, OLD.sha]}, withdrawn)
        answers.append({record.recipe.name: one.repo_id if (one := found[record.variant_id]) else None for record in records})
    assert answers[0] == answers[1] == answers[2]
    return answers[0]


def test_a_worse_variant_names_the_better_one() -> None:
    assert follow(released("poor", 0.05), released("good", 0.02)) == {"poor": "press/good", "good": None}
    # The end of a chain at once: the best of those that are better.
    assert follow(released("poor", 0.05), released("good", 0.02), released("best", 0.01))["poor"] == "press/best"
    heavy = released("heavy", 0.05, size=2_008_000)  # as large as the other but for its configuration
    assert follow(heavy, released("good", 0.02, size=2_016_000)) == {"heavy": "press/good", "good": None}


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(released("other", 0.0495), id="the intervals overlap"),
        pytest.param(released("other", 0.02, size=2_100_000), id="larger"),
        pytest.param(released("other", 0.02, format="awq"), id="another format"),
        pytest.param(released("other", 0.02, track="research"), id="research"),
        pytest.param(released("other", 0.02, retired_at=AT, retired_why="old"), id="retired"),
        pytest.param(released("other", 0.02, verified=False), id="not verified"),
        pytest.param(released("other", 0.02, base=NEW, group=64), id="of another commit"),
    ],
)
def test_what_is_not_surely_better_takes_no_place(other: VariantRecord) -> None:
    assert follow(released("poor", 0.05), other)["poor"] is None


def test_other_protocols_and_slower_ones_are_not_compared() -> None:
    poor, good = released("poor", 0.05), released("good", 0.02)
    moved = tuple(replace(one, protocol="other@512") for one in good.measurements)
    assert follow(poor, replace(good, measurements=moved))["poor"] is None
    # Under a second protocol that both have, the first is the closer one: neither is worse.
    second = [measured("kl_divergence", value, 0.0001, protocol="other@512") for value in (0.01, 0.02)]
    both = [replace(one, measurements=(*one.measurements, more)) for one, more in zip((poor, good), second, strict=True)]
    assert follow(*both) == {"poor": None, "good": None}
    slow = tuple(measured("decode_speedup", 0.2, 0.01) if one.metric == "decode_speedup" else one for one in good.measurements)
    assert follow(poor, replace(good, measurements=slow))["poor"] is None
    assert follow(replace(poor, measurements=()), good)["poor"] is None


def test_an_outdated_variant_names_that_of_the_newer_revision() -> None:
    old, new = released("old", 0.02), released("new", 0.03, base=NEW)
    assert follow(old, new) == {"old": "press/new", "new": None}
    assert follow(old, released("new", 0.03, base=NEW, group=64))["old"] is None, "another recipe is no newer edition"
    # Then what is better than the newer one: chains are followed to their end.
    assert follow(old, new, released("best", 0.01, base=NEW, group=64)) == {"old": "press/best", "new": "press/best", "best": None}


def test_what_people_named_stands_and_leads_to_the_end() -> None:
    gone = {"retired_at": AT, "retired_why": "it was named by hand"}
    named = released("named", 0.01, **gone, new_version="elsewhere/model")
    assert follow(named, released("good", 0.02))["named"] == "elsewhere/model"
    first = released("first", 0.01, **gone, new_version="press/second")
    second = released("second", 0.01, group=64, **gone, new_version="press/poor")
    assert follow(first, second, released("poor", 0.05), released("good", 0.02)) == {
        "first": "press/good",
        "second": "press/good",
        "poor": "press/good",
        "good": None,
    }
    ring = released("second", 0.01, group=64, **gone, new_version="press/first")
    assert follow(first, ring) == {"first": None, "second": None}
    assert follow(first, released("second", 0.01, group=64, **gone)) == {"first": None, "second": None}
    assert follow(first, released("second", 0.01, group=64, track="research"))["first"] is None
    # What was deleted, or is about to be, takes nobody's place: neither by the rules nor because somebody named it.
    assert follow(first, withdrawn={"press/second"})["first"] is None
    assert follow(named, withdrawn={"elsewhere/model"})["named"] is None
    assert follow(released("poor", 0.05), released("good", 0.02), withdrawn={"press/good"})["poor"] is None


def test_moves_are_few_and_leave_others_where_they_are() -> None:
    assert moves("abc", "abc") == []
    assert moves(["x", "b", "a", "y"], "ab") == [("a", 1)]
    for seed in range(200):
        chance = random.Random(seed)
        items = [f"{number}" for number in range(chance.randrange(1, 9))]
        wanted = chance.sample([*items, "gone"], chance.randrange(len(items) + 1))
        now = list(items)
        for one, place in moves(items, wanted):
            now.remove(one)
            now.insert(place, one)
        assert [one for one in now if one in wanted] == [one for one in wanted if one in items]
        assert [(place, one) for place, one in enumerate(now) if one not in wanted] == [
            (place, one) for place, one in enumerate(items) if one not in wanted
        ]


HOSTILE = ("a/b\n---\nlicense: mit", "<script>/x", "a/" + "b" * 10_000, "a/\u202eb", "", "{{ 1 }}/x", "a/b, pressed", "'; --", "a/ b")


def test_titles_are_safe_short_and_each_bases_own() -> None:
    assert catalogue.title("sample-org/tiny-llama") == "sample-org/tiny-llama, pressed"
    near = [f"organisation/{'long-' * 15}{end}" for end in ("7B", "8B")]
    titles = [catalogue.title(name) for name in (*HOSTILE, *near)]
    assert len(set(titles)) == len(titles)
    assert all(re.fullmatch(r"[A-Za-z0-9._/-]+, pressed", one) and len(one) <= TITLE for one in titles)


def test_notes_say_what_a_variant_is() -> None:
    base = make_base()
    assert catalogue.note(make_variant(), base) == "GPTQ, 4-bit weights in groups of 128: 3.2× smaller, KL 0.0123 ± 0.0008."
    superseded = released("poor", new_version="press/good")
    assert catalogue.note(superseded, base).endswith("KL 0.0200 ± 0.0008. Take press/good instead.")
    hostile = replace(make_variant(), recipe=make_recipe(title="x\n\u202e" + "y" * 600, track="research"))
    words = catalogue.note(hostile, base)
    assert len(words) <= 500
    assert words.isprintable()
    assert catalogue.note(replace(make_variant(), measurements=()), None) == "GPTQ, 4-bit weights in groups of 128."


def test_a_shelf_takes_out_only_what_was_released_of_its_own_base() -> None:
    other = ModelRef(repo_id="other/base", sha="c" * 40)
    records = [released("one"), released("old", retired_at=AT), released("two", base=other)]
    assert {shelf.base: shelf.ours for shelf in catalogue.shelves(records, [])} == {
        BASE.repo_id: {"press/one", "press/old"},
        "other/base": {"press/two"},
    }


class Place:
    """A database with released variants of a base, all of them on a hub."""

    def __init__(self, hub: LocalHub, folder: Path, make: SimpleNamespace) -> None:
        from hub.client import HubClient

        self.hub, self.make = hub, make
        self.client = HubClient(endpoint=hub.endpoint, token=hub.write_token, cache_dir=folder / "cache", patience_s=5)
        self.owner = self.client.account().name
        folder.mkdir(exist_ok=True)
        self.store = Store(folder / "modelpress.db")
        self.base = f"{self.owner}/tiny-{uuid4().hex[:8]}"
        self.client.create(self.base)
        self.candidate: Candidate = replace(make.base().candidate, ref=ModelRef(repo_id=self.base, sha="0" * 40))
        self.store.record_models([self.candidate], AT)

    def release(self, name: str, kl: float, size: int, *, on_hub: bool = True) -> Release:
        recipe = make_recipe(name)
        recipe = replace(recipe, steps=(replace(recipe.steps[0], params={"group_size": size}),))
        jobs = [Job(kind="press", base=self.candidate.ref, recipe=recipe)]
        jobs += [Job(kind="measure", base=self.candidate.ref, recipe=one, protocol=self.protocol) for one in (None, recipe)]
        self.store.record_plan(Plan(jobs=tuple(jobs), refusals=(), done=0))
        record = make_variant(recipe, kl=kl, size=size)
        assert record.artifact
        artifact = replace(record.artifact, variant_id=jobs[0].variant_id, base=self.candidate.ref)
        parts = ({"artifact": artifact}, {"measurements": make_base().measurements}, {"measurements": record.measurements})
        for job, part in zip(jobs, parts, strict=True):
            self.store.start(job)
            common = {"environment": self.make.machine, "started_at": AT, "seconds": 1.0, "stages": {}, "peak_memory_bytes": 1}
            self.store.finish(job, JobResult(job_id=job.id, **common, **part))  # type: ignore[arg-type]
        repo_id = f"{self.base}-{name}"
        if on_hub:
            self.client.create(repo_id)
        one = Release(
            variant_id=artifact.variant_id, repo_id=repo_id, sha="b" * 40, artifact_digest=artifact.digest, url="", released_at=AT
        )
        self.store.published.settle(one)
        self.store.mark_verified(one.variant_id, AT)
        return one

    @property
    def protocol(self) -> Any:
        from hub.protocol import Protocol, Quality, Text

        return Protocol(name=self.make.protocol, text=Text(name="t", sha256="e" * 64), quality=Quality(sequence_length=512, windows=96))

    def sync(self, client: Any = None) -> catalogue.Synced:
        records = succession.on_the_hub(self.store)
        [shelf] = catalogue.shelves(records, self.store.bases(), looks.broken(self.store, records))
        found = catalogue.sync(shelf, client or self.client, self.store)
        assert found
        return found

    @property
    def api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.hub.endpoint, token=self.hub.write_token)

    @property
    def slug(self) -> str:
        [found] = [one for one in self.api.list_collections(owner=self.owner) if one.title == catalogue.title(self.base)]
        return str(found.slug)

    def held(self) -> list[str]:
        return [item.item_id.removeprefix(self.base) for item in self.api.get_collection(self.slug).items]

    def fault(self, **rule: object) -> None:
        self.client.call("a fault", lambda api: _send(self.hub, "POST", rule))


def _send(hub: LocalHub, method: str, rule: dict[str, object] | None = None) -> None:
    import json
    import urllib.request

    data = json.dumps(rule).encode() if rule else None
    request = urllib.request.Request(f"{hub.endpoint}/api/_faults", data=data, method=method)
    request.add_header("Authorization", f"Bearer {hub.write_token}")
    urllib.request.urlopen(request).close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0, samples=False, faults=True) as running:
        yield running


@pytest.fixture
def place(hub: LocalHub, tmp_path: Path, make: SimpleNamespace) -> Iterator[Place]:
    found = Place(hub, tmp_path, make)
    yield found
    found.store.close()
    _send(hub, "DELETE")


@pytest.mark.integration
def test_a_collection_has_the_base_and_its_variants_from_large_to_small(place: Place) -> None:
    place.release("small", 0.05, 1_000_000)
    place.release("large", 0.01, 3_000_000)
    made = place.sync()
    assert place.held() == ["", "-large", "-small"]
    assert (made.writes, made.missing) == (4, ())
    assert made.url == f"{place.hub.endpoint}/collections/{place.slug}"
    shown = place.api.get_collection(place.slug)
    assert not shown.private
    assert [item.note for item in shown.items] == [
        "The base model, as it is.",
        "GPTQ, 4-bit weights in groups of 128: 2.9× smaller, KL 0.0100 ± 0.0008.",
        "GPTQ, 4-bit weights in groups of 128: 8.6× smaller, KL 0.0500 ± 0.0008.",
    ]
    assert place.sync().writes == 0
    assert [write.action for write in place.store.hub_writes(0)] == ["collection"] * 4

    # Another one later, a thing that somebody else put in, another order, a note that somebody changed.
    place.release("middle", 0.02, 2_000_000)
    place.client.create(f"{place.owner}/a-{place.base[-8:]}")
    place.api.add_collection_item(place.slug, f"{place.owner}/a-{place.base[-8:]}", "model", note="mine")
    items = {item.item_id: item.item_object_id for item in place.api.get_collection(place.slug).items}
    place.api.update_collection_item(place.slug, items[f"{place.base}-small"], position=0, note="the best")
    place.sync()
    strange = f"{place.owner}/a-{place.base[-8:]}"
    assert place.held() == ["", "-large", "-middle", strange, "-small"]
    notes = {item.item_id: item.note for item in place.api.get_collection(place.slug).items}
    assert notes[strange] == "mine"
    assert notes[f"{place.base}-small"].startswith("GPTQ")
    assert place.sync().writes == 0


@pytest.mark.integration
def test_what_is_retired_failed_or_gone_is_not_in_it(place: Place) -> None:
    kept, failed, gone = (place.release(name, 0.02, 10**6 + number) for number, name in enumerate(("kept", "failed", "gone")))
    place.sync()
    place.store.published.retire(gone.variant_id, at=AT, why="it is old")
    no = Check(name="loads", passed=False, detail="It does not load.")
    place.store.record_verdict(Verdict(variant_id=failed.variant_id, stage="release", subject=failed.sha, checks=(no,), judged_at=AT))
    assert place.sync().writes == 2
    assert place.held() == ["", "-kept"]
    place.store.published.retire(gone.variant_id, at=AT, why="")
    place.store.published.supersede(kept.variant_id, gone.repo_id)
    place.sync()
    assert place.held() == ["", "-gone", "-kept"]
    assert place.api.get_collection(place.slug).items[2].note.endswith(f"Take {gone.repo_id} instead.")

    # The base vanishes from the hub, and a repository that the database knows: what is left stays in the same collection.
    place.client.delete(place.base)
    place.client.delete(kept.repo_id)
    assert place.sync().missing == (kept.repo_id,)
    assert place.held() == ["-gone"]
    assert place.sync().writes == 0
    place.store.published.retire(gone.variant_id, at=AT, why="it is old")
    records = succession.on_the_hub(place.store)
    assert catalogue.shelves(records, place.store.bases(), looks.broken(place.store, records))[0].places.keys() == {kept.repo_id}


@pytest.mark.integration
@pytest.mark.parametrize("lost", [r"^/api/collections$", r"/items$", r"/items/[0-9a-f]+$"])
def test_a_lost_answer_doubles_nothing(place: Place, lost: str) -> None:
    place.release("small", 0.05, 1_000_000)
    if lost.endswith("+$"):
        place.sync()
        place.release("large", 0.01, 3_000_000)
    place.fault(kind="lost", method="PATCH" if lost.endswith("+$") else "POST", path=lost, status=503, times=1)
    place.sync()
    assert place.held() == (["", "-large", "-small"] if lost.endswith("+$") else ["", "-small"])
    assert place.sync().writes == 0


@pytest.mark.integration
def test_a_run_cut_off_anywhere_is_finished_by_the_next(
    hub: LocalHub, tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cut(BaseException):
        """What a kill is to a program: nothing after it happens."""

    for writes in range(1, 6):
        place = Place(hub, tmp_path / str(writes), make)
        for number, name in enumerate(("one", "two", "three")):
            place.release(name, 0.02, 10**6 + number)
        left = iter(range(writes - 1))

        def record(*_: object, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise Cut

        with monkeypatch.context() as patch:
            patch.setattr(place.store, "record_hub_write", record)
            with pytest.raises(Cut):
                place.sync()
        place.sync()
        assert place.held() == ["", "-three", "-two", "-one"]
        assert place.sync().writes == 0
        place.store.close()


@pytest.mark.integration
def test_a_hub_that_refuses_is_an_error_of_ours(place: Place) -> None:
    from hub.client import HubClient

    place.release("small", 0.05, 1_000_000)
    folder = place.client.cache_dir
    reader = HubClient(endpoint=place.hub.endpoint, token=place.hub.read_token, cache_dir=folder, patience_s=1)
    with pytest.raises(HubRefused):
        place.sync(reader)
    place.fault(kind="status", method="GET", path=r"^/api/collections", status=503, times=0)
    with pytest.raises(HubUnreachable):
        place.sync(HubClient(endpoint=place.hub.endpoint, token=place.hub.write_token, cache_dir=folder, patience_s=1))


@pytest.mark.integration
def test_items_that_are_no_models_are_left_alone(place: Place) -> None:
    place.release("small", 0.05, 1_000_000)
    place.sync()
    other = place.api.create_collection(f"Other {uuid4().hex[:8]}")
    place.api.add_collection_item(place.slug, other.slug, "collection")
    items = place.api.get_collection(place.slug).items
    place.api.update_collection_item(place.slug, items[-1].item_object_id, position=0)
    assert place.sync().writes == 0
    found = Collections(place.client, place.owner).find(catalogue.title(place.base), holding=place.base)
    assert found
    assert [item.repo_id for item in found.items] == ["", place.base, f"{place.base}-small"]
