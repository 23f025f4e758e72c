from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.budget import DAY, GIB, HOUR, Budget, folder_bytes, hub_refusal
from hub.domain import Job, ModelRef
from hub.history import HubWrite
from hub.scheduling import Attempt, Expectation, Outcome, Plan, Prediction
from hub.settings import BudgetSettings

EPSILON = 1e-6


class Clock:
    """A monotonic clock and a wall clock that are set by hand; the second one may jump."""

    def __init__(self) -> None:
        self.monotonic, self.wall = 1000.0, 1.7e9

    def pass_(self, seconds: float) -> None:
        self.monotonic += seconds
        self.wall += seconds

    def budget(self, **limits: object) -> Budget:
        options = {key: limits.pop(key) for key in ("past", "gpus", "disk") if key in limits}
        settings = BudgetSettings(**limits)  # type: ignore[arg-type]
        return Budget(settings, clock=lambda: self.monotonic, now=lambda: self.wall, **options)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def job(name: str = "a") -> Job:
    return Job(kind="inspect", base=ModelRef(repo_id=f"people/{name}", sha="a" * 40))


def expected(seconds: float, *, factor: float = 1.0, disk: int = 0) -> Expectation:
    exact = Prediction(value=seconds, factor=factor, samples=9)
    return Expectation(
        value=1, popularity=1, gain=1, seconds=exact, memory_bytes=exact, disk_bytes=disk, cost=0, shape_seconds=1, shape_memory_bytes=1
    )


def attempt(clock: Clock, *, ago: float, seconds: float, outcome: Outcome = "done", gpus: float = 0, cost: float = 0) -> Attempt:
    """An attempt that ended so many seconds ago."""
    began = clock.wall - ago - seconds
    return Attempt(job=job(), number=1, owner="", began=began, seconds=seconds, outcome=outcome, gpus=gpus, cost=cost)


LIMITS = {"job_hours": 1.0, "gpu_hours": 2.0, "money": 4.0}


@given(
    st.fixed_dictionaries({}, optional={name: st.floats(0.01, most) for name, most in LIMITS.items()} | {"jobs": st.integers(1, 9)}),
    st.integers(1, 4),
    st.lists(st.tuples(st.none() | st.floats(1, 9000), st.floats(1, 5), st.floats(0, 1)), max_size=30),
)
def test_no_limit_is_ever_exceeded_whatever_jobs_take(
    limits: dict[str, float], slots: int, jobs: list[tuple[float | None, float, float]]
) -> None:
    """Jobs run side by side, each for any share of the time it is given, right predictions or wrong ones."""
    clock = Clock()
    budget = clock.budget(**limits, price_per_hour=3.0, gpus=2.0)
    running: list[tuple[float, float, Expectation | None]] = []
    hours = money = 0.0
    started = 0

    def end_first() -> None:
        nonlocal hours, money
        running.sort(key=lambda one: one[0])
        end, seconds, _ = running.pop(0)
        clock.pass_(max(0.0, end - clock.monotonic))
        budget.add(seconds)
        hours += seconds / HOUR
        money += budget.spent(seconds).cost

    for seconds, factor, share in jobs:
        while len(running) >= slots:
            end_first()
        expectation = None if seconds is None else expected(seconds, factor=factor)
        allowance = budget.allow(expectation, running=[one[2] for one in running])
        if allowance.allowed:
            started += 1
            takes = share * (allowance.timeout_s if allowance.timeout_s is not None else 9000)
            running.append((clock.monotonic + takes, takes, expectation))
        else:
            assert allowance.reason
    while running:
        end_first()
    assert hours <= limits.get("job_hours", math.inf) + EPSILON
    assert 2 * hours <= limits.get("gpu_hours", math.inf) + EPSILON
    assert money <= limits.get("money", math.inf) + EPSILON
    assert started <= limits.get("jobs", math.inf)


def test_without_limits_everything_starts_and_takes_its_time(clock: Clock) -> None:
    budget = clock.budget(past=[attempt(clock, ago=1, seconds=1e9)])
    assert budget.allow(expected(1e9), running=[expected(1e9), None]).timeout_s is None


@pytest.mark.parametrize("outcome", ["done", "failed", "interrupted", "lost"])
def test_what_was_spent_counts_whatever_came_of_it(clock: Clock, outcome: Outcome) -> None:
    cost = 0.0 if outcome in ("interrupted", "lost") else 2.0
    past = [attempt(clock, ago=HOUR, seconds=HOUR, outcome=outcome, cost=cost)]
    budget = clock.budget(money=3.0, price_per_hour=2.0, past=past)
    assert not budget.allow(expected(0.6 * HOUR)).allowed
    allowance = budget.allow(expected(0.4 * HOUR, factor=9))
    assert allowance.allowed
    assert allowance.timeout_s == pytest.approx(0.5 * HOUR)


def test_what_was_spent_before_the_period_counts_no_more(clock: Clock) -> None:
    past = [attempt(clock, ago=20 * HOUR, seconds=HOUR)]
    budget = clock.budget(jobs=1, past=past)
    assert "of 1 jobs in 24 h 1 were tried" in budget.allow(None).reason
    clock.pass_(4 * HOUR + 1)
    assert budget.allow(None).allowed
    assert clock.wall - budget.since >= DAY


@pytest.mark.parametrize("days", [-3, 3, 400])
def test_a_clock_that_jumps_frees_nothing(clock: Clock, days: float) -> None:
    past = [attempt(clock, ago=60, seconds=1)]
    budget = clock.budget(jobs=2, past=past)
    clock.wall += days * DAY
    assert budget.since <= past[0].began
    past.append(attempt(clock, ago=0, seconds=1))
    budget.recount(past)
    assert not budget.allow(None).allowed
    clock.pass_(DAY + 1)
    budget.recount(past)
    assert budget.allow(None).allowed


def test_what_a_wrong_clock_dated_far_ahead_blocks_nothing(clock: Clock) -> None:
    assert clock.budget(jobs=1, past=[attempt(clock, ago=-400 * DAY, seconds=1)]).allow(None).allowed


def test_a_job_over_the_whole_budget_is_refused_in_a_sentence(clock: Clock) -> None:
    reason = clock.budget(job_hours=1).allow(expected(3 * HOUR)).reason
    whole = "more than all of 1 h of jobs in 24 h, which allow 60 min"
    assert reason == f"it takes about 3.0 h, {whole}: it never starts under this budget"


def test_a_job_far_over_its_prediction_is_ended_before_it_eats_what_others_were_promised(clock: Clock) -> None:
    budget = clock.budget(job_hours=1)
    first = expected(600, factor=1.2)
    allowance = budget.allow(first)
    assert allowance.timeout_s == pytest.approx(600 * 1.2**3)
    second = budget.allow(expected(600, factor=10), running=[first])
    assert second.timeout_s == pytest.approx(HOUR - 600 * 1.2**3)


def test_nothing_starts_that_would_not_end_within_this_run(clock: Clock) -> None:
    budget = clock.budget(wall_hours=1)
    clock.pass_(0.5 * HOUR)
    assert budget.allow(expected(0.4 * HOUR, factor=9)).timeout_s == pytest.approx(0.5 * HOUR)
    assert "of the 1 h of this run" in budget.allow(expected(0.6 * HOUR)).reason
    clock.pass_(HOUR)
    assert not budget.allow(None).allowed


def test_the_disk_is_measured_anew_when_a_job_has_ended(clock: Clock) -> None:
    held = [0.5 * GIB]
    looks: list[float] = []

    def measure() -> float:
        looks.append(held[0])
        return held[0]

    budget = clock.budget(disk_gib=1, disk=measure)
    small = expected(1, disk=int(0.3 * GIB))
    assert budget.allow(small).allowed
    assert not budget.allow(small, running=[small]).allowed
    assert len(looks) == 1
    held[0] = 0.8 * GIB
    budget.add(1)
    assert "the work folder holds 0.8 GiB of its 1 GiB" in budget.allow(small).reason


def test_a_budget_foresees_what_it_will_let_through(clock: Clock) -> None:
    names = "abcd"
    plan = Plan(
        jobs=tuple(job(name) for name in names),
        refusals=(),
        done=0,
        needs={job("d").id: frozenset({job("b").id})},
        expected={job(name).id: expected(seconds) for name, seconds in zip(names, (1800, 2400, 1200, 1), strict=True)},
    )
    budget = clock.budget(job_hours=1)
    held = budget.foresee(plan)
    assert set(held) == {job("b").id, job("d").id}
    assert held[job("d").id] == "it needs a job that is held back"
    assert budget.foresee(plan) == held, "looking ahead spends nothing"
    assert budget.allow(plan.expected[job("b").id]).allowed


def test_what_others_spent_is_counted_when_the_database_is_read_again(clock: Clock) -> None:
    budget = clock.budget(jobs=2)
    budget.add(1)
    both = [attempt(clock, ago=0, seconds=1), attempt(clock, ago=0, seconds=1)]
    assert budget.allow(None).allowed
    budget.recount(both)
    assert not budget.allow(None).allowed


def test_the_hubs_limits_are_counted_by_kind(clock: Clock) -> None:
    settings = BudgetSettings(repos_per_day=2, commits_per_day=3, storage_gib=1)
    repo, commit = (HubWrite(at=clock.wall, action=action, repo_id="a/b", bytes=1) for action in ("repo", "commit"))

    def ask(*writes: HubWrite, stored: float = 0.0) -> str:
        return hub_refusal(settings, writes, stored_bytes=stored, wanted_bytes=0.5 * GIB)

    assert ask(repo, commit, commit) == ""
    assert ask(repo, repo, commit).startswith("2 repositories were made")
    assert ask(repo, commit, commit, commit).startswith("3 commits were sent")
    assert "0.75 of 1 GiB" in ask(stored=0.75 * GIB)


def test_a_folder_is_measured_without_links_and_once_for_each_file(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"x" * 2**20)
    (folder / "deep" / "one").write_bytes(b"x" * 2**18)
    os.link(folder / "deep" / "one", folder / "again")
    (folder / "link").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(folder)
    assert folder_bytes(folder) == (folder / "deep" / "one").stat().st_blocks * 512
    assert folder_bytes(tmp_path / "nowhere") == 0
