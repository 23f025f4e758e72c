"""A sample of a measurement: exactly some of its windows, and what it said of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hub.domain import Environment, Job, Measurement, ModelRef, Scores
from hub.history import MeasuredJob
from hub.protocol import Protocol, Quality, Speed
from runners import metrics, protocols, quality
from runners.observations import Windows
from runners.spot_check import MOST_WINDOWS, spot_check

AT = "2026-01-02T03:04:05+00:00"
FULL = protocols.load("stdlib-heldout@512")
MACHINE = Environment(hardware="a CPU", device="cpu", cores=2, memory_bytes=2**33, system="Linux", python="3.11", libraries={})


def losses(windows: int) -> tuple[float, ...]:
    """A loss for each window, no two alike and none near the mean of all."""
    return tuple(2.0 + (index * 37 % windows) / windows for index in range(windows))


def measured(windows: int, *, protocol: Protocol = FULL, kept: bool = True) -> tuple[MeasuredJob, list[Scores]]:
    means = losses(windows)
    found = metrics.load("perplexity").summarize(Windows(means=means, scored=(511,) * windows, bytes=()))[0]
    number = Measurement(
        metric="perplexity",
        value=found.value,
        unit="1",
        higher_is_better=False,
        ci_low=found.low,
        ci_high=found.high,
        interval=found.interval,
        samples=windows,
        protocol=protocol.name,
        engine="transformers 5",
        measured_at=AT,
    )
    speed = replace(number, metric="decode_tokens_per_second", unit="token/s", value=5.0)
    point = replace(number, conditions={"percentile": 50})
    job = Job(kind="measure", base=ModelRef(repo_id="people/tiny", sha="a" * 40), protocol=protocol)
    done = MeasuredJob(id="j", job=job, started_at=AT, environment=MACHINE, measurements=(speed, point, number))
    values, sizes = {"perplexity": means}, {"tokens": (511,) * windows}
    scores = Scores(source="windows", fingerprint="f", tokenizer_sha256="t", values=values, sizes=sizes)
    return done, [scores] if kept else []


@pytest.mark.parametrize(("windows", "count"), [(96, 16), (64, 16), (90, 15), (22, 11)])
def test_a_sample_is_some_of_the_very_windows(windows: int, count: int) -> None:
    spot = spot_check(*measured(windows))
    assert spot is not None
    assert spot.protocol.quality == Quality(sequence_length=512, windows=count)
    assert (spot.protocol.speed, spot.protocol.memory, spot.protocol.tasks) == (None, None, None)
    assert spot.protocol.name == f"{FULL.name}[{count} of {windows} windows]"
    for total in (512 * windows, 512 * windows * 7 + 300):
        before = quality.starts(total, Quality(sequence_length=512, windows=windows))
        assert quality.starts(total, spot.protocol.quality) == before[:: windows // count]
    (number,) = spot.expected
    means = losses(windows)[:: windows // count]
    found = metrics.load("perplexity").summarize(Windows(means=means, scored=(511,) * count, bytes=()))[0]
    assert (number.value, number.ci_low, number.ci_high, number.samples) == (found.value, found.low, found.high, count)
    assert number.metric == "perplexity"


@pytest.mark.parametrize(("windows", "kept"), [(8, True), (97, True), (96, False), (MOST_WINDOWS, True)])
def test_what_cannot_be_sampled_is_measured_whole(windows: int, kept: bool) -> None:
    done, scores = measured(windows, kept=kept)
    spot = spot_check(done, scores)
    assert spot is not None
    assert spot.protocol == replace(FULL, speed=None, memory=None)
    assert spot.expected == (done.measurements[-1],)


def test_without_a_text_there_is_nothing_to_sample() -> None:
    assert FULL.speed is not None
    timed = Protocol(name="timed", speed=Speed(**vars(FULL.speed)))
    assert spot_check(*measured(96, protocol=timed)) is None
    done, scores = measured(96)
    assert spot_check(replace(done, measurements=done.measurements[:1]), scores) is None
