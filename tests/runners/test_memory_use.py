"""Memory apart: weights, cache and activations of real models, the formula between them, and what is not run."""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from hub.domain import ModelRef
from hub.protocol import Memory
from runners import engines, memory, memory_formula, memory_sweep, memory_use, metrics, press, recipes
from runners.intervals import exact
from runners.memory_pass import Pass
from runners.observations import MemoryPoint, Observed

IDS = list(range(3, 200))
BASE = ModelRef(repo_id="modelpress-samples/random", sha="0" * 40)


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    """scripts/make_random_model.py, which is in no package."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "make_random_model.py"
    spec = importlib.util.spec_from_file_location("make_random_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


Random = Callable[..., Path]


@pytest.fixture(scope="module")
def random_model(maker: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Random:
    def make(**shape: object) -> Path:
        folder = tmp_path_factory.mktemp("random") / "model"
        small = {"layers": 2, "width": 128, "heads": 4, "kv_heads": 2, "vocabulary": 2048, "context": 4096}
        maker.make(folder, **{**small, **shape})
        return folder

    return make


def use(folder: Path, *contexts: int) -> memory_use.Use:
    loaded = engines.for_folder(folder).load(folder)
    return memory_use.by_context(loaded, folder, Memory(contexts=contexts, loads=1), IDS)


def by_length(found: memory_use.Use) -> dict[int, MemoryPoint]:
    return {point.context: point for point in found.points}


@pytest.mark.integration
def test_the_parts_of_a_random_model_are_those_of_its_shape_and_the_formula_is_tried(random_model: Random) -> None:
    # Wide, so that what a system keeps of freed memory, some megabytes, is little beside what is measured.
    folder = random_model(dtype="float32", context=4096, width=512, heads=8, vocabulary=16384)
    found = use(folder, 512, 1024, 2048)
    parameters = engines.load("transformers").count_parameters(folder)
    assert found.weights is not None
    assert found.weights.value == pytest.approx(4 * parameters, abs=1024), "and the rotary frequencies, a buffer"
    assert found.weights.value > 4 * parameters
    points = by_length(found)
    assert list(points) == [512, 1024, 2048, 4096]
    for tokens, point in points.items():
        assert point.kv_cache is not None
        assert point.kv_cache.value == 2 * 2 * 64 * 2 * 4 * tokens, "layers, KV heads, head dimension, keys and values, bytes, tokens"
        assert point.activations is not None
        assert point.peak is not None
        assert point.peak.value == pytest.approx(found.weights.value + point.kv_cache.value + point.activations.value)
        assert point.peak.low <= point.peak.value <= point.peak.high
        assert {point.kv_cache.basis, point.activations.basis, point.peak.basis} == {"estimated" if tokens == 4096 else "measured"}
        assert (point.reserved, point.process, point.device) == (None, None, None) or "cuda" in memory.meters()
    # An MLP's three tensors of 1536 floats by token are in memory together; logits of the last token alone are not 16384 floats by token.
    grown = (points[2048].activations.value - points[512].activations.value) / 1536  # type: ignore[union-attr]
    assert 3 * 1536 * 4 * 0.5 < grown < 3 * 1536 * 4 + 16384 * 4
    formula = next(note for note in found.notes if "a + b·T" in note)
    print(formula)
    assert "made without 2048 tokens" in formula
    assert float(formula.rsplit(" ", 1)[1].rstrip("%.")) < 30, "a line it is, but for what a system rounds up"
    assert "by least squares through 3 measured contexts" in points[4096].activations.interval  # type: ignore[union-attr]


@pytest.mark.integration
def test_a_system_without_a_peak_that_begins_anew_still_tells_weights_and_cache(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CLEAR", Path("/nonexistent/clear_refs"))
    monkeypatch.setattr(memory_sweep, "_PASSES", 2)
    found = use(samples / "sample-llama", 64, 128, 256)
    assert "does not let the peak" in found.notes[-1]
    folder = samples / "sample-llama"
    assert (
        memory.meters().keys() != {"cpu"} or memory_use.load_repeatedly(engines.for_folder(folder), folder, IDS[:8], 2, 1).peak_bytes == ()
    )
    assert found.weights is not None
    assert [point.context for point in found.points] == [64, 128, 256, 512]
    for point in found.points:
        assert (point.activations, point.peak) == (None, None)
        assert point.kv_cache is not None
        assert point.kv_cache.basis == ("estimated" if point.context == 512 else "measured")


@pytest.mark.integration
def test_a_sample_model_is_measured_to_its_own_context_and_longer_ones_are_noted(samples: Path) -> None:
    found = use(samples / "sample-gpt2", 2048, 8192)
    assert [note for note in found.notes if "was not run" in note] == [
        "A context of 2048 tokens was not run: the model takes 512.",
        "A context of 8192 tokens was not run: the model takes 512.",
    ]
    assert list(by_length(found)) == [128, 256, 512]
    assert all(point.kv_cache and point.kv_cache.value == 4 * 256 * 2 * 2 * point.context for point in found.points)
    assert found.weights
    assert found.weights.value == pytest.approx(2 * engines.load("transformers").count_parameters(samples / "sample-gpt2"), abs=4096)


@pytest.mark.integration
def test_eager_attention_grows_with_the_square(random_model: Random) -> None:
    folder = random_model(heads=8, layers=1)
    loaded = engines.for_folder(folder).load(folder)
    loaded.model.set_attn_implementation("eager")  # type: ignore[attr-defined]
    found = memory_use.by_context(loaded, folder, Memory(contexts=(1024, 2048), loads=1), IDS)
    points = by_length(found)
    assert {1024, 2048, 4096} <= set(points)
    ratio = points[2048].activations.value / points[1024].activations.value  # type: ignore[union-attr]
    assert ratio > 3, "a linear one would double"
    assert "a + b·T + c·T²" in " ".join(found.notes)
    assert points[4096].activations.value > 10 * points[1024].activations.value  # type: ignore[union-attr]


@pytest.mark.integration
@pytest.mark.parametrize(("recipe", "needs"), [("gguf-q8-0", "llama_cpp"), ("onnx-int8", "onnxruntime")])
def test_an_engine_with_its_own_cache_is_asked_by_fresh_loads(
    random_model: Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, needs: str
) -> None:
    pytest.importorskip(needs)
    monkeypatch.setattr(memory_sweep, "_PASSES", 2)  # each is a load
    base = random_model(width=256, context=256)
    folder = tmp_path / recipe
    press.press(BASE, base, recipes.load(recipe), folder)
    found = use(folder, 128, 256)
    points = by_length(found)
    assert set(points) == {32, 64, 128, 256}
    item = 2 if recipe.startswith("gguf") else 4
    assert all(one.kv_cache and one.kv_cache.value == 2 * 2 * 64 * 2 * item * tokens for tokens, one in points.items())
    assert all(one.kv_cache and one.kv_cache.basis == "estimated" for one in points.values())
    assert found.weights
    assert "resident memory added by loading" in found.weights.interval
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert 0.3 * stored < found.weights.value < 20 * stored + 50e6
    assert any("logits after every token" in note for note in found.notes) == (not recipe.startswith("gguf"))
    assert all(one.peak and one.peak.value >= found.weights.value for one in points.values())


@pytest.mark.integration
def test_weights_of_an_engine_do_not_have_the_context_that_it_opened_in_them(
    random_model: Random, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("llama_cpp")
    from runners.engines import llama_cpp

    folder = tmp_path / "gguf"
    press.press(BASE, random_model(width=256), recipes.load("gguf-q8-0"), folder)
    monkeypatch.setattr(llama_cpp, "_STEP", 32768)  # a cache of 32 MiB
    asked = memory_use.subject(engines.for_folder(folder).load(folder), folder)
    assert asked is not None
    growths = [asked.run(IDS[:16]).growth for _ in range(2)]
    weights = asked.weights()
    if weights is None or None in growths:
        pytest.skip("the system does not tell what is resident")
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert weights.value < stored + 16 * 2**20
    assert min(growths) > 32 * 2**20  # type: ignore[type-var,operator]


@pytest.mark.integration
def test_loads_are_counted_timed_and_metered(samples: Path) -> None:
    folder = samples / "sample-llama"
    engine = engines.for_folder(folder)
    engine.load(folder).time_generation(IDS[:8], 2)
    loads = memory_use.load_repeatedly(engine, folder, IDS[:8], 2, 3)
    assert len(loads.seconds) == len(loads.peak_bytes) == 3
    assert min(loads.seconds) > 0
    assert min(loads.peak_bytes) > 0.5 * (folder / "model.safetensors").stat().st_size
    assert loads.loaded.encode("def")
    with pytest.raises(ValueError, match="at least once"):
        memory_use.load_repeatedly(engine, folder, IDS[:8], 2, 0)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_go_back_at_once_where_the_c_library_is_kept_tight() -> None:
    code = """
import numpy as np
from runners import memory

def left_of(blocks):
    before = memory.resident()
    held = [np.ones(2**17) for _ in range(blocks)]  # a MiB each
    last = held.pop()
    held.clear()
    return memory.resident() - before - last.nbytes

with memory.tight():
    kept_tight = left_of(64)
print(kept_tight, left_of(64))
"""
    # A process of its own: where blocks come to lie depends on all that was freed before.
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    kept_tight, left_alone = map(int, done.stdout.split())
    assert kept_tight < 8 * 2**20
    assert left_alone > 32 * 2**20, "afterwards glibc keeps what lies below the last block"


@pytest.mark.integration
def test_what_does_not_fit_is_not_run(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = samples / "sample-llama"
    loaded = engines.for_folder(folder).load(folder)
    ran: list[int] = []
    asked = memory_use.subject(loaded, folder)
    assert asked is not None
    run = type(asked).run
    monkeypatch.setattr(type(asked), "run", lambda self, ids: (ran.append(len(ids)), run(self, ids))[1])
    monkeypatch.setattr(memory, "available", lambda: 1_000_000)
    found = memory_use.by_context(loaded, folder, Memory(contexts=(64, 512), loads=1), IDS)
    assert ran == [16], "only the pass that makes the libraries ready"
    assert "A context of 64 tokens was not run: it may take" in found.notes[0]
    assert found.notes[1] == "A context of 512 tokens was not run: a shorter one was not."
    assert found.points == ()
    assert found.weights is not None


def test_a_pass_that_may_take_too_long_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        degrees = (1,)
        all_logits = False
        cache_item = 2
        extra = 0

        def run(self, ids: list[int]) -> Pass:
            return Pass(seconds=len(ids) / 10, growth=1000.0 * len(ids), cache=10.0 * len(ids))

        def free(self) -> int:
            return 2**40

        def weights(self) -> None:
            return None

    sweep = memory_sweep.Sweep(Slow(), {}, [1, 2, 3], 4096)
    sweep.measure((512, 1024, 2048))
    assert sorted(sweep.passes) == [256, 512, 1024], "1024 tokens took 102 s, 2048 may take 410 s; 256 are for the formula"
    assert sweep.notes == ["A context of 2048 tokens was not run: one pass may take 410 s, 300 s are given at most."]
    monkeypatch.setattr(memory_sweep, "_LONGEST", 0.0)
    once = memory_sweep.Sweep(Slow(), {}, [1, 2, 3], 4096)
    once.measure((512,))
    assert {tokens: len(passes) for tokens, passes in once.passes.items()}[512] == 1, "each pass takes longer than is given"


def test_curves_find_what_made_the_points_and_tell_their_error() -> None:
    line = memory_formula.curve({512: 1512.0, 1024: 2024.0, 2048: 3048.0}, (1,))
    assert line is not None
    assert (line.at(4096), line.held_out, line.points) == (pytest.approx(5096), 2048, 3)
    assert line.error == pytest.approx(0, abs=1e-9)
    square = {tokens: 10.0 + 3.0 * tokens + 0.5 * tokens**2 for tokens in (256, 512, 1024, 2048)}
    assert memory_formula.curve(square, (2,)).at(32768) == pytest.approx(10 + 3 * 32768 + 0.5 * 32768**2, rel=1e-6)  # type: ignore[union-attr]
    chosen = memory_formula.curve(square, (1, 2))
    assert chosen is not None
    assert chosen.words == "a + b·T + c·T²"
    bent = memory_formula.curve({1: 1.0, 2: 2.0, 4: 8.0}, (1,))
    assert bent is not None
    assert bent.error == pytest.approx(0.5), "the line through the first two says 4 where 8 was measured"
    assert memory_formula.curve({1: 1.0, 2: 2.0}, (1,)) is None
    assert memory_formula.curve({}, (1, 2)) is None


def test_the_cache_formula_reads_the_shapes_of_the_families() -> None:
    llama = {"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "hidden_size": 4096}
    assert memory_formula.cache_bytes(llama, 8192, 2) == 32 * 8 * 128 * 2 * 2 * 8192 == 2**30, "Llama-3-8B: a GiB for 8k tokens"
    assert memory_formula.cache_bytes({"n_layer": 12, "n_head": 12, "n_embd": 768}, 1024, 4) == 12 * 768 * 2 * 4 * 1024
    assert memory_formula.cache_bytes({"text_config": llama | {"head_dim": 64}}, 1, 2) == 32 * 8 * 64 * 2 * 2
    assert memory_formula.cache_bytes({"hidden_size": 64, "num_hidden_layers": 6}, 1, 4) is None, "RWKV has no heads, and no cache"


def test_a_cache_that_is_not_the_formulas_is_estimated_by_a_line_through_what_was_measured() -> None:
    class Windowed:
        degrees = (1,)
        all_logits = False
        cache_item = 2
        extra = 0

    shape = {"num_hidden_layers": 2, "num_attention_heads": 1, "hidden_size": 8}
    sweep = memory_sweep.Sweep(Windowed(), shape, [1], 4096)  # type: ignore[arg-type]
    sweep.passes = {tokens: (Pass(seconds=1.0, growth=0.0, cache=1000.0 + 32 * tokens),) for tokens in (256, 512, 1024)}
    cache = memory_use._Cache(sweep)
    assert cache.at(512) == replace(exact(1000.0 + 32 * 512), interval="exact, bytes of the cache's tensors")
    beyond = cache.at(4096)
    assert beyond is not None
    assert beyond.value == pytest.approx(1000 + 32 * 4096)
    assert (beyond.basis, "a + b·T" in beyond.interval) == ("estimated", True)


def test_metrics_of_memory_say_at_which_context() -> None:
    point = MemoryPoint(context=2048, kv_cache=exact(5.0), activations=exact(7.0), peak=exact(20.0))
    seen = Observed(disk_bytes=1, tensor_bytes=1, coded_bytes=1, parameters=1, peak_bytes=(30.0, 10.0, 20.0), memory=(point,))
    seen = replace(seen, weight_bytes=exact(8.0))

    def found(name: str) -> list[tuple[float, dict[str, object]]]:
        return [(one.value, dict(one.conditions)) for one in metrics.load(name).estimates(seen)]

    assert found("weight_memory") == [(8.0, {})]
    assert found("peak_memory") == [(20.0, {}), (20.0, {"context": 2048})]
    assert found("kv_cache_memory") == [(5.0, {"context": 2048})]
    assert found("activation_memory") == [(7.0, {"context": 2048})]
    for name in ("reserved_memory", "process_memory", "device_memory", "load_time"):
        assert found(name) == []


@pytest.mark.integration
def test_a_random_model_says_that_it_is_random(random_model: Random, maker: ModuleType, tmp_path: Path) -> None:
    folder = random_model(layers=1, context=1024)
    config = json.loads((folder / "config.json").read_text())
    assert config["random_weights"] is True
    assert "never quality" in config["purpose"]
    card = (folder / "README.md").read_text("utf-8")
    assert "**The weights of this model are random.**" in card
    assert "never for quality" in " ".join(card.split())
    loaded = engines.for_folder(folder).load(folder)
    assert (loaded.context_length, loaded.defects) == (1024, ())
    for wrong in ({"heads": 3}, {"kv_heads": 3}, {"heads": 0}, {"kv_heads": 0}, {"vocabulary": 100}):
        with pytest.raises(ValueError, match=r"divide|too small"):
            maker.make(tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()


@pytest.mark.integration
def test_the_peak_of_a_load_is_that_of_the_device_on_which_the_model_runs(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere:
        works = False

        def growth(self) -> float:
            return -1.0

    class Here(Elsewhere):
        works = True

        def growth(self) -> float:
            return 7.0

    folder = samples / "sample-llama"
    engine = engines.for_folder(folder)
    device = engine.load(folder).device
    other = {"cpu": "cuda", "cuda": "cpu"}[device]
    monkeypatch.setattr(memory, "meters", lambda: {device: Here(), other: Elsewhere()})
    assert memory_use.load_repeatedly(engine, folder, IDS[:8], 2, 1).peak_bytes == (7.0,)


@pytest.mark.gpu
@pytest.mark.integration
def test_a_gpu_tells_what_torch_reserved_and_what_the_driver_counts(random_model: Random) -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    found = use(random_model(), 512, 1024, 2048)
    for point in found.points:
        if point.activations is not None and point.activations.basis == "measured":
            assert point.reserved is not None
            assert point.peak is not None
            assert point.reserved.value >= point.peak.value
            assert point.device is not None
            assert point.device.value >= point.reserved.value
