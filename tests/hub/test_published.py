"""What the store keeps of releases: a line begun before its commit and settled after it, and what each repository holds now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hub.domain import Job, ModelRef, Recipe, Step, Thresholds
from hub.errors import StoreError
from hub.history import Release, ReleaseChange
from hub.scheduling import Plan
from hub.store import Store

AT, LATER = "2026-11-20T10:00:00+00:00", "2026-11-21T10:00:00+00:00"
LINE = ReleaseChange(repo_id="us/tiny-w4", at=AT, kind="released", what="artifact d released", content="v:d:")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "modelpress.db") as opened:
        yield opened


@pytest.fixture
def release(store: Store) -> Release:
    return made(store, "1")


def made(store: Store, digit: str) -> Release:
    """A release of one of two variants that are planned and nothing more."""
    step = Step(method="gptq", scheme="W4A16", params={}, calibration=None)
    limits = Thresholds(kl_divergence=1, perplexity_ratio=2)
    recipe = Recipe(name="w4", title="W4", summary="W4.", format="gptq", steps=(step,), thresholds=limits)
    jobs = {sha: Job(kind="press", base=ModelRef(repo_id="org/tiny", sha=sha * 40), recipe=recipe) for sha in "12"}
    store.record_plan(Plan(jobs=tuple(jobs.values()), refusals=(), done=0))
    variant = jobs[digit].variant_id
    assert variant is not None
    return Release(
        variant_id=variant, repo_id="us/tiny-w4", sha=digit * 40, artifact_digest="d", url="http://hub/us/tiny-w4", released_at=AT
    )


def test_a_line_is_begun_once_and_shown_when_its_commit_is_known(store: Store, release: Release) -> None:
    published = store.published
    assert published.begin(LINE) == LINE
    assert published.begin(replace(LINE, at=LATER)) == LINE, "the same change keeps the day on which it was begun first"
    assert published.changes(LINE.repo_id) == ()
    other = replace(LINE, at=LATER, what="artifact d found again")
    assert published.begin(other) == other, "other words are another change, and the first never came to be"
    assert published.begun(LINE.repo_id) == other
    published.settle(release)
    assert published.begun(LINE.repo_id) is None
    assert published.changes(LINE.repo_id) == (replace(other, sha=release.sha),)
    assert published.begin(LINE) == LINE, "what is settled is no draft any more"


def test_what_a_repository_holds_is_what_was_released_last_even_within_a_second(store: Store, release: Release) -> None:
    published, second = store.published, made(store, "2")
    published.settle(release)
    assert published.settle(second).released_at > release.released_at
    assert published.current() == {"us/tiny-w4": published.settle(second)}
    back = published.settle(replace(release, sha="3" * 40, released_at=AT))
    assert published.at("us/tiny-w4") == back
    assert published.at("us/other") is None
    assert published.current() == {"us/tiny-w4": back}, "the older one was put in its place again"
    assert published.settle(replace(back, sha="4" * 40, released_at=LATER)).released_at == back.released_at, "a new card is no new release"


def test_what_was_found_of_an_artifact_is_forgotten_with_it(store: Store, release: Release) -> None:
    published = store.published
    published.settle(release)
    store.mark_verified(release.variant_id, LATER)
    published.retire(release.variant_id, at=LATER, why="old")
    published.supersede(release.variant_id, "us/better")
    kept = published.settle(replace(release, sha="5" * 40, card_sha256="c" * 64))
    assert (kept.verified_at, kept.retired_why, kept.new_version, kept.card_sha256) == (LATER, "old", "us/better", "c" * 64)
    fresh = published.settle(replace(release, sha="6" * 40, artifact_digest="e"))
    assert (fresh.verified_at, fresh.retired_at, fresh.retired_why, fresh.new_version) == (None, None, None, None)
    with pytest.raises(StoreError, match="released already as us/tiny-w4, so not as us/elsewhere"):
        published.settle(replace(release, repo_id="us/elsewhere"))
    with pytest.raises(StoreError, match="no variant 0000"):
        published.settle(replace(release, variant_id="0000"))
