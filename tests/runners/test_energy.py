"""Energy: a counters' tree of Linux's layout, read, wrapped around and refused; the metric made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runners import energy, metrics, nvml
from runners.observations import Observed, Run, SpeedPoint

RANGE = 262_143_328_850  # microjoules: what an Intel server's package says


def domain(tree: Path, folder: str, name: str, energy_uj: int) -> Path:
    place = tree / folder
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "energy_uj").write_text(f"{energy_uj}\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE}\n")
    return place / "energy_uj"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two packages with a core domain in each, psys, which counts both again, and the same package by another interface."""
    (tmp_path / "intel-rapl").mkdir()
    domain(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 1_000_000)
    domain(tmp_path, "intel-rapl:1", "package-1", 7_000_000)
    domain(tmp_path, "intel-rapl:2", "psys", 90_000_000)
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    return tmp_path


def test_joules_are_those_of_all_packages_since_the_meter_was_made(tree: Path) -> None:
    meter = energy.meter("cpu", powercap=tree)
    assert meter is not None
    assert "RAPL" in meter.source
    assert meter.joules() == 0
    (tree / "intel-rapl:0" / "energy_uj").write_text("8500000\n")
    (tree / "intel-rapl:0:0" / "energy_uj").write_text("4000000\n")
    (tree / "intel-rapl:2" / "energy_uj").write_text("99000000\n")
    assert meter.joules() == pytest.approx(3.5)
    (tree / "intel-rapl:1" / "energy_uj").write_text("7250000\n")
    assert meter.joules() == pytest.approx(3.75), "cumulative"
    assert energy.why_not("cpu", powercap=tree) == ""


def test_a_counter_that_begins_anew_loses_nothing(tree: Path) -> None:
    counter = tree / "intel-rapl:0" / "energy_uj"
    counter.write_text(str(RANGE - 1_000_000))
    meter = energy.meter("cpu", powercap=tree)
    assert meter is not None
    counter.write_text("2000000")
    assert meter.joules() == pytest.approx(3.0)
    counter.write_text("4000000")
    assert meter.joules() == pytest.approx(5.0)


def test_a_counter_that_once_does_not_answer_adds_nothing_of_before() -> None:
    answers = iter([7e6, None, 7e6 + 5])
    meter = energy.Meter("GPU (NVML)", {"gpu": lambda: next(answers)}, {}, 1.0)
    assert meter.joules() is None
    assert meter.joules() == pytest.approx(5.0), "not the energy since the driver was loaded"


def test_where_there_are_no_counters_a_sentence_says_so(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        assert energy.meter("cpu", powercap=place) is None
        assert "no RAPL counters" in energy.why_not("cpu", powercap=place)
    domain(tmp_path, "intel-rapl:0", "psys", 1)
    assert energy.meter("cpu", powercap=tmp_path) is None, "psys alone is more than the processor"


def test_counters_that_cannot_be_read_are_told_from_none(tree: Path) -> None:
    (tree / "intel-rapl:1" / "energy_uj").unlink()
    (tree / "intel-rapl:1" / "energy_uj").mkdir()
    assert energy.meter("cpu", powercap=tree) is None
    assert "are there" in energy.why_not("cpu", powercap=tree)


def test_this_machine_has_a_meter_or_a_reason() -> None:
    meter = energy.meter()
    assert (meter is None) == bool(energy.why_not())
    assert meter is None or (meter.joules() or 0.0) >= 0


@pytest.mark.gpu
def test_a_gpu_uses_energy() -> None:
    if nvml.device() is None:
        pytest.skip("no NVIDIA GPU")
    import torch

    meter = energy.meter("cuda")
    if meter is None:
        pytest.skip(energy.why_not("cuda"))
    square = torch.ones(4096, 4096, device="cuda")
    for _ in range(200):
        square = (square @ square).clamp(-1, 1)
    torch.cuda.synchronize()
    assert (meter.joules() or 0.0) > 0


def test_energy_by_thousand_tokens_counts_read_and_written_of_the_whole_batch() -> None:
    def point(joules: float | None, *, batch: int = 1, headline: bool = True) -> SpeedPoint:
        run = Run(prefill_seconds=1.0, token_seconds=(0.1,) * 9, joules=joules)
        return SpeedPoint(mode="eager", batch=batch, context=90, headline=headline, runs=(run,) * 6)

    def found(*points: SpeedPoint) -> list[tuple[float, dict[str, object]]]:
        seen = Observed(disk_bytes=1, tensor_bytes=1, coded_bytes=1, parameters=1, speed=points)
        return [(one.value, dict(one.conditions)) for one in metrics.load("energy_per_1k_tokens").estimates(seen)]

    curve = found(point(5.0), point(8.0, batch=4, headline=False), point(None, batch=8, headline=False))
    assert curve == [(pytest.approx(50.0), {}), (pytest.approx(20.0), {"mode": "eager", "batch": 4, "context": 90})]
    assert found(point(None)) == []
