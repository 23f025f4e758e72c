"""An unattended run over a hub of good and of poisonous models, while things break: every good one pressed, every bad one explained."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from . import poison
from .conftest import Folder
from .faults import LocalHub, Running, ask, fault, leftovers, new_farm, plant, query, serving

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]
SEED = 20


@dataclass(frozen=True)
class Night:
    """What a disturbed run left: its folder, the hub that it published to, and the lines of its last part."""

    farm: Folder
    hub: LocalHub
    text: str


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Night]:
    """Run over the whole hub; the dispatcher is killed twice and a job twice at random moments, and the hub misbehaves all along."""
    folder = tmp_path_factory.mktemp("night")
    planted = plant(folder / "planted", good=poison.GOOD, bad=tuple(poison.POISON))
    farm = new_farm(folder / "farm", planted)
    chance = random.Random(SEED)
    with serving(farm) as hub:
        bad_weather(hub)
        for _ in range(2):
            run = Running(farm)
            run.seen("press and measure:")
            run.said(len(run.lines) + chance.randrange(1, 12))
            run.job().kill()
            run.said(len(run.lines) + chance.randrange(1, 12))
            run.job()
            run.kill()
        run = Running(farm)
        code = run.end(900)
        assert code in (0, 30), run.text
        yield Night(farm, hub, run.text)


def bad_weather(hub: LocalHub) -> None:
    fault(hub, "status", "^/api/models$", method="GET", status=429, headers={"Retry-After": "1"})
    fault(hub, "status", "^/api/models/good/", method="GET", status=500, times=2, after=3)
    fault(hub, "cut", "/resolve/.*/model.safetensors", method="GET", bytes=50_000, times=2, after=12)
    fault(hub, "corrupt", "/resolve/.*/tokenizer.json", method="GET", after=5)
    fault(hub, "status", "/info/lfs/objects/batch", status=429, headers={"Retry-After": "1"}, after=2)
    fault(hub, "cut-upload", "/lfs/objects/", method="PUT", bytes=50_000, times=2, after=1)
    fault(hub, "lost", "/commit/main", method="POST", status=500, after=4)


def test_the_weather_was_bad(night: Night) -> None:
    assert not [rule["kind"] for rule in ask(night.hub, "GET") if not rule["used"]]
    dispatchers, lost, killed = query(
        night.farm, "select count(distinct owner), sum(outcome = 'lost'), sum(coalesce(category, '') = 'killed') from attempts"
    )[0]
    assert dispatchers == 3
    assert lost, "no job ran when a dispatcher was killed"
    assert killed, "no job was killed"


@pytest.mark.parametrize("repo_id", poison.GOOD)
def test_every_good_model_is_pressed_measured_gated_and_published(night: Night, repo_id: str) -> None:
    rows = query(
        night.farm,
        "select r.repo_id, r.verified_at is not null, a.digest = r.artifact_digest,"
        " (select min(v.passed) from verdicts v where v.variant_id = a.variant_id),"
        " (select count(*) from measurements s where s.variant_id = a.variant_id and s.metric = 'kl_divergence'),"
        " (select count(*) from measurements s where s.model_id = m.id and s.variant_id is null and s.metric = 'perplexity')"
        " from models m join variants on variants.model_id = m.id join artifacts a on a.variant_id = variants.id"
        f" join releases r on r.variant_id = a.variant_id where m.repo_id = '{repo_id}'",
    )
    assert len(rows) == 1
    release, *facts = rows[0]
    assert facts[:3] == [1, 1, 1]
    assert min(facts[3:]) >= 1  # type: ignore[type-var]
    commits = HfApi(endpoint=night.hub.endpoint, token=False).list_repo_commits(str(release))
    assert len([commit for commit in commits if "initial" not in commit.title.lower()]) == 1


@pytest.mark.parametrize("name", poison.POISON)
def test_every_bad_model_is_explained(night: Night, name: str) -> None:
    expected = poison.POISON[name].expected
    repo_id = f"poison/{name}"
    refused = query(night.farm, f"select code, reason from refusals where repo_id = '{repo_id}'")
    failed = query(
        night.farm,
        f"select category, reason from jobs join models m on m.id = jobs.model_id where m.repo_id = '{repo_id}' and state = 'failed'",
    )
    kept_back = query(
        night.farm,
        "select checks.name, detail from checks join verdicts v on v.id = verdict_id join variants on variants.id = variant_id"
        f" join models m on m.id = variants.model_id where m.repo_id = '{repo_id}' and not checks.passed",
    )
    explained = refused + failed + kept_back
    assert expected in {why for why, _ in explained}, explained
    for _, reason in explained:
        assert len(str(reason)) > 20
        assert "Traceback" not in str(reason)
        assert "\n" not in str(reason)
        assert not re.search(r"(?<!\w)/(tmp|home|root|work)/", str(reason))
    assert query(night.farm, f"select count(*) from releases where repo_id like '%/{name}-%'") == [(0,)]


def test_nothing_is_left_undone_or_done_twice(night: Night) -> None:
    blocked = query(
        night.farm,
        "select id from jobs where state not in ('done', 'failed') and id not in (select job_id from job_needs"
        " join jobs other on other.id = needs where other.state in ('failed', 'planned'))",
    )
    assert blocked == []
    assert query(night.farm, "select job_id from attempts where outcome = 'done' group by job_id having count(*) > 1") == []
    assert query(night.farm, "select count(*) from jobs where owner is not null") == [(0,)]
    assert not leftovers(night.farm)


def test_nothing_escaped(night: Night) -> None:
    assert not list(night.farm.path.parent.rglob("escaped.json"))
    assert not list(Path(night.farm.path.parent).rglob(poison.RAN))
