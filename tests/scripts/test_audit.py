"""`modelpress audit` on what a quick run published: good releases, broken ones of each kind, and what is no fault of a release's."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from hub.client import HubClient
from hub.domain import ModelRef
from hub.errors import HubUnreachable
from hub.history import Audit, Release
from hub.local.process import LocalHub
from hub.settings import load
from hub.store import Store
from leaderboard.audit import due
from leaderboard.notices import RECORDED
from modelpress import auditing, pipeline
from modelpress.session import Session

from .conftest import Folder, QuickRun

pytestmark = pytest.mark.integration
GATE_REFUSAL = 10


class Catalogue:
    """A copy of a finished run's folder, and somebody else who may write to its hub."""

    def __init__(self, quick_run: QuickRun, path: Path) -> None:
        self.folder = Folder(path, quick_run.folder.port)
        shutil.copytree(quick_run.folder.path, path, symlinks=True)
        with self.store() as store:
            self.first, self.second = sorted(store.releases(), key=lambda release: (release.released_at, release.repo_id))
        for release in (self.first, self.second):  # whatever wrote them, these are the cards on record
            self.publish_card(release, lambda text: text)

    @contextmanager
    def store(self) -> Iterator[Store]:
        with Store(self.folder.press / "modelpress.db") as store:
            yield store

    @contextmanager
    def hub(self) -> Iterator[HubClient]:
        with LocalHub(self.folder.press / "hub", port=self.folder.port) as hub:
            cache = self.folder.path / "other-cache"
            yield HubClient(endpoint=hub.endpoint, token=hub.write_token, cache_dir=cache)

    def execute(self, statement: str, *values: object) -> None:
        with closing(sqlite3.connect(self.folder.press / "modelpress.db")) as connection:
            assert connection.execute(statement, values).rowcount > 0
            connection.commit()

    def publish_card(self, release: Release, changed: Callable[[str], str]) -> None:
        """Have the publisher's own card changed: the commit that holds it is the one on record."""
        with self.hub() as client:
            text = changed(client.read_text(release.repo_id, client.head(release.repo_id) or "", "README.md") or "")
            sha = client.commit(release.repo_id, {"README.md": text.encode()}, message="card", parent=None)
        card_sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.execute("UPDATE releases SET sha = ?, card_sha256 = ? WHERE variant_id = ?", sha, card_sha256, release.variant_id)

    def audit(self, *words: str, code: int = 0) -> dict[str, Any]:
        done = self.folder.run("audit", "--json", *words)
        assert done.returncode == code, done.stderr[-3000:]
        assert not (self.folder.press / "scratch").exists()
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def verified_at(self, release: Release) -> str | None:
        with self.store() as store:
            return next(one.verified_at for one in store.releases() if one.variant_id == release.variant_id)

    def audits(self) -> tuple[Audit, ...]:
        with self.store() as store:
            return store.published.audits()


@pytest.fixture
def catalogue(quick_run: QuickRun, tmp_path: Path) -> Catalogue:
    return Catalogue(quick_run, tmp_path / "copy")


def test_audits_are_taken_in_turn_and_say_what_broke(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = catalogue.first, catalogue.second

    # Numbers that are not those on record.
    catalogue.execute(
        "UPDATE measurements SET value = 1e6, ci_low = 9e5, ci_high = 2e6 WHERE metric = 'perplexity' AND variant_id = ?",
        first.variant_id,
    )
    (wrong,) = catalogue.audit("--most", "1", code=GATE_REFUSAL)["audits"]
    assert (wrong["repo_id"], wrong["passed"]) == (first.repo_id, False)
    assert "numbers do not agree with those on record: perplexity was 1e+06" in wrong["reason"]
    assert wrong["measurements"]
    assert catalogue.verified_at(first) is None

    # The next in turn, whose card names another version of a library than is installed: it works as published.
    here = version("transformers")
    catalogue.publish_card(second, lambda text: text.replace(f"transformers=={here}", "transformers==4.0.0"))
    (good,) = catalogue.audit("--most", "1")["audits"]
    assert (good["repo_id"], good["passed"], good["reason"]) == (second.repo_id, True, "")
    assert good["libraries"]["transformers"] == here
    assert catalogue.verified_at(second) == good["at"]
    taken, known = ({one["metric"]: one for one in good["measurements"] if one["conditions"] == how} for how in ({}, RECORDED))
    assert {"perplexity", "kl_divergence", "same_top_token"} <= taken.keys() == known.keys()
    assert all(taken[name]["protocol"] == known[name]["protocol"] for name in taken)

    # A repository that is gone broke; a card that asks for what nobody installed here was not judged.
    catalogue.publish_card(second, lambda text: text.replace("pip install ", "pip install no-such-package-anywhere "))
    with catalogue.hub() as client:
        client.delete(first.repo_id)
    found = catalogue.audit("--all", code=GATE_REFUSAL)
    assert [(one["repo_id"], one["passed"]) for one in found["audits"]] == [(first.repo_id, False)]
    assert "is gone" in found["audits"][0]["reason"]
    assert [(one["variant"], one["error"]) for one in found["left"]] == [(second.variant_id, "Unavailable")]
    assert "no-such-package-anywhere" in found["left"][0]["reason"]

    # A commit by another hand: other weights of the same size, and a file more.
    with catalogue.hub() as client:
        sha = client.head(second.repo_id) or ""
        weights = next(file.path for file in client.files(second.repo_id, sha) if file.path.endswith(".safetensors"))
        there = client.download(ModelRef(repo_id=second.repo_id, sha=sha), patterns=[weights])
        content = bytearray((there / weights).read_bytes())
        content[-1] ^= 1
        tampered = client.commit(second.repo_id, {weights: bytes(content), "notes.txt": b"mine"}, message="better", parent=sha)
    found = catalogue.audit("--all", code=GATE_REFUSAL)
    broke = next(one for one in found["audits"] if one["repo_id"] == second.repo_id)
    assert (broke["sha"], broke["passed"]) == (tampered, False)
    assert f"checksums: 1 of the artifact's files are gone or differ from their SHA-256; 0 may. They are: {weights}" in broke["reason"]
    assert "They are: notes.txt" in broke["reason"]

    # A swapped card is never run.
    catalogue.execute("UPDATE releases SET card_sha256 = ? WHERE variant_id = ?", "0" * 64, second.variant_id)
    with catalogue.store() as store:
        store.published.retire(first.variant_id, at="2026-01-01T00:00:00+00:00", why="worse")
    (swapped,) = catalogue.audit("--all", code=GATE_REFUSAL)["audits"]
    assert "card_unchanged" in swapped["reason"]

    recorded = catalogue.audits()
    told = [(one.repo_id == first.repo_id, one.passed) for one in recorded]
    assert told == [(True, False), (False, True), (True, False), (False, False), (True, False), (False, False)]
    assert all(one.libraries["torch"] for one in recorded)
    with catalogue.store() as store:
        records = store.variants()
        assert [one.variant_id for one in due(records, recorded)] == [second.variant_id]
        assert [one.variant_id for one in due(records, recorded, retired=True)] == [second.variant_id, first.variant_id]

    assert catalogue.folder.run("site").returncode == 0
    pages = "".join(path.read_text(encoding="utf-8") for path in (catalogue.folder.press / "site" / "models").glob("*.html"))
    assert pages.count("<strong>It broke.</strong>") == 2
    assert "card_unchanged: The card has SHA-256" in pages

    # A hub that is away is no release that broke.
    monkeypatch.setattr(auditing, "PATIENCE_S", 0.2)
    monkeypatch.chdir(catalogue.folder.path)
    monkeypatch.setenv("MODELPRESS_HUB__ENDPOINT", "http://127.0.0.1:9")
    with Session(load(None)) as session:
        away = auditing.audit(session, most=None, retired=True)
        monkeypatch.setattr(session.client, "_patience_s", 0.2)
        verdicts, not_verified = pipeline.verify(session, again=True)
    assert (away.audits, [one.error for one in away.left]) == ([], ["HubUnreachable", "HubUnreachable"])
    assert isinstance(away.ended, HubUnreachable)
    assert catalogue.audits() == recorded
    assert (verdicts, {one.error for one in not_verified}) == ([], {"HubUnreachable"})
