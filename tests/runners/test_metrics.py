"""Every metric keeps the contract, and the intervals are those of the tables."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hub.errors import Unavailable, UnknownName
from hub.sampling import student_t
from runners import engines, metrics, plugins, protocols
from runners.intervals import centre, exact, exp_mean, inverse, mean
from runners.observations import MemoryPoint, Observed, Run, SpeedPoint, TaskResult, Windows

FIXED = {
    "perplexity": ("1", False, False),
    "perplexity_ratio": ("1", False, True),
    "kl_divergence": ("nat/token", False, True),
    "same_top_token": ("1", True, True),
    "delta_perplexity": ("1", False, True),
    "delta_probability": ("1", True, True),
    "rms_delta_probability": ("1", False, True),
    "bits_per_byte": ("bit/byte", False, False),
    "prefill_tokens_per_second": ("token/s", True, False),
    "decode_tokens_per_second": ("token/s", True, False),
    "prefill_speedup": ("1", True, True),
    "decode_speedup": ("1", True, True),
    "time_to_first_token": ("s", False, False),
    "time_per_output_token": ("s", False, False),
    "load_time": ("s", False, False),
    "peak_memory": ("B", False, False),
    "disk_size": ("B", False, False),
    "entropy_coded_size": ("B", False, False),
    "bits_per_weight": ("bit", False, False),
    "accuracy": ("1", True, False),
    "activation_memory": ("B", False, False),
    "byte_perplexity": ("1", False, False),
    "device_memory": ("B", False, False),
    "energy_per_1k_tokens": ("J", False, False),
    "kv_cache_memory": ("B", False, False),
    "normalized_accuracy": ("1", True, False),
    "process_memory": ("B", False, False),
    "reserved_memory": ("B", False, False),
    "target_perplexity": ("1", False, False),
    "weight_memory": ("B", False, False),
    "word_perplexity": ("1", False, False),
}
SEVEN = mean((6.0, 7.0, 8.0))
OBSERVED = Observed(
    speed=(
        SpeedPoint(
            mode="eager",
            batch=1,
            context=100,
            headline=True,
            runs=tuple(Run(prefill_seconds=first, token_seconds=(0.25, 0.5), joules=2.0) for first in (0.5, 0.4, 0.6, 0.5, 0.5, 0.7)),
            base_runs=tuple(Run(prefill_seconds=first, token_seconds=(0.5, 1.0), joules=3.0) for first in (0.6, 0.5, 0.6, 0.6, 0.5, 0.7)),
        ),
    ),
    load_seconds=(0.3, 0.1, 0.2),
    peak_bytes=(10.0, 30.0, 20.0),
    disk_bytes=1234,
    tensor_bytes=450,
    coded_bytes=400,
    parameters=800,
    weight_bytes=exact(450),
    memory=(MemoryPoint(context=128, kv_cache=SEVEN, activations=SEVEN, peak=SEVEN, reserved=SEVEN, process=SEVEN, device=SEVEN),),
    tasks=(
        TaskResult(
            task="piqa",
            version="1",
            estimates={name: mean((0.5, 1.0, 0.75)) for name in ("acc", "acc_norm", "perplexity", "word_perplexity", "byte_perplexity")},
        ),
    ),
)


def windows(columns: int = 1) -> Windows:
    """Six windows of 200 tokens, the values of which lie between 0 and 1; `columns` of them where a metric compares two."""
    import numpy as np

    tokens = tuple(np.random.default_rng(0).beta(2, 5, (6, 200)))
    means = [float(values.mean()) for values in tokens]
    return Windows(
        means=tuple(means) if columns == 1 else tuple(zip(means, reversed(means), strict=True)),
        scored=(200,) * 6,
        bytes=(400, 500, 600, 500, 500, 500),
        tokens=tokens,
    )


def test_the_metrics_are_those_of_the_contract() -> None:
    found = {info.name: (info.unit, info.higher_is_better, info.paired) for info in metrics.available()}
    assert found == FIXED


@pytest.mark.parametrize("name", metrics.names())
def test_a_metric_says_what_it_is_and_gives_a_value_inside_its_interval(name: str) -> None:
    module = metrics.load(name)
    info = next(info for info in metrics.available() if info.name == name)
    assert info.available
    assert info.title
    assert len(info.summary) > 20
    scored = hasattr(module, "per_token")
    assert scored == hasattr(module, "summarize")
    assert scored != hasattr(module, "estimates")
    assert 0 <= module.TOLERANCE < 1
    found = module.summarize(windows(2 if name == "delta_perplexity" else 1)) if scored else module.estimates(OBSERVED)
    assert found
    assert scored or module.estimates(Observed()) == [], "nothing was observed, so there is nothing to say"
    for estimate in found:
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.interval
        assert estimate.samples >= 1


def test_window_metrics_by_hand() -> None:
    seen = windows()
    middle = sum(seen.means) / 6
    for name, value in {
        "perplexity": math.exp(middle),
        "perplexity_ratio": math.exp(middle),
        "kl_divergence": middle,
        "same_top_token": middle,
        "delta_probability": middle,
        "rms_delta_probability": math.sqrt(middle),
        "bits_per_byte": 200 * 6 * middle / 3000,
    }.items():
        assert metrics.load(name).summarize(seen)[0].value == pytest.approx(value), name
    assert metrics.load("delta_perplexity").summarize(windows(2))[0].value == pytest.approx(0)
    assert metrics.load("bits_per_byte").summarize(replace(seen, bytes=())) == [], "a tokenizer that tells no bytes"


@pytest.mark.parametrize(("name", "percents"), [("kl_divergence", [50, 90, 95, 99]), ("delta_probability", [1, 5, 25, 50, 75, 95, 99])])
def test_percentiles_of_single_tokens_follow_the_headline(name: str, percents: list[int]) -> None:
    """Of 1200 tokens one is beyond 99.9 %: too few for an interval."""
    headline, *others = metrics.load(name).summarize(windows())
    assert not headline.conditions
    assert [one.conditions for one in others] == [{"percentile": percent} for percent in percents]
    assert [one.value for one in others] == sorted(one.value for one in others)
    assert all(one.low < one.high for one in others)


def test_bits_per_weight_count_what_is_stored() -> None:
    assert metrics.load("bits_per_weight").estimates(OBSERVED)[0].value == pytest.approx(4.5)
    assert metrics.load("bits_per_weight").estimates(replace(OBSERVED, tensor_bytes=1600))[0].value == pytest.approx(16)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (7, 2.364624), (39, 2.022691), (200, 1.971896)]
)
def test_students_t_agrees_with_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=1e-5)


def test_intervals_of_means() -> None:
    estimate = mean((1.0, 2.0, 3.0, 4.0))
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half), abs=1e-5)
    assert mean((0.0, 1.0), low=0.0, high=1.0).low == 0.0
    logs = exp_mean((1.0, 2.0, 3.0, 4.0))
    assert (logs.value, logs.low) == pytest.approx((math.exp(2.5), math.exp(2.5 - half)), rel=1e-5)
    with pytest.raises(ValueError, match="at least 2"):
        mean((1.0,))


@pytest.mark.parametrize(
    ("count", "low", "high", "coverage"), [(6, 1, 6, "96.9 %"), (9, 2, 8, "96.1 %"), (20, 6, 15, "95.9 %"), (3, 1, 3, "75.0 %")]
)
def test_intervals_of_medians_say_what_they_cover(count: int, low: int, high: int, coverage: str) -> None:
    estimate = centre([float(n) for n in range(count, 0, -1)])
    assert (estimate.low, estimate.high) == (low, high)
    assert estimate.interval.startswith(coverage)


def test_one_run_claims_no_interval_and_a_count_is_exact() -> None:
    assert "unknown" in centre([3.0]).interval
    assert exact(7).interval == "exact"
    rate = inverse(centre([1.0, 2.0, 4.0]), 8)
    assert (rate.low, rate.value, rate.high) == (2, 4, 8)


def test_listing_metrics_and_engines_imports_nothing_heavy() -> None:
    code = (
        "import sys; from runners import metrics, engines, protocols; metrics.available(); engines.available(); protocols.names(); "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wrong_name_is_told_the_nearest() -> None:
    with pytest.raises(UnknownName, match="perplexty") as caught:
        metrics.load("perplexty")
    assert "Did you mean perplexity?" in caught.value.hint
    with pytest.raises(UnknownName) as caught:
        protocols.load("stdlib-heldot@512")
    assert "stdlib-heldout@512" in caught.value.hint
    with pytest.raises(UnknownName):
        engines.load("transformer")


def test_a_broken_neighbour_breaks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("import no_such_library")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    monkeypatch.setattr(metrics.__spec__, "submodule_search_locations", metrics.__path__)
    listed = {info.name: info for info in metrics.available()}
    assert not listed["broken"].available
    assert "no_such_library" in listed["broken"].reason
    assert all(listed[name].available for name in FIXED)
    with pytest.raises(Unavailable):
        metrics.load("broken")


def test_an_engine_without_its_library_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(info.install and info.formats for info in engines.available())
    monkeypatch.setattr(plugins, "missing", lambda modules: modules[:1])
    info = engines.available()[0]
    assert not info.available
    assert "torch" in info.reason
    with pytest.raises(Unavailable) as caught:
        engines.load("transformers")
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("name", protocols.names())
def test_a_protocol_is_whole_and_pins_its_text(name: str) -> None:
    protocol = protocols.load(name)
    assert protocol.name == name
    assert protocol.quality or protocol.tasks or protocol.speed or protocol.memory
    if protocol.text:
        assert len(protocol.text.sha256) == 64
        assert not protocol.text.dataset or len(protocol.text.revision) == 40
    if protocol.speed:
        assert protocol.speed.repeats >= 6, "fewer give no 95 % interval of the median"
    if protocol.quality:
        assert protocol.quality.windows == 0 or protocol.quality.windows >= 2
