import math
import runpy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub.popularity import Score, Sighting, score

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
OLD = (NOW - timedelta(days=400)).isoformat(timespec="seconds")
BACKTEST = Path(__file__).parents[1] / "benchmarks" / "popularity.py"
LISTINGS = Path(__file__).parents[2] / "../shared/data/hub-snapshots/llmfit-snapshots"


def _seen(downloads: int = 0, *, ago: float = 0, likes: int = 0, trending: float = 0.0) -> Sighting:
    return Sighting(at=NOW - timedelta(days=ago), downloads=downloads, likes=likes, trending_score=trending)


def _now(*, days: float | None = 400, **counts: Any) -> float:
    made = "" if days is None else (NOW - timedelta(days=days)).isoformat(timespec="seconds")
    return score(_seen(**counts), created_at=made).value


def _over(*counts: int, every: float = 3, **more: Any) -> Score:
    """Score a model whose downloads were these, the last of them now, `every` so many days."""
    last = len(counts) - 1
    sightings = [_seen(count, ago=(last - number) * every, **more) for number, count in enumerate(counts)]
    return score(sightings[-1], sightings[:-1], created_at=OLD)


counts = st.integers(0, 10**9)


@settings(deadline=None)
@given(counts, counts, st.floats(0, 1e6), st.floats(-10, 10_000), counts)
def test_more_of_anything_never_lowers_the_score(downloads: int, likes: int, trend: float, days: float, more: int) -> None:
    base = {"downloads": downloads, "likes": likes, "trending": trend}
    for name in base:
        assert _now(days=days, **{**base, name: base[name] + more}) >= _now(days=days, **base) >= 0


def test_the_stated_level() -> None:
    assert _now() == 0
    assert _now(downloads=999) == pytest.approx(3)
    assert _now(downloads=999, likes=99) == pytest.approx(4)
    assert _now(downloads=999, likes=99, trending=99.0) == pytest.approx(4.5)
    assert _now(downloads=333, days=10) == pytest.approx(3)  # 333 in 10 days are 999 in 30
    assert _now(downloads=999, days=None) == pytest.approx(3)  # of unknown age: taken as old
    assert _now(downloads=9, days=0) == _now(downloads=9, days=3)  # an hour is no pace
    assert _now(downloads=9, days=-5) == _now(downloads=9, days=3)  # a clock that is ahead
    assert _now(trending=-3.0) == 0
    assert score(_seen(9), created_at="nonsense").value == pytest.approx(1)


def test_the_stated_rise() -> None:
    doubled = _over(999, 1999, every=7)
    assert doubled.level == pytest.approx(math.log10(2000))
    assert doubled.rise == pytest.approx(math.log10(2) / 2)  # doubled in a week: half of that, as a week is not yet long
    assert doubled.value == pytest.approx(doubled.level + doubled.rise)
    assert doubled.trend == "rising"
    longer = _over(999, 1999, 3999, every=7)
    assert longer.rise == pytest.approx(math.log10(2) * 14 / 21, rel=1e-3)
    falling = _over(3999, 1999, 999, every=7)
    assert falling.rise == pytest.approx(-longer.rise, rel=1e-3)
    assert falling.trend == "falling"
    liked = score(_seen(1000, likes=199), [_seen(1000, likes=99, ago=7)], created_at=OLD)
    assert liked.rise == pytest.approx(0.5 * math.log10(2) / 2)


def test_without_history_the_score_is_the_level() -> None:
    alone = score(_seen(5000, likes=7, trending=2.0), created_at=OLD)
    assert (alone.rise, alone.trend) == (0.0, "level")
    for past in ([_seen(1, ago=31)], [_seen(1, ago=-1)], [_seen(1, ago=0)], [_seen(0, ago=5)]):
        assert score(_seen(5000, likes=7, trending=2.0), past, created_at=OLD).value == alone.value


def test_a_young_model_does_not_rise_by_its_window_filling_up() -> None:
    made = (NOW - timedelta(days=12)).isoformat()
    steady = [_seen(100 * (12 - ago), ago=ago) for ago in range(9)]  # 100 downloads a day since it was made
    found = score(steady[0], steady[1:], created_at=made)
    assert found.rise == pytest.approx(0, abs=1e-3)
    assert found.downloads == pytest.approx(math.log10(3001), abs=1e-3)


def test_standing_counts_of_a_young_model_are_no_pace() -> None:
    made = (NOW - timedelta(days=28)).isoformat()
    alone = score(_seen(900, likes=5), created_at=made)
    burst = [_seen(100, ago=27, likes=5), _seen(900, ago=25, likes=5)]
    for past in (burst[1:], burst, [*burst, *(_seen(900, ago=ago, likes=5) for ago in range(1, 25))]):
        found = score(_seen(900, likes=5), past, created_at=made)
        assert found.downloads == pytest.approx(alone.downloads, abs=0.02)
        assert found.rise <= 0
    fresh = score(_seen(900, ago=22, likes=5), burst[1:], created_at=made)  # for some days the very same counts are an old listing's
    assert fresh.downloads == score(burst[1], created_at=made).downloads
    unknown = score(_seen(0, likes=5), burst[1:], created_at=made)  # a count that fell to nothing: the last known, at the age of today
    assert unknown.downloads == alone.downloads
    grown_up = score(_seen(900, likes=5), [_seen(900, ago=12, likes=5)], created_at=(NOW - timedelta(days=40)).isoformat())
    assert grown_up.downloads == pytest.approx(math.log10(901))  # 28 days old when the counts were first seen, 40 now


def test_what_two_snapshots_within_hours_gained_is_added_once() -> None:
    assert _over(999, 1999, every=1 / 24).rise == pytest.approx(math.log10(2), rel=0.01)


def test_one_wrong_number_moves_little() -> None:
    steady = [1000, 1003, 1001, 1004, 1002, 1005, 1003, 1006]
    assert _over(*steady).trend == "level"
    for position in range(len(steady) - 1):
        for wrong in (0, 1, 50_000, 10**9):
            found = _over(*steady[:position], wrong, *steady[position + 1 :])
            assert found.trend == "level", (position, wrong, found)


def test_a_reset_to_nothing_is_unknown_not_a_fall() -> None:
    before = _over(1000, 1100, 1200)
    after = _over(1000, 1100, 1200, 0)
    assert after.downloads == before.downloads
    assert after.rise > 0
    gone = score(_seen(0, likes=0), [_seen(1000, likes=9, ago=31)], created_at=OLD)
    assert gone.value == 0


def test_a_listing_shown_again_does_not_flatten_a_rise() -> None:
    whole = _over(1000, 2000, 4000, every=4)
    again = score(
        _seen(4000), [_seen(1000, ago=12), _seen(2000, ago=8), _seen(4000, ago=4), _seen(4000, ago=2), _seen(2000, ago=7)], created_at=OLD
    )
    assert again.rise == pytest.approx(whole.rise, rel=0.4)
    assert again.trend == "rising"


def test_gaps_and_order_do_not_matter() -> None:
    path = [(28, 1000), (21, 1300), (19, 1400), (6, 2200), (5, 2300)]
    past = [_seen(count, ago=ago) for ago, count in path]
    assert score(_seen(2700), past, created_at=OLD) == score(_seen(2700), past[::-1], created_at=OLD)
    thinned = score(_seen(2700), past[::2], created_at=OLD)
    assert thinned.rise == pytest.approx(score(_seen(2700), past, created_at=OLD).rise, rel=0.15)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-50, 50), counts, counts, st.floats(-1e9, 1e9)), max_size=12),
    st.one_of(st.text(max_size=12), st.just("9999-12-31"), st.just("0001-01-01T00:00:00+00:00")),
)
def test_any_history_gives_a_finite_score_within_its_bounds(past: list[tuple[float, int, int, float]], made: str) -> None:
    seen = [_seen(downloads, ago=ago, likes=likes, trending=trending) for ago, downloads, likes, trending in past]
    found = score(_seen(10, likes=1), seen, created_at=made)
    assert math.isfinite(found.value)
    assert found.value >= 0
    assert abs(found.rise) <= 0.7


def test_a_month_of_looking_every_ten_minutes_is_ranked_at_once() -> None:
    past = [_seen(10_000 + number, ago=30 - number / 144) for number in range(4320)]
    found = score(_seen(15_000), past, created_at=OLD)
    spaced = score(_seen(15_000), past[::144], created_at=OLD)
    assert found.rise == pytest.approx(spaced.rise, rel=0.1)


@pytest.fixture(scope="module")
def backtest() -> SimpleNamespace:
    """The benchmark, whose numbers docs/popularity.md states."""
    return SimpleNamespace(**runpy.run_path(str(BACKTEST), run_name="backtest"))


@pytest.fixture(scope="module")
def real_days(backtest: SimpleNamespace) -> Any:
    if not LISTINGS.exists():
        pytest.skip("needs ../shared/data/hub-snapshots")
    return backtest.load(LISTINGS)


@pytest.mark.shared
def test_on_real_listings_velocity_foretells_downloads_better_than_level_alone(backtest: SimpleNamespace, real_days: Any) -> None:
    found = backtest.correlations(real_days)
    for part in ("tuning", "held out"):
        pairs = [one for one in found if one.part == part]
        assert len(pairs) >= 5
        ours, level = (sum(getattr(one, name) for one in pairs) / len(pairs) for name in ("ours", "level"))
        assert ours > level, (part, ours, level)
        assert level > 0.7


@pytest.mark.shared
def test_on_real_listings_risers_enter_the_top_earlier(backtest: SimpleNamespace, real_days: Any) -> None:
    for entry in backtest.entries(real_days, tops=(50, 100)):
        assert entry.reached >= 10
        assert entry.earlier > entry.later
        assert entry.false_alarms < entry.reached
