from __future__ import annotations

from dataclasses import replace

import pytest

from hub.domain import Environment, Measurement
from runners import metrics
from runners.reproduction import Change, changes, repeats, tolerance


def number(value: float, half: float = 0.0, metric: str = "perplexity", **conditions: int) -> Measurement:
    return Measurement(
        metric=metric,
        value=value,
        unit="1",
        higher_is_better=False,
        ci_low=value - half,
        ci_high=value + half,
        interval="95 %",
        samples=9,
        protocol="p",
        engine="transformers 5.17.0 bfloat16",
        measured_at="2026-11-20T10:00:00+00:00",
        conditions=conditions,
    )


HERE = Environment(
    hardware="Example CPU 2000",
    device="cpu",
    cores=2,
    memory_bytes=8_000_000_000,
    system="Linux 6.1",
    python="3.11.9",
    libraries={"torch": "2.13.0", "numpy": "2.2.6"},
    threads=2,
)


@pytest.mark.parametrize(
    ("then", "now", "allowed", "agrees", "reason"),
    [
        (number(10.0), number(10.0), 0.0, True, "the same"),
        (number(10.0), number(10.0 + 1e-14), 0.0, True, "the same"),
        (number(10.0), number(10.0001), 0.0, False, "differs: intervals apart, no difference is allowed"),
        (number(10.0), number(10.0001), 1e-4, True, "within 0.0001 of the value"),
        (number(10.0, 1.0), number(10.9), 0.0, True, "within the interval"),
        (number(10.0, 1.0), number(11.5, 1.0), 0.0, True, "intervals overlap"),
        (number(10.0, 1.0), number(12.5, 1.0), 0.3, True, "within 0.3 of the value"),
        (number(-10.0, 1.0), number(-12.5, 1.0), 0.3, True, "within 0.3 of the value"),
        (number(10.0, 1.0), number(12.5, 1.0), 0.2, False, "differs: intervals apart, more than 0.2 of the value"),
        (number(0.0), number(1e-9), 0.5, False, "differs: intervals apart, more than 0.5 of the value"),
        (number(0.0), number(0.0), 0.0, True, "the same"),
    ],
)
def test_the_verdict(then: Measurement, now: Measurement, allowed: float, agrees: bool, reason: str) -> None:
    (found,) = repeats([then], [now], lambda _: allowed)
    assert (found.agrees, found.reason, found.now) == (agrees, reason, now)


def test_the_difference_is_relative() -> None:
    differences = [
        repeats([number(then)], [number(now)])[0].difference for then, now in ((10.0, 11.0), (-10.0, -9.0), (0.0, 0.0), (0.0, 1.0))
    ]
    assert differences == [pytest.approx(0.1), pytest.approx(0.1), 0.0, None]


def test_numbers_are_matched_by_metric_conditions_and_engine_but_not_its_version() -> None:
    then = [number(10.0), number(20.0, batch=8, context=64), number(30.0, batch=64), replace(number(40.0), engine="llama.cpp 0.3 Q4")]
    newer = replace(number(10.0), engine="transformers 6.0.0 bfloat16")
    now = [number(20.0, context=64, batch=8), newer, number(99.0, batch=1)]
    found = repeats(then, now)
    assert [one.now for one in found] == [newer, now[0], None, None]
    assert [one.agrees for one in found] == [True, True, False, False]
    assert found[2].reason == "not measured again"
    assert found[2].difference is None


def test_the_tolerance_is_what_a_metric_states() -> None:
    for name in metrics.names():
        assert tolerance(name) == metrics.load(name).TOLERANCE >= 0
    assert tolerance("deleted") == 0.0
    (found,) = repeats(
        [number(10.0, metric="load_time")], [number(10.0 * (1 + metrics.load("load_time").TOLERANCE * 0.9), metric="load_time")]
    )
    assert found.agrees


def test_what_of_the_environment_changed_is_told() -> None:
    assert changes(HERE, HERE) == ()
    there = replace(HERE, hardware="Other CPU", threads=8, driver="570", libraries={"torch": "2.14.0", "scipy": "1.17.1"})
    assert changes(HERE, there) == (
        Change(name="hardware", then="Example CPU 2000", now="Other CPU"),
        Change(name="driver", then="", now="570"),
        Change(name="threads", then="2", now="8"),
        Change(name="numpy", then="2.2.6", now=""),
        Change(name="scipy", then="", now="1.17.1"),
        Change(name="torch", then="2.13.0", now="2.14.0"),
    )
