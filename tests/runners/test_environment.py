"""The environment of this machine, what holds a processor's clock, and what others did meanwhile."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from runners import environment, nvml


@pytest.mark.integration
def test_the_environment_names_processor_threads_and_what_can_change_a_number() -> None:
    found = environment.current()
    import torch

    assert found.threads == torch.get_num_threads() > 0
    assert found.cpu
    assert found.cores == environment.cores() <= (os.cpu_count() or 1)
    assert {"torch", "scipy", "lm_eval", "nvidia-ml-py", "transformers"} <= set(found.libraries)
    assert found.libraries["torch"] == torch.__version__
    assert environment.current().id == found.id, "nothing that changes by the second is in it"
    if found.device == "cpu":
        assert found.hardware == f"{found.cpu}, {found.cores} cores"
        assert found.driver == ""
        assert found.clocks == environment.cpu_clocks()


def test_what_is_done_now_is_told_without_torch() -> None:
    code = "import sys; from runners import environment; print(environment.state()); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    state = environment.state()
    assert 0 <= float(state["load_average"]) < 10_000
    assert float(state.get("cpu_mhz", 1000)) > 100
    assert ("gpu_sm_mhz" in state) == (nvml.device() is not None)


def spin(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


@pytest.mark.skipif(platform.system() != "Linux", reason="times by core are of the cores that a process may use: Linux")
def test_work_of_this_process_and_its_children_is_told_from_that_of_others() -> None:
    before = environment.state()
    spin(0.3)
    subprocess.run(
        [sys.executable, "-c", "t = __import__('time'); e = t.process_time() + 0.3\nwhile t.process_time() < e: pass"], check=True
    )
    after = environment.state()
    assert float(after["own_cpu_seconds"]) - float(before["own_cpu_seconds"]) > 0.55
    between = environment.between(before, after)
    assert 0 <= float(between["other_cores"]) <= environment.cores() + 0.2
    assert {"load_average_before", "load_average_after"} <= set(between)
    assert not set(between) & {"clock_seconds", "cpu_seconds", "own_cpu_seconds"}


def test_two_states_become_one_with_what_others_did() -> None:
    before = {"clock_seconds": 10.0, "cpu_seconds": 100.0, "own_cpu_seconds": 5.0, "load_average": 0.5, "cpu_mhz": 2400}
    after = {"clock_seconds": 20.0, "cpu_seconds": 125.0, "own_cpu_seconds": 15.0, "load_average": 2.5, "gpu_power_w": 71.5}
    between = environment.between(before, after)
    assert between == {
        "cpu_mhz_before": 2400,
        "gpu_power_w_after": 71.5,
        "load_average_after": 2.5,
        "load_average_before": 0.5,
        "other_cores": 1.5,
    }
    assert (
        environment.busy(between, 2)
        == "Other work kept 1.5 of 2 cores busy meanwhile: times may be too long, and vary more than they would."
    )
    assert environment.busy(between, 32) is None, "a tenth of many cores is the system's own"
    assert environment.busy({"other_cores": 0.2}, 2) is None
    assert environment.busy({"load_average": 2.0}, 2) is None, "this process itself may keep all cores busy"
    assert environment.busy({"load_average": 6.0}, 2) == "The load average was 6.0 on 2 cores: times may be too long."
    assert environment.busy({}, 2) is None


def test_what_holds_a_processors_clock_is_read_where_the_system_tells(tmp_path: Path) -> None:
    assert environment.cpu_clocks(tmp_path) == ""
    (tmp_path / "cpu0" / "cpufreq").mkdir(parents=True)
    (tmp_path / "cpu0" / "cpufreq" / "scaling_governor").write_text("powersave\n")
    (tmp_path / "cpu0" / "cpufreq" / "cpuinfo_max_freq").write_text("4700000\n")
    assert environment.cpu_clocks(tmp_path) == "governor powersave, at most 4700 MHz"
    (tmp_path / "intel_pstate").mkdir()
    (tmp_path / "intel_pstate" / "no_turbo").write_text("1\n")
    assert environment.cpu_clocks(tmp_path).endswith(", turbo off")
    (tmp_path / "cpufreq").mkdir()
    (tmp_path / "cpufreq" / "boost").write_text("1\n")
    assert environment.cpu_clocks(tmp_path).endswith(", turbo on")


@pytest.mark.parametrize(
    ("visible", "place"), [(None, 0), ("", None), ("-1", None), ("2,0", 2), ("GPU-4a1b,1", "GPU-4a1b"), ("MIG-9c", "MIG-9c")]
)
def test_the_gpu_that_is_asked_is_the_first_that_cuda_shows(monkeypatch: pytest.MonkeyPatch, visible: str | None, place: object) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert nvml._place() == place


@pytest.mark.integration
def test_a_torch_that_sees_no_gpu_has_the_last_word() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU")
    assert nvml._place() is None
    assert nvml.device() is None


@pytest.mark.gpu
@pytest.mark.integration
def test_a_gpus_driver_and_limits_are_named() -> None:
    found = environment.current()
    if found.device != "cuda":
        pytest.skip("no CUDA device")
    assert "CUDA" in found.driver
    assert "MHz" in found.clocks
    state = environment.state()
    assert float(state["gpu_sm_mhz"]) > 0
    assert 0 < float(state["gpu_temperature_c"]) < 120
