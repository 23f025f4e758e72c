"""Publishing and verifying against the embedded hub, through the real client."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub.codec import to_json
from hub.domain import ArtifactFile, Failure, ModelRef
from hub.errors import BadCheckpoint, GateRefusal, HubConflict, HubNotFound, HubRefused, PolicyRefusal, UsageError
from hub.history import Audit, Release
from hub.local.process import LocalHub
from hub.published import Published
from hub.settings import Settings
from leaderboard import gate, looks, verify
from leaderboard.rows import state_of
from leaderboard.supplements import is_supplement
from modelpress import collecting, pipeline, prune, publishing, verifying
from modelpress import publish as command
from runners.farm.artifacts import Depot

from .world import AT, World, packed

pytestmark = pytest.mark.integration


def parts(done: publishing.Publication) -> list[list]:
    return [done.released, done.cards, done.refused, done.left]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0, samples=False, faults=True) as running:
        yield running


@pytest.fixture
def world(hub: LocalHub, tmp_path: Path, make: SimpleNamespace) -> Iterator[World]:
    made = World(hub, tmp_path, make)
    yield made
    made.mend()


def test_a_release_is_one_commit_with_card_and_manifest(world: World) -> None:
    record = world.press()
    (world.home(record) / "notes.txt").write_text("a stray file, which the manifest does not name")
    release = world.publish(record)
    assert release.repo_id == f"{world.base.ref.repo_id}-gptq-w4a16-g128"
    assert world.client.head(release.repo_id) == release.sha
    assert len(world.published(release.repo_id)) == 1
    paths = {file.path for file in world.client.files(release.repo_id, release.sha)}
    beside = {path for path in paths if is_supplement(path)}
    assert "bench.json" in beside
    assert paths - beside - {".gitattributes"} == {"README.md", "config.json", "model.safetensors", "modelpress.json", "tokenizer.json"}
    card = world.client.read_text(release.repo_id, release.sha, "README.md")
    assert card is not None
    assert world.client.validate_card(card) == []
    assert f"export HF_ENDPOINT={world.hub.endpoint}" in card
    assert "non-overlapping windows of 512 tokens" in card
    assert world.read(record).release == release
    listed = world.client.candidate(release.repo_id)
    assert (listed.license, listed.base_models, listed.library_name) == ("apache-2.0", (world.base.ref.repo_id,), "transformers")
    assert {"base_model:quantized:" + world.base.ref.repo_id, "gptq", "4-bit"} <= set(listed.tags)


def test_the_card_names_siblings_that_passed(world: World) -> None:
    first = world.press()
    second = world.press("gptq-w4a16-g64", params=64)
    release = world.publish(first)
    card = world.client.read_text(release.repo_id, release.sha, "README.md") or ""
    assert f"[gptq-w4a16-g64]({world.hub.endpoint}/{world.base.ref.repo_id}-gptq-w4a16-g64)" in card
    assert world.publish(second).repo_id == f"{world.base.ref.repo_id}-gptq-w4a16-g64"


def test_publishing_again_changes_nothing(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    assert world.publish(record) == release
    assert world.publish(world.read(record)) == release
    assert len(world.published(release.repo_id)) == 1


def test_what_is_sent_to_the_hub_is_written_down(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    world.publish(world.read(record))
    assert record.artifact is not None
    made, sent = world.store.hub_writes(0)
    assert (made.action, made.repo_id, made.bytes) == ("repo", release.repo_id, 0)
    assert (sent.action, sent.repo_id) == ("commit", release.repo_id)
    assert sent.bytes > record.artifact.bytes, "card and manifest go with it"


def test_publishing_stops_at_the_hubs_limits_and_goes_on_later(world: World) -> None:
    world.press()
    world.press("gptq-w4a16-g64", params=64)

    def publish_with(**limits: float) -> publishing.Publication:
        budget = world.settings.budget.model_copy(update=limits)
        return publishing.publish(world.session(world.settings.model_copy(update={"budget": budget})))

    assert [len(part) for part in parts(publish_with(storage_gib=1e-9))] == [0, 0, 0, 2]
    done = publish_with(repos_per_day=1)
    assert [len(part) for part in parts(done)] == [1, 1, 0, 1], "a card recommends no sibling that did not come after all"
    coming = publishing.rehearse(world.session())
    assert [one.change.kind for one in coming.proposals] == ["released", "card"], "once it comes, the card recommends it"
    assert coming.as_they_should_be == 0
    assert done.left[0].reason == "it is left for a later run: 1 repositories were made on the Hub in the last 24 hours, and 1 are allowed"
    assert [len(part) for part in parts(publish_with(repos_per_day=2, commits_per_day=4))] == [1, 1, 0, 0]
    assert len(world.store.releases()) == 2
    assert not any(parts(publish_with(commits_per_day=4))), "nothing is left to do, so no limit is in the way"

    # A repository that is to be made again, and a commit that is tried again, count as what they are.
    waiting = world.press("gptq-w4a16-g32", params=32)
    release = world.publish(waiting)
    world.client.delete(release.repo_id)
    again = world.press("gptq-w4a16-g32", params=16, seed="two")
    assert world.publisher().names.of(again) == release.repo_id
    assert "3 repositories were made" in publish_with(repos_per_day=3).left[0].reason
    sent = len([write for write in world.store.hub_writes(0) if write.action == "commit"])
    world.fault(kind="status", method="POST", path=r"/commit/", status=412, times=0)
    assert f"{sent + 1} commits were sent" in publish_with(commits_per_day=sent + 1).left[0].reason
    world.mend()
    publish_with()
    world.client.commit(release.repo_id, {}, deleted=["config.json"], message="half", parent=None)
    world.store.published.retire(again.variant_id, at=AT, why="worse")
    assert "the releases take" in publish_with(storage_gib=1e-5).left[0].reason, "the artifact goes up again, not only its card"


def test_a_release_whose_record_was_lost_is_found_again_and_its_card_says_so(world: World) -> None:
    first = world.publish(world.press())
    other = world.new_store("second")
    again = world.publish(world.press(store=other), store=other)
    assert (again.repo_id, again.artifact_digest) == (first.repo_id, first.artifact_digest)
    assert len(world.published(first.repo_id)) == 1
    assert other.releases() == [again]
    card = world.client.read_text(again.repo_id, again.sha, "README.md") or ""
    assert f"found at commit {first.sha[:8]}; the record of its release was lost" in card
    before = len(world.commits(again.repo_id))
    assert world.publish(world.read(again, other), store=other) == again
    assert len(world.commits(again.repo_id)) == before


def test_a_card_that_is_newer_than_the_record_of_it_is_known_again(world: World) -> None:
    """As after a database was restored from a backup."""
    record = world.press()
    old = world.publish(record)
    world.press("gptq-w4a16-g64", params=64)
    assert len(publishing.publish(world.session()).cards) == 1
    with closing(sqlite3.connect(world.folder / "first.db")) as database, database:
        database.execute("UPDATE releases SET sha = ?, card_sha256 = ? WHERE repo_id = ?", (old.sha, old.card_sha256, old.repo_id))
        database.execute("DELETE FROM release_changes WHERE repo_id = ? AND kind = 'card'", (old.repo_id,))
    head = world.client.head(old.repo_id)
    publishing.publish(world.session())
    assert world.client.head(old.repo_id) == head, "nothing is sent"
    verdict = world.verify(record)
    assert verdict.passed, [check for check in verdict.checks if not check.passed]
    assert (verdict.subject, {"card_unchanged", "supplements_unchanged"} - {check.name for check in verdict.checks}) == (head, set())
    changes = world.store.published.changes(old.repo_id)
    assert not any(parts(publishing.publish(world.session())))
    assert world.store.published.changes(old.repo_id) == changes


def test_a_repository_made_but_never_filled_is_filled(world: World) -> None:
    record = world.press()
    world.client.create(f"{world.base.ref.repo_id}-gptq-w4a16-g128")
    release = world.publish(record)
    assert len(world.published(release.repo_id)) == 1


def test_a_lost_answer_makes_no_second_commit(world: World) -> None:
    record = world.press()
    world.fault(kind="lost", method="POST", path=r"/commit/", status=503)
    release = world.publish(record)
    assert len(world.published(release.repo_id)) == 1
    assert world.client.head(release.repo_id) == release.sha


def test_a_hub_that_moved_on_is_looked_at_again(world: World) -> None:
    record = world.press()
    world.fault(kind="status", method="POST", path=r"/commit/", status=412)
    release = world.publish(record)
    assert len(world.published(release.repo_id)) == 1


def test_a_hub_that_keeps_moving_on_is_an_error(world: World) -> None:
    record = world.press()
    world.fault(kind="status", method="POST", path=r"/commit/", status=412, times=0)
    with pytest.raises(HubConflict):
        world.publish(record)
    assert world.read(record).release is None


def test_a_token_that_may_only_read_is_refused(world: World) -> None:
    record = world.press()
    with pytest.raises(HubRefused):
        world.publish(record, client=world.new_client(world.hub.read_token))
    assert world.client.head(f"{world.base.ref.repo_id}-gptq-w4a16-g128") is None
    assert world.store.releases() == []


def test_different_bytes_under_a_name_are_replaced_in_the_open(world: World) -> None:
    first = world.publish(world.press())
    other = world.new_store("second")
    record = world.press(store=other, seed="two", params=64)

    # What somebody put beside the first is neither taken away nor published with the second; a card leaves it where it is.
    theirs = {"notes.txt": b"mine", ".eval_results/gone.yaml": b"[]"}
    there = world.client.commit(first.repo_id, theirs, message="mine", parent=first.sha)
    with pytest.raises(PolicyRefusal, match=r"holds files that ModelPress did not publish \(notes\.txt\)"):
        world.publish(record, store=other)
    assert world.client.head(first.repo_id) == there
    world.store.published.retire(first.variant_id, at=AT, why="old")
    card = world.publisher().refresh(world.read(first))
    assert card is not None
    files = {file.path for file in world.client.files(first.repo_id, card.sha)}
    assert files & theirs.keys() == {"notes.txt"}, "of what a card does not want only supplements go"
    world.client.commit(first.repo_id, {}, deleted=["notes.txt"], message="taken away", parent=card.sha)
    first = replace(first, sha=world.client.head(first.repo_id) or "")

    release = world.publish(record, store=other)
    assert release.repo_id == first.repo_id
    assert release.sha != first.sha
    assert world.published(first.repo_id)[0].startswith(f"Replace artifact {first.artifact_digest} -> {release.artifact_digest}: ")
    card = world.client.read_text(release.repo_id, release.sha, "README.md") or ""
    assert f"artifact {release.artifact_digest} replaces {first.artifact_digest} (commit {first.sha[:8]})" in card


def test_a_repository_of_somebody_else_is_left_alone(world: World) -> None:
    record = world.press()
    name = f"{world.base.ref.repo_id}-gptq-w4a16-g128"
    world.client.create(name)
    theirs = world.client.commit(name, {"thesis.md": b"three years of work"}, message="mine", parent=None)
    with pytest.raises(PolicyRefusal, match=r"holds files that ModelPress did not publish \(thesis.md\)"):
        world.publish(record)
    assert world.client.head(name) == theirs


def test_a_variant_of_another_base_of_the_same_name_is_left_alone(world: World) -> None:
    record = world.press()
    assert record.artifact is not None
    namesake = replace(record.artifact, base=replace(record.base, repo_id=f"elsewhere/{record.base.name}"))
    name = f"{world.base.ref.repo_id}-gptq-w4a16-g128"
    world.client.create(name)
    theirs = world.client.commit(name, {"modelpress.json": to_json(namesake).encode()}, message="theirs", parent=None)
    with pytest.raises(PolicyRefusal, match=f"holds a variant of elsewhere/{record.base.name}"):
        world.publish(record)
    assert world.client.head(name) == theirs


def test_a_repository_that_somebody_else_makes_meanwhile_is_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record = world.press()
    create = world.client.create

    def made_by_another(repo_id: str, *, gated: str | None = None) -> None:
        create(repo_id, gated=gated)
        world.client.commit(repo_id, {"notes.txt": b"mine"}, message="mine", parent=None)

    monkeypatch.setattr(world.client, "create", made_by_another)
    with pytest.raises(PolicyRefusal, match=r"notes\.txt"):
        world.publish(record)


def test_what_has_not_passed_is_not_published(world: World, make: SimpleNamespace) -> None:
    record = world.press()
    with pytest.raises(GateRefusal, match="has not been judged"):
        world.publish(replace(record, verdicts=()))
    failed = gate.judge(
        record,
        make.facts(loads=False, load_error="boom"),
        base=world.store.bases()[0],
        stage="artifact",
        subject=record.artifact.digest,
        at=AT,
    )
    with pytest.raises(GateRefusal, match="The checkpoint does not load: boom"):
        world.publish(replace(record, verdicts=(failed,)))
    assert world.client.head(f"{world.base.ref.repo_id}-gptq-w4a16-g128") is None


def test_bytes_changed_after_the_verdict_are_not_published(world: World) -> None:
    record = world.press()
    weights = world.home(record) / "model.safetensors"
    weights.write_bytes(b"x" * weights.stat().st_size)
    with pytest.raises(BadCheckpoint, match=r"model.safetensors of variant .* is not the file that was judged"):
        world.publish(record)
    assert world.client.head(f"{world.base.ref.repo_id}-gptq-w4a16-g128") is None


def test_a_link_is_not_followed(world: World, tmp_path: Path) -> None:
    record = world.press()
    weights = world.home(record) / "model.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadCheckpoint):
        world.publish(record)


def test_a_licence_with_demands_gets_what_it_demands(
    hub: LocalHub, tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(hub, tmp_path, make, licence="llama3.1", files=("LICENSE", "USE_POLICY.md"))
    record = world.press()
    release = world.publish(record)
    assert release.repo_id.split("/")[1].startswith("Llama")
    files = {file.path for file in world.client.files(release.repo_id, release.sha)}
    assert {"LICENSE", "USE_POLICY.md", "NOTICE"} <= files
    assert world.client.read_text(release.repo_id, release.sha, "LICENSE") == "text of LICENSE"
    assert "Community License" in (world.client.read_text(release.repo_id, release.sha, "NOTICE") or "")
    assert "Built with Llama" in (world.client.read_text(release.repo_id, release.sha, "README.md") or "")
    assert world.verify(record).passed

    world.client.commit(release.repo_id, {}, message="oops", parent=None, deleted=["LICENSE", "NOTICE"])
    monkeypatch.setattr(verify, "_now", lambda: "2999-01-01T00:00:00+00:00")
    assert {check.name for check in world.verify(record).checks if not check.passed} == {"files", "commit"}
    (put_right,) = publishing.publish(world.session()).cards
    assert files == {file.path for file in world.client.files(release.repo_id, put_right.sha)}
    assert world.verify(record).passed


def test_a_licence_that_must_be_passed_on_and_is_not_there_refuses(hub: LocalHub, tmp_path: Path, make: SimpleNamespace) -> None:
    world = World(hub, tmp_path, make, licence="gemma")
    record = world.press()
    with pytest.raises(PolicyRefusal, match="licence gemma must be passed on as a copy"):
        world.publish(record)


def test_published_bytes_are_verified_from_an_empty_cache(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    verdict = world.verify(record)
    assert verdict.passed, [check for check in verdict.checks if not check.passed]
    assert (verdict.stage, verdict.subject) == ("release", release.sha)
    found = world.read(record)
    assert found.release is not None
    assert found.release.verified_at == verdict.judged_at
    assert verdict in found.verdicts
    assert {"card_unchanged", "supplements_unchanged"} <= {check.name for check in verdict.checks}
    assert world.farm.folders[-1].is_relative_to(world.folder / "scratch")
    assert not (world.folder / "scratch" / record.variant_id).exists()


def test_published_bytes_that_are_not_the_artifacts_do_not_verify(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    # Someone with the token swaps the weights and writes a manifest that agrees with them.
    swapped = b"y" * 4096
    files = tuple(
        replace(file, size=4096, sha256=hashlib.sha256(swapped).hexdigest()) if file.path == "model.safetensors" else file
        for file in record.artifact.files
    )
    manifest = to_json(replace(record.artifact, files=files)).encode()
    swap = {"model.safetensors": swapped, "modelpress.json": manifest, "bench.json": b"{}"}
    sha = world.client.commit(release.repo_id, swap, message="swap", parent=release.sha)
    verdict = world.verify(record)
    assert verdict.subject == sha
    wrong = {check.name for check in verdict.checks if not check.passed}
    assert wrong == {"commit", "same_tokens", "checksums", "card_files", "supplements_unchanged"}
    assert world.read(record).release == release


def test_a_release_that_breaks_is_verified_no_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record = world.press()
    release = world.publish(record)
    assert world.verify(record).passed
    assert prune.why_useless(world.read(record)) == "the Hub has it, verified"

    def broke() -> list[str]:
        found = world.read(record)
        assert found.release
        assert found.release.verified_at is None
        assert prune.why_useless(found) == ""
        last = max((one for one in found.verdicts if one.stage == "release"), key=lambda one: (one.judged_at, not one.passed))
        return [f"{check.name}: {check.detail}" for check in last.checks if not check.passed]

    def told() -> tuple[bool, str]:
        """Whether cards recommend it, and what the site says."""
        found = world.read(record)
        return found.variant_id not in looks.broken(world.store, [found]), state_of(
            found, looks.lasts(world.store, [found]).get(found.variant_id)
        ).code

    def looked(at: str, *, passed: bool) -> None:
        audit = {"variant_id": record.variant_id, "repo_id": release.repo_id, "sha": release.sha, "libraries": {}}
        world.store.published.record_audit(Audit(**audit, at=at, passed=passed, reason="" if passed else "numbers"))  # type: ignore[arg-type]

    assert told() == (True, "verified")
    looked("2999-01-01T00:00:00+00:00", passed=False)
    assert told() == (False, "held")
    monkeypatch.setattr(verify, "_now", lambda: "2999-01-02T00:00:00+00:00")
    assert world.verify(record).passed
    assert told() == (True, "verified"), "it passes again, as it did before"
    world.client.commit(release.repo_id, {"notes.txt": b"mine"}, message="mine", parent=None)
    monkeypatch.setattr(verify, "_now", lambda: "2999-01-03T00:00:00+00:00")
    assert not world.verify(record).passed
    assert told() == (False, "held")
    looked("2999-01-04T00:00:00+00:00", passed=True)
    assert told() == (True, "verified")
    monkeypatch.setattr(verify, "_now", lambda: "2999-01-05T00:00:00+00:00")
    assert not world.verify(record).passed
    assert told() == (False, "held"), "as it was found before the audit"
    assert [failure.split(":")[0] for failure in broke()] == ["files", "commit"]
    world.store.mark_verified(record.variant_id, AT)
    assert world.verify(record, sha=release.sha).passed
    assert world.read(record).release == replace(release, verified_at=AT), "of what is not the head nothing is noted"
    world.client.delete(release.repo_id)
    with pytest.raises(HubNotFound):
        world.verify(record)
    gone = f"the repository {release.repo_id} is gone from {world.hub.endpoint}, or hidden"
    assert broke() == [f"examined: {gone}"]
    world.store.mark_verified(record.variant_id, AT)
    world.store.published.settle(replace(release, url=f"https://huggingface.co/{release.repo_id}"))
    with pytest.raises(UsageError, match="the hub is http"):
        world.verify(record)
    assert (world.read(record).release or release).verified_at == AT, "it is looked for on another hub"


def test_an_inspection_that_fails_leaves_the_release_unverified(world: World) -> None:
    record = world.press()
    world.publish(record)
    world.verify(record)
    world.farm.failure = Failure(
        job_id="x", error="JobDied", reason="it was killed", hint="try again", log_tail="", seconds=1.0, retryable=True
    )
    with pytest.raises(GateRefusal, match=r"inspecting .* failed: it was killed"):
        world.verify(record)
    found = world.read(record).release
    assert found is not None
    assert found.verified_at is None
    assert not (world.folder / "scratch" / record.variant_id).exists()


def test_a_card_is_renewed_when_it_would_say_another_thing_and_else_left_alone(world: World) -> None:
    record = world.press()
    first = world.publish(record)
    stage = world.session()
    assert not any(parts(publishing.publish(stage)))
    world.press("gptq-w4a16-g64", params=64)
    done = publishing.publish(stage)
    assert [len(part) for part in parts(done)] == [1, 1, 0, 0], "a new sibling, and the card of the first that now names it"
    assert len(world.commits(first.repo_id)) == 3
    now = world.read(record).release
    assert now is not None
    assert (now.sha, now.released_at, now.artifact_digest) == (done.cards[0].sha, first.released_at, first.artifact_digest)
    assert now.sha == world.client.head(first.repo_id)
    assert not any(parts(publishing.publish(stage))), "once is enough"

    # What an audit or a verification found broken since is recommended by no card, until it passes again.
    other = done.released[0]

    def advises(release: Release) -> bool:
        text = world.client.read_text(release.repo_id, release.sha, "README.md") or ""
        return "gptq-w4a16-g64" in text.split("## Which variant to take")[1].split("|")[0]

    assert advises(now)
    looked = Audit(
        variant_id=other.variant_id,
        repo_id=other.repo_id,
        sha=other.sha,
        at="2999-01-01T00:00:00+00:00",
        passed=False,
        reason="gone",
        libraries={},
    )
    world.store.published.record_audit(looked)
    done = publishing.refresh(stage)
    assert {one.repo_id for one in done.cards} == {first.repo_id, other.repo_id}
    assert not any(advises(one) for one in done.cards)
    world.store.published.record_audit(replace(looked, at="2999-01-02T00:00:00+00:00", passed=True, reason=""))
    assert len(publishing.refresh(stage).cards) == 2

    world.store.mark_verified(record.variant_id, AT)
    world.store.published.retire(record.variant_id, at=AT, why="a better one is there")
    done = publishing.refresh(stage, first.repo_id)
    assert [one.repo_id for one in done.cards] == [first.repo_id]
    card = world.client.read_text(first.repo_id, done.cards[0].sha, "README.md") or ""
    assert "deprecated: a better one is there" in card
    assert world.store.published.current()[first.repo_id].verified_at == AT, "the bytes are those that were verified"
    assert [change.kind for change in world.store.published.changes(first.repo_id)] == ["released", *["card"] * 3, "retired"]
    assert len(publishing.refresh(stage).cards) == 1, "the sibling's card recommends it no longer"
    assert not publishing.refresh(stage).cards
    world.store.published.retire(record.variant_id, at=AT, why="")
    assert len(publishing.refresh(stage).cards) == 2
    assert [change.what for change in world.store.published.changes(first.repo_id)][-1] == "not deprecated any more"
    weights = world.home(record) / "model.safetensors"
    weights.unlink()
    world.store.published.retire(record.variant_id, at=AT, why="again")
    assert len(publishing.refresh(stage).cards) == 2, "a card needs no weights on this disk"


def test_a_new_revision_takes_the_place_of_the_old_one_and_says_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    old = world.press(kl=0.0123)
    first = world.publish(old)
    revision = world.upload(world.base.ref.repo_id)
    world.store.record_models([revision], "2026-11-21T10:00:00+00:00")
    new = world.press(seed="two", base=revision, kl=0.0101)
    limited = world.settings.model_copy(update={"budget": world.settings.budget.model_copy(update={"repos_per_day": 1})})
    assert [one.variant_id for one in world.publisher().ready()] == [new.variant_id]
    done = publishing.publish(world.session(limited))
    assert [one.repo_id for one in done.released] == [first.repo_id], "it makes no repository, so that limit is not in the way"
    card = world.client.read_text(first.repo_id, done.released[0].sha, "README.md") or ""
    assert old.artifact is not None
    assert new.artifact is not None
    assert (
        f"artifact {new.artifact.digest} replaces {old.artifact.digest} (commit {first.sha[:8]}): new revision of the base, "
        f"{old.base.sha[:8]} to {new.base.sha[:8]}; KL divergence 0.0123 ± 0.0008 to 0.0101 ± 0.0008, "
        "perplexity ratio 1.021 ± 0.004 to 1.021 ± 0.004"
    ) in card
    assert world.store.published.current()[first.repo_id].variant_id == new.variant_id
    assert world.publisher().ready() == [], "the old one does not come back"

    # What lies there no more is looked for by nobody.
    session = world.session()
    monkeypatch.setattr(verifying, "commands", lambda *_: None)  # bytes that are made up load nowhere
    assert [verdict.passed for verdict in pipeline.verify(session)[0]] == [True]
    verdicts, refused = pipeline.verify(session, again=True)
    assert ([verdict.variant_id for verdict in verdicts], refused) == ([new.variant_id], [])
    found = verifying.look(session, first.repo_id, None)
    assert (found.sha, found.passed) == (done.released[0].sha, True), found.findings
    assert verifying.look(session, first.repo_id, first.sha).promised_by != verifying.RELEASE
    assert not any(parts(publishing.publish(world.session())))
    assert len(world.published(first.repo_id)) == 2


def test_a_card_is_not_put_over_an_artifact_that_took_its_place_while_its_sender_died(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = world.press()
    first = world.publish(old)
    revision = world.upload(world.base.ref.repo_id)
    world.store.record_models([revision], "2026-11-21T10:00:00+00:00")
    new = world.press(seed="two", base=revision)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as kill:
        kill.setattr(Published, "settle", killed)
        with pytest.raises(KeyboardInterrupt):
            world.publish(new)
    world.store.published.retire(old.variant_id, at=AT, why="worse than the next")
    head = world.client.head(first.repo_id)
    assert world.publisher().refresh(world.read(old)) is None
    assert world.client.head(first.repo_id) == head
    assert world.store.published.current()[first.repo_id].variant_id == new.variant_id, "it is noted now"
    assert world.publisher().ready() == []


def test_two_bases_of_one_name_go_to_two_repositories_whoever_comes_next(world: World) -> None:
    namesake = world.upload(f"modelpress-lab/{world.base.ref.name}")
    world.store.record_models([world.base, namesake], "2026-11-21T10:00:00+00:00")
    second = world.press(base=namesake)
    release = world.publish(second)
    plain = f"{world.base.ref.repo_id}-gptq-w4a16-g128"
    assert release.repo_id == plain, "it is there first"
    first = world.press(seed="two")
    assert world.publisher().names.of(first) == f"{world.base.ref.repo_id}-modelpress-gptq-w4a16-g128"
    done = publishing.publish(world.session())
    assert [one.repo_id for one in done.released] == [f"{world.base.ref.repo_id}-modelpress-gptq-w4a16-g128"]
    other = world.press("gptq-w4a16-g64", params=64, base=namesake)
    assert world.publisher().names.of(other) == f"{world.base.ref.repo_id}-gptq-w4a16-g64"
    assert not done.refused


def test_rights_are_asked_again_when_publishing(world: World) -> None:
    record = world.press()
    world.settings = world.settings.model_copy(update={"policy": world.settings.policy.model_copy(update={"licenses": ("mit",)})})
    done = publishing.publish(world.session())
    assert [(one.error, one.variant) for one in done.refused] == [("PolicyRefusal", record.variant_id)]
    assert "its licence 'apache-2.0' is not allowed; allowed: mit" in done.refused[0].reason

    # What the base allows is asked of the Hub, not of what was listed once.
    world.settings = Settings()
    name = world.base.ref.repo_id
    world.upload(name, licence="cc-by-nc-4.0")
    assert "its licence 'cc-by-nc-4.0' is not allowed" in publishing.publish(world.session()).refused[0].reason
    world.upload(name)
    changed = ({"gated": "manual"}, "access to it is gated"), ({"gated": False, "private": True}, "it is private")
    for change, reason in changed:
        world.client.call("a change", lambda api, change=change: api.update_repo_settings(name, **change))
        assert reason in publishing.publish(world.session()).refused[0].reason
    world.client.delete(name)
    assert "gone from the Hub, or private" in publishing.publish(world.session()).refused[0].reason
    assert world.client.head(f"{name}-gptq-w4a16-g128") is None
    assert world.store.hub_writes(0) == []


def test_a_gated_base_is_mirrored_gated(world: World) -> None:
    gated = world.upload(f"{world.base.ref.repo_id}-gated")
    world.store.record_models([gated], AT)
    record = world.press(base=gated)
    gate_it = {"gated": "manual"}  # since it was listed
    world.client.call("gating it", lambda api: api.update_repo_settings(gated.ref.repo_id, **gate_it))
    assert "access to it is gated" in publishing.publish(world.session()).refused[0].reason
    allowed = world.settings.policy.model_copy(update={"gated_licenses": ("apache-2.0",)})
    world.settings = world.settings.model_copy(update={"policy": allowed})
    (release,) = publishing.publish(world.session()).released
    assert world.client.candidate(release.repo_id).gated == "auto"
    with pytest.raises(HubRefused):
        world.new_client("").download(ModelRef(repo_id=release.repo_id, sha=release.sha))
    world.store.record_models([world.client.candidate(gated.ref.repo_id)], AT)  # as the next discovery lists it
    world.client.call("opening it", lambda api: api.update_repo_settings(release.repo_id, gated=False))
    assert not any(parts(publishing.publish(world.session())))
    assert world.client.candidate(release.repo_id).gated == "auto", "a gate that was taken away is put back"
    assert world.read(record).release == release


def test_a_dry_run_shows_everything_and_writes_nothing(world: World) -> None:
    record = world.press()
    release = world.publish(record)
    second = world.press("gptq-w4a16-g64", params=64, kl=0.005)
    written = world.store.hub_writes(0)
    for method in ("POST", "PUT", "DELETE"):
        world.fault(kind="delay", seconds=0, method=method, path="^(?!/api/validate-yaml)", times=0)
    session = world.session()
    del session.publisher
    session.client = world.new_client(world.hub.read_token)
    # The new one lies in the depot of a cluster alone.
    Depot(f"file://{world.folder}/depot").push(world.home(second))
    shutil.rmtree(world.home(second))
    farm = world.settings.farm.model_copy(update={"kind": "ray", "artifacts": f"file://{world.folder}/depot"})
    session.settings = world.settings.model_copy(update={"farm": farm})
    found = publishing.rehearse(session)
    assert world.faults() == 0, "only GET, HEAD and the check of the card"
    assert world.store.hub_writes(0) == written
    assert world.store.published.begun(release.repo_id) is None
    assert not [*found.refused, *found.left]
    new, known = found.proposals
    assert (new.order.repo_id, new.head.sha, new.change.kind) == (f"{world.base.ref.repo_id}-gptq-w4a16-g64", None, "released")
    assert {state.state for state in new.states} == {"new"}
    assert new.size == sum(state.size for state in new.states)
    assert (known.order.repo_id, known.head.sha, known.change.kind) == (release.repo_id, release.sha, "card")
    states = {state.path: state.state for state in known.states}
    assert (states["README.md"], states["model.safetensors"], states["modelpress.json"]) == ("changed", "same", "same")
    document = command.document(known, session)
    assert document["metadata"]["base_model"] == [world.base.ref.repo_id]
    assert any(line.startswith("+") and "gptq-w4a16-g64" in line for line in document["card_diff"])
    shown = "\n".join(command.described(known, session))
    assert re.search(r"changed +README\.md", shown)
    assert "+++ this run" in shown

    # What limits would leave for later; what is as it should be is not asked of the Hub, nor is a successor noted that is shown.
    tight = world.settings.budget.model_copy(update={"commits_per_day": 2})
    session.settings = world.settings.model_copy(update={"budget": tight})
    found = publishing.rehearse(session)
    assert [one.change.kind for one in found.proposals] == ["released"], "one commit was sent before"
    assert [one.reason for one in found.left] == [
        "it is left for a later run: 2 commits were sent to the Hub in the last 24 hours, and 2 are allowed"
    ]
    publishing.publish(world.session())
    session.settings = world.settings
    world.mend()
    world.fault(kind="delay", seconds=0, method="GET", path="^/api/models/", times=0)
    found = publishing.rehearse(session)
    assert (found.proposals, found.as_they_should_be, world.faults()) == ([], 2, 0)
    world.store.mark_verified(second.variant_id, AT)
    (better,) = publishing.rehearse(session).proposals
    assert command.document(better, session)["metadata"]["new_version"] == new.order.repo_id
    assert release.repo_id == better.order.repo_id
    assert (world.read(record).release or release).new_version is None


def test_a_card_that_the_bytes_contradict_is_not_published(world: World) -> None:
    record = world.press()
    home = world.home(record)
    config = json.loads((home / "config.json").read_text())
    config["quantization_config"]["bits"] = 8
    (home / "config.json").write_text(json.dumps(config))
    (home / "model.safetensors").write_bytes(packed("one", bits=8))
    files = tuple(
        ArtifactFile(path=file.path, size=len(content := (home / file.path).read_bytes()), sha256=hashlib.sha256(content).hexdigest())
        for file in record.artifact.files
    )
    lying = replace(record.artifact, files=files)
    (world.home(record) / "modelpress.json").write_text(to_json(lying))
    verdicts = tuple(replace(verdict, subject=lying.digest) for verdict in record.verdicts)
    with pytest.raises(GateRefusal, match=r"says what its files contradict: .*'w4a16'; the weights have 8 bits"):
        world.publish(replace(record, artifact=lying, verdicts=verdicts))
    assert world.client.head(f"{world.base.ref.repo_id}-gptq-w4a16-g128") is None


def test_without_a_write_token_what_waits_is_refused_in_words(world: World) -> None:
    class Tokenless(SimpleNamespace):
        @property
        def publisher(self) -> None:
            raise HubRefused("there is no write token", hint="")

    session = world.session()
    record = world.press()
    parts_of = {key: value for key, value in vars(session).items() if key != "publisher"}
    without = Tokenless(**parts_of)
    done = publishing.publish(without)  # type: ignore[arg-type]
    assert [(one.variant, one.reason) for one in done.refused] == [(record.variant_id, "there is no write token")]
    world.publish(record)
    done = publishing.refresh(without)  # type: ignore[arg-type]
    assert [(one.variant, one.reason) for one in done.refused] == [(record.variant_id, "there is no write token")]


def test_a_hub_that_asks_to_wait_long_is_not_asked_by_the_next_stage_either(world: World) -> None:
    record = world.press()
    world.publish(record)
    world.press("gptq-w4a16-g64", params=64)
    session = world.session()
    world.fault(kind="status", method="POST", path="/preupload/", status=429, headers={"Retry-After": "3600"}, times=0)
    assert len(publishing.publish(session).left) == 2
    asked = world.faults()
    world.store.published.retire(record.variant_id, at=AT, why="worse")
    world.fault(kind="delay", seconds=0, method="GET", path="^/api/", times=0)
    assert len(publishing.refresh(session).left) == 1
    collected = collecting.collect(session)
    assert (collected.collections, world.faults()) == ([], asked), "nothing more is asked"
    assert "it asks to wait 3600 s" in collected.problems[-1]
