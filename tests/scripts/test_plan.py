"""What `modelpress plan` prints of a plan, in wide and narrow terminals, and what a model's shape says a measurement takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hub.domain import Job, ModelRef
from hub.planner import Worth
from hub.planner import plan as make_plan
from hub.predictions import Forecast, History, Takes
from hub.scheduling import Plan
from hub.settings import BudgetSettings
from modelpress import plan
from runners import checkpoint, needs, protocols, recipes

PROTOCOL = protocols.load("stdlib-heldout@512")


def planned(*, models: int = 1, seconds: float = 90) -> Plan:
    bases = [ModelRef(repo_id=f"people/m{number}-[bold]", sha="a" * 40) for number in range(models)]

    def forecast(job: Job) -> Forecast | None:
        takes = Takes(seconds=seconds, memory_bytes=3e9, disk_bytes=2 * 10**9, base_bytes=4 * 10**9, saved=0.75)
        return None if job.base is not bases[0] and len(bases) == 2 else History().forecast(job, takes)

    worth = Worth(popularity=dict.fromkeys(bases, 1000000.0), forecast=forecast, price_per_hour=2)
    chosen = [recipes.load(name) for name in ("bnb-nf4", "wanda-50")]
    return make_plan(bases, chosen, PROTOCOL, (), worth=worth)


@pytest.fixture(params=[100, 160])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    from rich.console import Console

    monkeypatch.setattr(plan, "console", lambda: Console(width=request.param))
    return int(request.param)


def test_a_plan_shows_each_job_with_its_numbers_and_what_is_held_back(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    made = planned()
    held = {made.jobs[-1].id: "the disk is full"}
    plan.show(made, held, BudgetSettings(price_per_hour=2))
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= width
    assert "people/m0-[bold]" in shown
    press = next(line for line in table if "press bnb-nf4" in line)
    for word in ("~90.0 s ×÷4.0", "3.00 GB", "2.00 GB", "0.050"):
        assert word in press
    assert ("1,000,000 downloads in 30 days" in shown) == (width == 160)
    assert "held back by the budget: 1 jobs" in lines
    assert f"  {made.jobs[-1].title}: the disk is full" in lines
    assert "all of them:  5 jobs, 8 min ×÷4.0 one after another, at most 3.00 GB of memory, 10.0 GB on disk, 0.250 USD" in lines


def test_a_long_plan_is_cut_with_a_count_unless_all_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    made = planned(models=9)
    plan.show(made, {}, BudgetSettings())
    cut = capsys.readouterr().out
    assert f"… and {len(made.jobs) - plan.SHOWN} more: --all shows them" in cut
    plan.show(made, {}, BudgetSettings(), whole=True)
    whole = capsys.readouterr().out
    assert "more: --all" not in whole
    assert whole.count("press ") == 18


def test_a_job_of_which_nothing_can_be_told_is_shown_without_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    made = planned(models=2)
    plan.show(made, {}, BudgetSettings())
    assert capsys.readouterr().out.count("?") == 4 * 5
    plan.show(replace(made, expected={}), {}, BudgetSettings())
    assert "all of them:  10 jobs" in capsys.readouterr().out


def test_what_a_measurement_takes_grows_with_what_it_asks(samples: Path) -> None:
    shape = checkpoint.shape(samples / "sample-llama")
    quick, usual, serving = (
        needs.measuring(protocols.load(name), shape) for name in ("stdlib-heldout@512-quick", PROTOCOL.name, "serving")
    )
    paired = needs.measuring(PROTOCOL, shape, beside=shape)
    assert quick.seconds(1) < usual.seconds(1) < serving.seconds(1)
    assert usual.seconds(4) < usual.seconds(1) < paired.seconds(1)
    assert paired.memory_bytes > usual.memory_bytes > shape.bytes
    assert usual.disk_bytes > shape.bytes, "a base is downloaded, and its states are kept"
    assert paired.disk_bytes == 0
    for name in protocols.names():
        assert needs.measuring(protocols.load(name), shape, beside=shape).operations > 0
