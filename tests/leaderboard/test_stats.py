from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaderboard import pictures, queries, rows, stats, text
from leaderboard.stats import Estimate


def near(value: float, half: float, *, higher: bool = False) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half, higher_is_better=higher)


def test_ties_are_groups_and_share_a_rank() -> None:
    rows = [near(5.0, 0.2), near(3.0, 0.1), near(3.15, 0.1), near(9.0, 0.5)]
    assert stats.tie_groups(rows) == [[1, 2], [0], [3]]
    assert stats.ranks(rows) == [3, 1, 1, 4]


def test_a_chain_of_overlaps_is_one_group() -> None:
    assert stats.tie_groups([near(1.0, 0.3), near(1.5, 0.3), near(2.0, 0.3)]) == [[0, 1, 2]]


def test_higher_is_better_turns_the_order() -> None:
    assert stats.tie_groups([near(10, 1, higher=True), near(20, 1, higher=True)]) == [[1], [0]]
    assert stats.tie_groups([]) == []


def test_exact_numbers_tie_only_when_equal() -> None:
    assert stats.tie_groups([near(5, 0), near(4, 0), near(5, 0)]) == [[1], [0, 2]]


ESTIMATES = st.lists(
    st.builds(near, st.floats(-100, 100), st.floats(0, 20)),
    min_size=1,
    max_size=12,
)


@given(ESTIMATES)
def test_rows_that_cannot_be_told_apart_are_never_ordered(rows: list[Estimate]) -> None:
    ranks = stats.ranks(rows)
    for first, one in enumerate(rows):
        for second, other in enumerate(rows):
            if not stats.distinguishable(one, other):
                assert ranks[first] == ranks[second]
            if ranks[first] < ranks[second]:
                assert stats.surely_better(one, other)


@given(ESTIMATES, st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order_of_rows(rows: list[Estimate], random: object) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    ranks = stats.ranks(rows)
    assert stats.ranks([rows[index] for index in order]) == [ranks[index] for index in order]


def test_the_pareto_front_keeps_what_is_not_surely_beaten() -> None:
    small_bad, big_good = (near(1, 0), near(5.0, 0.1)), (near(3, 0), near(2.0, 0.1))
    beaten, unsure = (near(3, 0), near(5.0, 0.1)), (near(3, 0), near(1.95, 0.1))
    assert stats.pareto_front([small_bad, big_good, beaten, unsure]) == [0, 1, 3]


def test_a_ratio_carries_both_uncertainties(make: SimpleNamespace) -> None:
    found = stats.ratio(make.measured("decode_tokens_per_second", 50.0, 3.0), make.measured("decode_tokens_per_second", 100.0, 4.0))
    assert found is not None
    assert found.value == 0.5
    assert found.high / found.value == pytest.approx(1 + math.hypot(0.06, 0.04), rel=0.01)
    assert stats.ratio(make.measured("kl_divergence", 0.01, 0.02), make.measured("kl_divergence", 1.0)) is None


def test_quality_is_compared_only_under_a_shared_protocol(make: SimpleNamespace) -> None:
    record, base = make.variant(), make.base()
    assert stats.compare(record, base).protocol == make.protocol
    foreign = replace(base, measurements=tuple(replace(m, protocol="other") for m in base.measurements))
    beside = stats.compare(record, foreign)
    assert (beside.protocol, beside.perplexity_ratio, beside.kl_divergence) == (None, None, None)


def test_memory_is_compared_only_on_the_same_hardware_and_speed_only_as_measured_in_turns(make: SimpleNamespace) -> None:
    record = make.variant()
    beside = stats.compare(record, replace(make.base(), environment=replace(make.machine, hardware="Another CPU")))
    assert (beside.memory, beside.load) == (None, None)
    assert beside.size is not None
    assert beside.decode == stats.Estimate.of(next(m for m in record.measurements if m.metric == "decode_speedup"))
    apart = replace(record, measurements=tuple(m for m in record.measurements if "speedup" not in m.metric))
    assert (stats.compare(apart, make.base()).decode, stats.compare(apart, make.base()).prefill) == (None, None)


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (near(5.1234, 0.0456), "5.12 ± 0.05"),
        (near(5.1234, 0.0156), "5.123 ± 0.016"),
        (near(2712345, 0), "2,712,345"),
        (near(210.4, 6.0), "210 ± 6"),
        (Estimate(value=1.0, low=0.99, high=1.1), "1.000 (0.990 to 1.100)"),
        (near(0, 0), "0"),
        (near(0.0000123, 0.0000021), "0.0000123 ± 0.0000021"),
        (near(1234.0, 250.0), "1,234 ± 250"),
    ],
)
def test_numbers_show_the_digits_that_their_uncertainty_allows(estimate: Estimate, shown: str) -> None:
    assert text.uncertain(estimate) == shown


def test_a_ratio_as_a_change() -> None:
    assert text.percent_change(near(1.034, 0.005)) == "+3.4 ± 0.5 %"
    assert text.percent_change(near(0.98, 0.004)) == "-2.0 ± 0.4 %"
    assert text.percent_change(near(0.99999, 0.0005)) == "+0.00 ± 0.05 %", "zero has no minus"


@pytest.mark.parametrize(
    ("cell", "written"), [("=1+1", "'=1+1"), ("-x", "'-x"), (" @a", "'@a"), ("ok", "ok"), (-3, -3), ("x; +y", "x; '+y")]
)
def test_csv_cells_are_no_formulas(cell: object, written: object) -> None:
    assert text.csv_cell(cell) == written


@pytest.mark.parametrize(
    ("address", "kept"),
    [
        ("https://example.org/a/b?c=1", True),
        ("LICENSE", True),
        ("docs/LICENSE.md", True),
        ("http://127.0.0.1:8757/x", True),
        ("http://example.org", False),
        ("javascript:alert(1)", False),
        ("https://example.org/a b", False),
        ("https://example.org/)<script>", False),
        ("../LICENSE", False),
        ("//example.org", False),
        ("", False),
    ],
)
def test_only_plain_links_are_kept(address: str, kept: bool) -> None:
    assert (text.safe_link(address) is not None) is kept


def test_a_factor_over_two_engines_says_so(make: SimpleNamespace) -> None:
    beside = {
        engine: rows.variant_row(make.variant(engine=engine), make.base(), make.protocol, "x")
        for engine in ("llama-cpp-python 0.3.36 float32", "transformers 5.17.0 float16")
    }
    own, other = beside["transformers 5.17.0 float16"], beside["llama-cpp-python 0.3.36 float32"]
    assert (own.engine, other.engine) == ("", "llama-cpp-python")
    assert own.cells["decode_tokens_per_second"].note == "0.45×, slower"
    assert other.cells["decode_tokens_per_second"].note == "0.45×, slower, other engine"
    assert "engine" not in other.cells["disk_size"].note
    group = queries.Group(protocol=make.protocol, rows=(rows.base_row(make.base(), make.protocol, "x"), own, other), choices=())
    page = cast("queries.BasePage", SimpleNamespace(record=make.base()))
    assert (pictures.speed_chart(page, group).count('class="mark'), pictures.size_chart(page, group).count('class="mark')) == (2, 3)


def test_points_of_a_curve_are_never_headline_numbers(make: SimpleNamespace) -> None:
    headline = make.measured("decode_tokens_per_second", 210.0)
    points = [
        replace(headline, value=value, measured_at=at, conditions={"mode": "eager", "batch": batch})
        for value, batch, at in ((700.0, 64, "2027-01-01"), (300.0, 8, "2027-01-01"), (310.0, 8, "2027-01-02"), (205.0, 1, "2027-01-01"))
    ]
    assert stats.find([*points, headline], headline.metric) == headline
    assert stats.find(points, headline.metric) is None
    assert stats.headlines([*points, headline]) == [headline]
    assert [point.value for point in stats.curve([*points, headline], headline.metric)] == [205.0, 310.0, 700.0]
    assert stats.curve([*points, headline], headline.metric, "another") == []


def test_points_choose_no_protocol_and_no_engine(make: SimpleNamespace) -> None:
    base, variant = make.base(), make.variant()
    wide = [
        replace(number, protocol="another", samples=9999, engine="onnxruntime 1.27", conditions={"percentile": 99.0})
        for number in (*base.measurements, *variant.measurements)
    ]
    mixed = replace(base, measurements=(*base.measurements, *wide)), replace(variant, measurements=(*variant.measurements, *wide))
    assert stats.shared_protocol(mixed[1].measurements, mixed[0].measurements) == make.protocol
    assert stats.compare(mixed[1], mixed[0]) == stats.compare(variant, base)
    assert stats.other_engine(mixed[1].measurements, mixed[0].measurements) is None
