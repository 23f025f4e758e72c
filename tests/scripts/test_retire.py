"""Releases that are deprecated, taken back, superseded and deleted by the command, on a real hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from hub.domain import ModelRef
from hub.history import Release, VariantRecord
from hub.local.process import LocalHub
from leaderboard import catalogue, retirement
from modelpress.cli import app
from modelpress.pipeline import now

from ..leaderboard.conftest import make as made  # noqa: F401, TID252 - a fixture
from ..leaderboard.world import World  # noqa: TID252

pytestmark = pytest.mark.integration
GOOD, POOR = "gptq-w4a16-g64", "gptq-w4a16-g128"


class Shop:
    """A user's folder with two variants of a base published by the command; the poor one is as large as the good one."""

    def __init__(self, hub: LocalHub, folder: Path, make: SimpleNamespace) -> None:
        self.world = World(hub, folder / "press", make)
        self.base = self.world.base.ref.repo_id
        self.records = {name: self.press(name, kl) for name, kl in ((GOOD, 0.01), (POOR, 0.05))}
        settings = f'[hub]\nendpoint = "{hub.endpoint}"\nnamespace = "{self.world.namespace}"\n[press]\ndatabase = "{self.database}"\n'
        (folder / "modelpress.toml").write_text(settings)
        self.json("publish")

    @property
    def database(self) -> str:
        return f"sqlite:///{self.world.folder / 'first.db'}"

    def press(self, name: str, kl: float, **changes: Any) -> VariantRecord:
        """Make a variant with this KL divergence; it is there, judged, and not published."""
        return self.world.press(name, kl=kl, params=int(name.rsplit("g", 1)[1]), **changes)

    def repo(self, name: str) -> str:
        return f"{self.base}-{name}"

    def call(self, *words: str, writing: bool = True) -> Result:
        tokens = {"HF_TOKEN": self.world.hub.read_token, "MODELPRESS_WRITE_TOKEN": self.world.hub.write_token if writing else None}
        return CliRunner().invoke(app, list(words), env=tokens)

    def says(self, *words: str, code: int = 0) -> str:
        result = self.call(*words)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return " ".join(result.output.split())

    def json(self, *words: str) -> Any:
        result = self.call(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def card(self, name: str) -> str:
        head = self.world.client.head(self.repo(name))
        return (self.world.client.read_text(self.repo(name), head, "README.md") or "") if head else ""

    def held(self) -> list[str]:
        """What the base's only collection holds, without the base's name."""
        found = self.world.client.call(
            "all", lambda api: list(api.list_collections(owner=self.world.namespace, item=f"models/{self.base}"))
        )
        assert [one.title for one in found] == [catalogue.title(self.base)]
        items = self.world.client.call("one", lambda api: api.get_collection(found[0].slug).items)
        return [item.item_id.removeprefix(self.base) for item in items]

    def release(self, name: str) -> Release | None:
        return self.world.read(self.records[name]).release

    def writes(self) -> int:
        return len(self.world.store.hub_writes(0))


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0, samples=False, faults=True) as running:
        yield running


@pytest.fixture
def shop(hub: LocalHub, tmp_path: Path, made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "press").mkdir()
    found = Shop(hub, tmp_path, made)
    yield found
    found.world.store.close()
    _clear(found)


def test_a_release_is_deprecated_superseded_and_taken_back(shop: Shop) -> None:
    assert shop.held() == ["", f"-{POOR}", f"-{GOOD}"]
    commits = len(shop.world.commits(shop.repo(POOR)))
    why = "it loses **names**\n---\n\u202e<script>"
    said = shop.json("retire", shop.repo(POOR), "--because", why)
    assert (said["repo_id"], said["problems"], len(said["cards"])) == (shop.repo(POOR), [], 2), "its own, and its sibling's that lists it"
    assert said["release"]["retired_why"] == "it loses **names** --- <script>"
    card = shop.card(POOR)
    assert "**Deprecated on " in card
    assert "it loses \\*\\*names\\*\\* --- &lt;script&gt;." in card
    assert shop.world.client.validate_card(card) == []
    assert shop.world.commits(shop.repo(POOR))[0].startswith(f"Card of {POOR} of {shop.base}")
    assert len(shop.world.commits(shop.repo(POOR))) == commits + 1
    assert shop.held() == ["", f"-{GOOD}"]
    first = shop.release(POOR)
    assert first
    assert first.retired_at

    # Again, and with what is left unsaid: nothing changes anywhere.
    writes = shop.writes()
    assert "is as it should be" in shop.says("retire", shop.repo(POOR), "--because", why)
    shop.says("retire", shop.records[POOR].variant_id)
    shop.says("publish")
    assert (shop.release(POOR), shop.writes()) == (first, writes)

    # With a successor, named for people and in the front matter for the Hub; a later reason keeps the day.
    said = shop.json("retire", shop.repo(POOR), "--new-version", shop.repo(GOOD), "--because", "worse")
    assert (said["release"]["new_version"], said["release"]["retired_at"]) == (shop.repo(GOOD), first.retired_at)
    assert f"new_version: {shop.repo(GOOD)}" in shop.card(POOR)

    said = shop.json("retire", shop.repo(POOR), "--undo")
    assert (said["release"]["retired_at"], said["release"]["retired_why"], said["release"]["new_version"]) == (None, None, None)
    card = shop.card(POOR)
    assert "Deprecated" not in card
    assert "new_version" not in card
    assert "not deprecated any more" in card, "the changelog tells it"
    assert shop.held() == ["", f"-{POOR}", f"-{GOOD}"]
    assert "nothing was to be taken back" in shop.says("retire", shop.repo(POOR), "--undo")


def test_a_worse_release_is_superseded_by_the_rules_once_the_better_one_is_verified(shop: Shop) -> None:
    assert "new_version" not in shop.card(POOR)
    shop.world.store.mark_verified(shop.records[GOOD].variant_id, "2026-11-23T00:00:00+00:00")
    said = shop.json("publish")
    assert [one["repo_id"] for one in said["cards_renewed"]] == [shop.repo(POOR)]
    assert f"new_version: {shop.repo(GOOD)}" in shop.card(POOR)
    assert shop.held() == ["", f"-{POOR}", f"-{GOOD}"]
    writes = shop.writes()
    shop.json("publish")
    assert shop.writes() == writes
    # The better one is retired: it takes nobody's place any more, and what it leads to in its stead is told on its own card.
    shop.json("retire", shop.repo(GOOD))
    assert "new_version" not in shop.card(POOR)
    assert "it is not recommended any more" in shop.card(GOOD)


def test_a_retired_recipe_is_not_pressed_and_its_repository_gets_nothing_new(shop: Shop) -> None:
    shop.json("retire", shop.repo(POOR))
    back = retirement.held_back(shop.world.store.variants())
    old = shop.records[POOR]
    assert "is retired (it is not recommended any more)" in (back(ModelRef(repo_id=shop.base, sha="9" * 40), old.recipe) or "")
    assert back(old.base, shop.records[GOOD].recipe) is None
    plan = shop.json("plan", "--recipe", POOR, "--model", shop.base)
    assert [one["reason"].split(" (")[0] for one in plan["refusals"]] == [f"its release {shop.repo(POOR)} is retired"]

    # A new revision of the base, pressed already by somebody's wish.
    world = shop.world
    world.client.commit(shop.base, {"config.json": b'{"architectures": ["LlamaForCausalLM"]}'}, message="new", parent=None)
    world.base = world.client.candidate(shop.base)
    world.store.record_models([world.base], "2026-11-21T10:00:00+00:00")
    shop.press(POOR, 0.02, seed="two")
    assert shop.json("publish")["released"] == []
    shop.json("retire", shop.repo(POOR), "--undo")
    [released] = shop.json("publish")["released"]
    assert released["repo_id"] == shop.repo(POOR)
    card = shop.card(POOR)
    assert f"new revision of the base, {old.base.sha[:8]} to {world.base.ref.sha[:8]}" in card
    assert "0.0500 ± 0.0008" in card, "the changelog says what became of the quality"
    assert shop.held() == ["", f"-{POOR}", f"-{GOOD}"]


def test_nothing_is_deleted_unless_it_is_asked_for_twice(shop: Shop) -> None:
    shop.world.press(POOR, params=32, seed="another", kl=0.2)  # it would go to the same repository, and waits
    writes, repo = shop.writes(), shop.repo(POOR)
    said = shop.says("retire", repo, "--delete")
    assert "would be deleted on the Hub, for ever; nothing was changed" in said
    assert (shop.writes(), shop.world.client.exists(repo)) == (writes, True)
    assert "The gate" in shop.card(GOOD) or repo.split("/")[1] in shop.card(GOOD)

    said = shop.json("retire", repo, "--delete", "--yes", "--because", "wrong weights")
    assert (said["done"], said["release"], said["problems"]) == ("deleted on the Hub", None, [])
    assert not shop.world.client.exists(repo)
    assert shop.release(POOR) is None
    assert shop.held() == ["", f"-{GOOD}"]
    assert repo not in shop.card(GOOD), "no card links to what is gone"

    # It is not published again, nor what waits for its place, nor pressed, and says why; deleting again is refused, not done to another.
    assert shop.json("publish")["released"] == []
    plan = shop.json("plan", "--recipe", POOR, "--model", shop.base)
    assert f"{repo} was deleted from the Hub on" in plan["refusals"][0]["reason"]
    assert "was deleted already" in shop.says("retire", repo, "--delete", "--yes", code=16)
    assert "was deleted already" in shop.says("retire", shop.records[POOR].variant_id, code=16)

    assert "may be published again" in shop.says("retire", repo, "--undo")
    [released] = shop.json("publish")["released"]
    assert released["repo_id"] == repo
    assert shop.held() == ["", f"-{POOR}", f"-{GOOD}"]


def test_a_deletion_that_was_cut_off_goes_on(shop: Shop) -> None:
    store, record = shop.world.store, shop.world.read(shop.records[POOR])
    retirement.withdraw(store, [record], shop.repo(POOR), at="2026-11-23T00:00:00+00:00", why="wrong weights")
    shop.world.client.delete(shop.repo(POOR))
    assert "is not on the Hub any more" in shop.says("publish", code=30)
    assert "gone already" in shop.says("retire", shop.repo(POOR), "--delete")

    def said() -> list[str]:
        return [check.detail for check in retirement.artifact_verdict(shop.world.read(record)).checks if not check.passed]  # type: ignore[union-attr]

    assert said() == [f"{shop.repo(POOR)} is withdrawn since 2026-11-23: wrong weights."]
    assert "deleted on the Hub" in shop.says("retire", shop.repo(POOR), "--delete", "--yes")
    assert shop.release(POOR) is None
    assert said() == [f"{shop.repo(POOR)} was deleted from the Hub on {now()[:10]}: wrong weights."]


def test_what_is_not_ours_or_makes_no_sense_is_refused_and_changes_nothing(shop: Shop) -> None:
    other = f"{shop.world.namespace}/somebody-elses"
    shop.world.client.create(other)
    waiting = shop.press("gptq-w4a16-g32", 0.02)
    writes, repo, poor = shop.writes(), shop.repo(POOR), shop.records[POOR].variant_id
    shop.world.store.published.retire(shop.records[GOOD].variant_id, at="2026-11-23T00:00:00+00:00", why="old")
    for code, *words in (
        (9, other),
        (9, shop.base, "--delete", "--yes"),
        (9, "a/\x1b[31m", "--delete", "--yes"),
        (5, "f" * 16),
        (5, "no such thing"),
        (16, waiting.variant_id),
        (2, repo, "--undo", "--because", "no"),
        (2, repo, "--yes"),
        (2, repo, "--delete", "--new-version", other),
        (2, repo, "--because", " \n\u200b"),
        (2, repo, "--new-version", repo),
        (2, repo, "--new-version", "not a name"),
        (2, repo, "--new-version", shop.repo(GOOD)),
        (23, repo, "--new-version", f"{other}-that-is-not-there"),
        (2, poor, "--new-version", f"{other}\n"),
    ):
        assert "\x1b" not in shop.says("retire", *words, code=code), words
    assert (shop.writes(), shop.world.client.exists(other)) == (writes, True)
    assert shop.release(POOR) == replace(shop.release(POOR), retired_at=None, new_version=None)  # type: ignore[type-var]

    # Somebody put something beside it: that is not deleted with it.
    there = shop.world.client.commit(repo, {"mine.txt": b"mine"}, message="mine", parent=None)
    for words in (("--delete",), ("--delete", "--yes")):
        assert "files that ModelPress did not publish (mine.txt)" in shop.says("retire", repo, *words, code=9)
    assert shop.world.client.head(repo) == there
    assert retirement.withdrawn_as(shop.world.read(shop.records[POOR])) == ""

    # The database says it is ours, but somebody has put something else there since.
    shop.world.client.delete(repo)
    shop.world.client.create(repo)
    shop.world.client.commit(repo, {"mine.txt": b"mine"}, message="mine", parent=None)
    assert "files that ModelPress did not publish" in shop.says("retire", repo, "--delete", "--yes", code=9)
    assert shop.world.client.exists(repo)


def test_what_the_hub_does_not_take_is_said_and_done_by_the_next_publish(shop: Shop) -> None:
    # Without a write token nothing is withdrawn, and what is deprecated waits.
    refused = shop.call("retire", shop.repo(GOOD), "--delete", "--yes", writing=False)
    assert (refused.exit_code, "no write token" in refused.output) == (22, True)
    assert retirement.withdrawn_as(shop.world.read(shop.records[GOOD])) == ""
    noted = shop.call("retire", shop.repo(POOR), "--because", "not needed", "--json", writing=False)
    assert noted.exit_code == 30
    said = json.loads(noted.stdout)
    assert said["release"]["retired_why"] == "not needed"
    assert "no write token" in said["problems"][0]
    shop.json("retire", shop.repo(POOR), "--undo")
    shop.world.fault(kind="status", method="POST", path=r"/commit/", status=403, times=0)
    assert "the database knows it, the Hub not in all" in shop.says("retire", shop.repo(POOR), "--because", "worse", code=30)
    found = shop.release(POOR)
    assert found
    assert found.retired_why == "worse"
    assert "Deprecated" not in shop.card(POOR)
    shop.world.fault(kind="status", method="POST", path=r"/collections", status=403, times=0)
    _clear(shop)
    said = shop.json("publish")
    assert {one["repo_id"] for one in said["cards_renewed"]} == {shop.repo(POOR), shop.repo(GOOD)}
    assert "worse" in shop.card(POOR)
    assert shop.held() == ["", f"-{GOOD}"]

    # Collections fail, releases do not.
    shop.world.fault(kind="status", method="POST", path=r"/collections", status=403, times=0)
    shop.press("gptq-w4a16-g32", 0.02)
    said = shop.json("publish")
    assert [one["repo_id"] for one in said["released"]] == [shop.repo("gptq-w4a16-g32")]
    assert len(said["not_collected"]) == 1
    assert said["not_collected"][0].startswith(f"the collection of {shop.base} is left for the next run: ")
    _clear(shop)
    assert shop.json("publish")["collections"][0]["writes"] >= 1
    assert "-gptq-w4a16-g32" in shop.held()


def _clear(shop: Shop) -> None:
    import urllib.request

    request = urllib.request.Request(f"{shop.world.hub.endpoint}/api/_faults", method="DELETE")
    request.add_header("Authorization", f"Bearer {shop.world.hub.write_token}")
    urllib.request.urlopen(request).close()
