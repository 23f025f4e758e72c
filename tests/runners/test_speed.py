"""The curve of speed: what is timed, in what order, how often; and that all ways of writing write the same tokens."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hub.domain import ModelRef
from hub.errors import BadCheckpoint, BadDocument, Unavailable, UnfitModel
from hub.protocol import Speed
from runners import checkpoint, engines, metrics, press, recipes, speed
from runners.engines import _generation, _timing
from runners.metrics._along import percentiles
from runners.observations import Observed, Run, SpeedPoint

SECTION = Speed(batches=(1,), contexts=(24,), modes=("eager",), new_tokens=4, repeats=6, seconds=0.0, warmup=1)
TEXT = "def add(one, other):\n    return one + other\n\nclass Thing:\n    def method(self):\n        raise ValueError('no')\n" * 4
OBSERVED = Observed(disk_bytes=1, tensor_bytes=1, coded_bytes=1, parameters=1)

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def tiny(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return what makes a random float32 model like sample-llama, of one layer, with other numbers in its config where wanted."""

    def make(**changes: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = tmp_path_factory.mktemp("tiny") / "tiny"
        config = AutoConfig.from_pretrained(samples / "sample-llama")
        config.update({"num_hidden_layers": 1} | changes)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():  # norms that are all one would be merged on export
            if weight.dim() == 1:
                torch.nn.init.normal_(weight, mean=1, std=0.2)
        model.save_pretrained(folder)
        checkpoint.carry_over(samples / "sample-llama", folder)
        return folder

    return make


@pytest.fixture(scope="module")
def model(samples: Path) -> Any:
    """The sample model in float32, in which no two ways of adding up make another token the likeliest."""
    return engines.load("transformers").load(samples / "sample-llama", dtype="float32")


def rows_alone(loaded: Any, ids: Sequence[int], batch: int, new_tokens: int) -> tuple[tuple[int, ...], ...]:
    return tuple(loaded.time_generation(row, new_tokens).tokens[0] for row in _timing.rows(ids, batch))


# --- the loop ---


@pytest.mark.parametrize(
    ("repeats", "seconds", "step", "count"),
    [
        (6, 0.0, 1, 6),
        (6, 10.0, 1, 10),
        (1, 3.0, 1, 3),
        (7, 0.0, 2, 8),
        (6, 9.0, 2, 10),
        (2, 1e9, 1, 2 * speed.MOST),
        (1, 1e9, 2, 50),
        (999, 0.0, 1, 600),
        (999, 0.0, 7, 602),
    ],
)
def test_turns_end_when_count_and_duration_are_reached(repeats: int, seconds: float, step: int, count: int) -> None:
    seen: list[int] = []  # each turn takes a second
    for turn in speed.turns(repeats, seconds, step=step, clock=lambda: 100.0 + len(seen)):
        seen.append(turn)
    assert seen == list(range(count))


def test_rows_of_a_batch_are_the_prompt_turned() -> None:
    assert _timing.rows([1, 2, 3, 4, 5], 2) == [[1, 2, 3, 4, 5], [3, 4, 5, 1, 2]]
    assert len({tuple(row) for row in _timing.rows(list(range(64)), 64)}) == 64
    assert _timing.rows([1, 2], 3) == [[1, 2], [2, 1], [1, 2]]


def test_a_short_text_is_repeated() -> None:
    assert speed.prompt_of([1, 2, 3], 2) == [1, 2]
    assert speed.prompt_of([1, 2, 3], 7) == [1, 2, 3, 1, 2, 3, 1]


def test_points_left_out_are_told_by_what_they_share_or_one_by_one() -> None:
    def at(batch: int, context: int) -> speed._Place:
        return speed._Place(mode="eager", base_mode="eager", batch=batch, context=context, headline=False)

    assert speed._together([at(1, 8), at(1, 16), at(2, 8), at(2, 16)]) == "mode eager, batch 1 or 2, context 8 or 16"
    assert speed._together([at(1, 8), at(2, 16)]) == "mode eager, batch 1, context 8; mode eager, batch 2, context 16"


# --- real runs ---


@pytest.mark.integration
def test_all_modes_and_batches_write_the_tokens_that_generate_writes(model: Any) -> None:
    ids = model.encode(TEXT)[:32]
    plain = model.time_generation(ids, 8)
    assert list(plain.tokens[0]) == model.generate(ids, 8)
    assert len(plain.token_seconds) == 7
    assert all(seconds > 0 for seconds in (plain.prefill_seconds, *plain.token_seconds))
    three = rows_alone(model, ids, 3, 8)
    assert len(set(three)) == 3
    for mode in ("eager", "static-cache"):
        for _ in range(2):  # the second run finds the first one's cache
            assert model.time_generation(ids, 8, batch=3, mode=mode).tokens == three
            assert model.time_generation(ids, 8, mode=mode).tokens == plain.tokens
    model.forget()
    assert model.time_generation(ids, 8, mode="static-cache").tokens == plain.tokens


@pytest.mark.integration
def test_the_compiled_step_writes_the_same_and_is_timed_beside_a_base(tiny: Make) -> None:
    engine = engines.load("transformers")
    folder = tiny()
    loaded, base = engine.load(folder), engine.load(folder)
    ids = loaded.encode(TEXT)
    found = speed.curve(loaded, base, replace(SECTION, modes=("eager", "compiled"), new_tokens=6), ids)
    assert found.notes == ()
    eager, compiled = found.points
    assert {run.tokens for point in found.points for run in (*point.runs, *point.base_runs)} == {eager.runs[0].tokens}
    assert compiled.conditions == {"mode": "compiled", "batch": 1, "context": 24}
    first = base.time_generation(ids[:24], 6, mode="compiled")  # compiles: the curve has let go of its code
    assert max(run.decode_seconds for run in compiled.runs) < first.decode_seconds, "compiling must not be in any run"


@pytest.mark.integration
def test_a_sliding_window_is_compiled_for_all_tokens_or_not_timed_compiled() -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MistralConfig(**sizes, vocab_size=64, sliding_window=12)
    torch.manual_seed(0)
    writer = _generation.Writer(MistralForCausalLM(config).eval())
    given = [list(range(8))]
    plain, compiled = (writer.time(given, 20, mode, "cpu").tokens for mode in ("eager", "compiled"))
    assert plain == compiled, "its cache counts tokens in a number: twenty would be more versions than torch keeps"
    writer.forget()
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(Unavailable, match="anew for every token"):
        writer.time(given, 20, "compiled", "cpu")


@pytest.mark.integration
def test_without_a_compiler_the_compiled_points_are_left_out(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch._inductor import config

    if torch.cuda.is_available():
        pytest.skip("on CUDA another compiler is used")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing that was compiled before is found
    loaded = engines.load("transformers").load(tiny(hidden_size=96))
    with config.patch({"cpp.cxx": (None, str(tmp_path / "no-such-compiler"))}):
        found = speed.curve(loaded, None, replace(SECTION, modes=("eager", "compiled")), loaded.encode(TEXT))
    assert [point.mode for point in found.points] == ["eager"]
    (note,) = found.notes
    assert note.startswith("Speed was not measured at mode compiled, batch 1, context 24: ")
    assert "compiler" in note


@pytest.mark.integration
@pytest.mark.parametrize("recipe", ["gguf-q8-0", "onnx-int4", "openvino-int8"])
def test_other_engines_run_batches_whose_rows_are_those_of_batch_one(tiny: Make, tmp_path: Path, recipe: str) -> None:
    folder = tmp_path / recipe
    press.press(ModelRef(repo_id="modelpress-samples/tiny", sha="0" * 40), tiny(), recipes.load(recipe), folder)
    engine = engines.for_folder(folder)
    loaded = engine.load(folder)
    ids = loaded.encode(TEXT)[:24]
    run = loaded.time_generation(ids, 5, batch=3)
    assert run.tokens == rows_alone(loaded, ids, 3, 5)
    assert len(run.token_seconds) == 4
    assert list(run.tokens[0]) == loaded.generate(ids, 5)
    assert loaded.modes == ("eager",)
    with pytest.raises(Unavailable, match="no mode 'compiled'"):
        loaded.time_generation(ids, 2, mode="compiled")

    base = engines.load("transformers").load(tiny())
    batches = (2, 300) if loaded.max_batch < 300 else (2,)
    found = speed.curve(loaded, base, replace(SECTION, batches=batches, modes=("eager", "static-cache"), repeats=2), ids)
    assert (found.points[0].mode, found.points[0].batch) == ("eager", 2)
    assert len(found.points[0].base_runs) == len(found.points[0].runs) == 2
    assert any(f"{loaded.label} has no mode static-cache" in note for note in found.notes)
    assert (recipe == "gguf-q8-0") == any("256 sequences together at most" in note for note in found.notes)


@pytest.mark.integration
def test_the_turns_of_model_and_base_interleave_and_each_is_first_as_often(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = replace(model)
    order: list[str] = []
    real = type(model).time_generation

    def noted(self: Any, *args: Any, **kwargs: Any) -> Run:
        order.append("base" if self is base else "model")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "time_generation", noted)
    found = speed.curve(model, base, replace(SECTION, repeats=7, warmup=2), model.encode(TEXT))
    assert order[:4] == ["model", "base"] * 2
    timed = list(zip(order[4::2], order[5::2], strict=True))
    assert timed == [("model", "base"), ("base", "model")] * 4, "an even number of turns: as often first"
    (point,) = found.points
    assert len(point.runs) == len(point.base_runs) == 8
    assert point.headline
    assert point.conditions == {}


@pytest.mark.integration
def test_repeats_go_on_until_the_seconds_are_over(model: Any) -> None:
    start = time.perf_counter()
    point = speed.curve(model, None, replace(SECTION, repeats=2, seconds=0.5, new_tokens=2), model.encode(TEXT)).points[0]
    assert point.base_runs == ()
    assert time.perf_counter() - start >= 0.5 or len(point.runs) == 2 * speed.MOST


@pytest.mark.integration
def test_points_that_do_not_fit_are_left_out_with_a_sentence(model: Any) -> None:
    section = replace(SECTION, contexts=(24, 48, 510), modes=("eager", "nonsense"), batches=(1, 2))
    found = speed.curve(model, None, section, model.encode(TEXT)[:30])
    assert [(point.mode, point.batch, point.context, point.headline) for point in found.points] == [
        ("eager", 1, 24, True), ("eager", 1, 48, False), ("eager", 2, 24, False), ("eager", 2, 48, False)
    ]  # fmt: skip
    assert found.points[3].conditions == {"mode": "eager", "batch": 2, "context": 48}
    long, strange = found.notes
    assert "mode eager, batch 1 or 2, context 510: " in long
    assert "512 tokens" in long
    assert "no mode nonsense" in strange
    with pytest.raises(UnfitModel, match="512 tokens"):
        speed.curve(model, None, replace(section, contexts=(510, 24)), model.encode(TEXT))


@pytest.mark.integration
def test_a_point_that_fails_is_a_note_and_a_first_point_that_fails_raises(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    real, forgotten = type(model).time_generation, []

    def failing(self: Any, ids: Sequence[int], new_tokens: int, *, batch: int = 1, mode: str = "eager") -> Run:
        if batch == 2:
            torch.empty(2**50)  # more than any machine has: torch itself says so
        if batch == 3:
            raise RuntimeError("kernel takes\nno 3")
        return real(self, ids, new_tokens, batch=batch, mode=mode)

    monkeypatch.setattr(type(model), "time_generation", failing)
    monkeypatch.setattr(type(model), "forget", lambda self: forgotten.append(self))
    ids = model.encode(TEXT)
    found = speed.curve(model, None, replace(SECTION, batches=(1, 2, 3)), ids)
    assert [point.batch for point in found.points] == [1]
    assert len(forgotten) == 3
    assert found.notes == (
        "Speed was not measured at mode eager, batch 2, context 24: memory ran out.",
        "Speed was not measured at mode eager, batch 3, context 24: RuntimeError: kernel takes no 3.",
    )
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        speed.curve(model, None, replace(SECTION, batches=(2, 1)), ids)
    with pytest.raises(BadCheckpoint, match="kernel takes no 3"):
        speed.curve(model, None, replace(SECTION, batches=(3, 1)), ids)


@pytest.mark.integration
def test_a_point_beyond_the_machine_s_memory_is_not_tried(model: Any) -> None:
    most = 2**40 // model.bytes_per_token
    if model.device == "cuda":
        pytest.skip("a GPU says by itself when its memory is out")
    found = speed.curve(model, None, replace(SECTION, batches=(1, most)), model.encode(TEXT))
    assert [point.batch for point in found.points] == [1]
    assert "memory" in found.notes[0]


@pytest.mark.integration
def test_a_slow_machine_leaves_long_points_out_and_takes_fewer_runs(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(self: Any, ids: Sequence[int], new_tokens: int, *, batch: int = 1, mode: str = "eager") -> Run:
        return Run(prefill_seconds=batch * len(ids), token_seconds=(10.0,) * (new_tokens - 1))

    monkeypatch.setattr(type(model), "time_generation", slow)
    monkeypatch.setattr(speed, "PATIENCE", 0.0)
    found = speed.curve(model, model, replace(SECTION, batches=(1, 8, 64), contexts=(24, 48)), model.encode(TEXT))
    assert [(point.batch, point.context) for point in found.points] == [(1, 24), (1, 48), (8, 24)]
    assert all(len(point.runs) == len(point.base_runs) == 2 for point in found.points)
    assert "Speed has 2 runs at mode eager, batch 8, context 24, not 6: a point is given 0 s." in found.notes
    assert found.notes[-1] == (
        "Speed was not measured at mode eager, batch 8, context 48; mode eager, batch 64, context 24; mode eager, batch 64, context 48: "
        "one run may take more than 300 s."
    )


@pytest.mark.integration
def test_a_base_that_lacks_the_mode_runs_in_its_plain_one(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base = replace(model)
    monkeypatch.setattr(type(model), "modes", property(lambda self: ("eager",) if self is base else ("eager", "static-cache")))
    found = speed.curve(model, base, replace(SECTION, modes=("eager", "static-cache")), model.encode(TEXT))
    assert [point.mode for point in found.points] == ["eager", "static-cache"]
    assert found.notes == ("In the mode static-cache the base ran in its mode eager: it has no static-cache.",)


@pytest.mark.integration
def test_a_base_on_another_device_is_told(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(prefill_seconds=1.0, token_seconds=(0.1,) * 3)
    monkeypatch.setattr(type(model), "time_generation", lambda *args, **kwargs: run)
    found = speed.curve(replace(model, device="cpu"), replace(model, device="cuda"), SECTION, model.encode(TEXT))
    assert "The model ran on cpu, its base on cuda: ratios of their speed are of two devices." in found.notes


@pytest.mark.integration
def test_joules_are_the_growth_of_the_meter_over_each_run(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from runners import energy

    monkeypatch.setattr(energy, "meter", lambda device: None)
    assert speed.curve(model, None, SECTION, model.encode(TEXT)).points[0].runs[0].joules is None

    class Counter:
        shortest = 0.0

        def __init__(self, device: str) -> None:
            assert device == model.device
            self.total = 0.0

        def joules(self) -> float:
            self.total += 3
            return self.total

    monkeypatch.setattr(energy, "meter", Counter)
    assert [run.joules for run in speed.curve(model, None, SECTION, model.encode(TEXT)).points[0].runs] == [3.0] * 6
    monkeypatch.setattr(Counter, "shortest", 1e6)
    short = speed.curve(model, None, SECTION, model.encode(TEXT))
    assert [run.joules for run in short.points[0].runs] == [None] * 6
    assert short.notes == ("Energy was not measured at mode eager, batch 1, context 24: its counter is too coarse for runs this short.",)


@pytest.mark.integration
def test_a_protocol_s_curve_comes_out_as_measurements_at_points(samples: Path) -> None:
    from runners import protocols
    from runners.measure import measure

    quick = protocols.load(protocols.QUICK)
    section = replace(SECTION, contexts=(24, 12, 600), seconds=0.3)
    folder = samples / "sample-llama"
    measured = measure(folder, folder, replace(quick, quality=None, memory=None, speed=section))
    found = {(one.metric, one.conditions.get("context")): one for one in measured.measurements}
    for name in ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token", "time_per_output_token"):
        assert found[name, None].percentiles["p5"] <= found[name, None].value
        assert found[name, 12].conditions == {"mode": "eager", "batch": 1, "context": 12}
        assert (name, 600) not in found
    for name in ("prefill_speedup", "decode_speedup"):
        assert 0.4 < found[name, None].value < 2.5, "a model beside itself"
    assert found["time_to_first_token", None].value == pytest.approx(24 / found["prefill_tokens_per_second", None].value, rel=0.05)
    assert any("context 600" in note for note in measured.notes)


# --- warming up ---


@pytest.mark.integration
def test_warming_up_gives_the_whole_text_s_tokens_and_refuses_what_cannot_be_timed(samples: Path) -> None:
    engine, folder = engines.load("transformers"), samples / "sample-llama"
    ids = speed.warm(engine, folder, TEXT, 16, 512)
    assert engine.load(folder).decode(ids) == TEXT
    with pytest.raises(UnfitModel, match="takes 512 tokens; the protocol needs 513"):
        speed.warm(engine, folder, TEXT, 16, 513)
    with pytest.raises(BadDocument, match="empty"):
        speed.warm(engine, folder, "", 16, 512)


@pytest.mark.integration
def test_a_model_that_generates_nothing_is_a_bad_checkpoint(tiny: Make) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tiny(tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(folder)
    end = next(iter(engines.load("transformers").load(folder).end_tokens))
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits are zero, so the first token is the likeliest, which is the end of text
        assert end == 0
    model.save_pretrained(folder)
    with pytest.raises(BadCheckpoint, match="generates nothing: given 16 tokens of text it writes an end of text"):
        speed.warm(engines.load("transformers"), folder, TEXT, 16, 64)


@pytest.mark.integration
def test_a_folder_without_other_engines_is_timed_nowhere_else(samples: Path) -> None:
    if engines.timing_only(samples / "sample-llama"):
        pytest.skip("an engine that only times is installed")
    assert speed.elsewhere(samples / "sample-llama", SECTION, [1, 2, 3]) == ((), ())


def test_an_engine_that_only_times_is_never_chosen_to_score(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runners import plugins

    listed = {info.name: info for info in engines.available()}
    assert listed["vllm"].times_only
    assert not any(info.times_only for name, info in listed.items() if name != "vllm")
    monkeypatch.setattr(plugins, "missing", lambda modules: ())
    assert engines.for_folder(samples / "sample-llama") is engines.load("transformers")
    assert engines.timing_only(samples / "sample-llama") == ["vllm"]


def test_what_vllm_notes_of_requests_that_are_read_one_after_the_other_makes_no_rate_that_was_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from runners.engines import vllm

    def request(first: float, last: float) -> Any:  # vLLM's RequestStateStats; both arrive at 100 s
        noted = SimpleNamespace(first_token_ts=100 + first, last_token_ts=100 + last, first_token_latency=first)
        return SimpleNamespace(metrics=noted, outputs=[SimpleNamespace(token_ids=[7, 8, 9])])

    loaded = object.__new__(vllm.Loaded)
    monkeypatch.setattr(loaded, "_write", lambda rows, new_tokens, *, ignore_eos: [request(1.0, 4.0), request(3.0, 4.0)], raising=False)
    run = loaded.time_generation([1, 2, 3], 3, batch=2)
    assert run.prefill_seconds == 3.0
    assert run.token_seconds == (1.0, 1.0), "3 s and 1 s for two tokens each; from the last first token on it would be 0.5"
    assert run.tokens == ((7, 8, 9), (7, 8, 9))


# --- on a GPU ---


@pytest.fixture
def cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.gpu
@pytest.mark.integration
def test_on_cuda_events_agree_with_the_wall_clock(cuda: None, model: Any) -> None:
    ids = model.encode(TEXT)[:32]
    model.time_generation(ids, 32)
    start = time.perf_counter()
    run = model.time_generation(ids, 32)
    wall = time.perf_counter() - start
    assert 0.5 * wall < run.prefill_seconds + run.decode_seconds <= 1.01 * wall
    three = rows_alone(model, ids, 3, 8)
    for mode in model.modes:
        assert model.time_generation(ids, 8, batch=3, mode=mode).tokens == three


# --- metrics ---

RUNS = tuple(
    Run(prefill_seconds=first, token_seconds=(rest / 2, rest / 2))
    for first, rest in zip((4.0, 5, 6, 7, 8, 9), (1.0, 2, 3, 4, 5, 6), strict=True)
)
BASES = tuple(Run(prefill_seconds=2 * run.prefill_seconds, token_seconds=(run.decode_seconds / 2,)) for run in RUNS)
HEADLINE = SpeedPoint(mode="eager", batch=1, context=100, headline=True, runs=RUNS)
FURTHER = SpeedPoint(mode="eager", batch=8, context=100, headline=False, runs=RUNS, base_runs=BASES)


@pytest.mark.parametrize(
    ("name", "value", "low", "high", "factor"),
    [
        ("time_to_first_token", 6.5, 4, 9, 1),
        ("time_per_output_token", 1.75, 0.5, 3, 1),
        ("prefill_tokens_per_second", (100 / 6 + 100 / 7) / 2, 100 / 9, 25, 8),
        ("decode_tokens_per_second", (2 / 3 + 2 / 4) / 2, 2 / 6, 2, 8),
    ],
)
def test_a_metric_of_speed_has_a_headline_and_a_number_at_each_point(
    name: str, value: float, low: float, high: float, factor: float
) -> None:
    module = metrics.load(name)
    assert not module.estimates(OBSERVED)
    headline, further = module.estimates(replace(OBSERVED, speed=(FURTHER, HEADLINE)))
    assert (headline.low, headline.value, headline.high) == pytest.approx((low, value, high))
    assert (further.low, further.value, further.high) == pytest.approx((factor * low, factor * value, factor * high))
    assert headline.conditions == {}
    assert further.conditions == {"mode": "eager", "batch": 8, "context": 100}
    assert list(headline.percentiles) == ["p5", "p50", "p95", "p99"]
    assert headline.samples == 6


def test_speedups_are_of_neighbouring_runs_and_may_be_below_one() -> None:
    prefill, decode = (
        metrics.load(f"{name}_speedup").estimates(replace(OBSERVED, speed=(HEADLINE, FURTHER))) for name in ("prefill", "decode")
    )
    assert [(one.value, one.low, one.high, one.conditions["batch"]) for one in prefill] == [(2, 2, 2, 8)]
    assert [(one.value, one.conditions["batch"]) for one in decode] == [(0.5, 8)]
    assert "pairs of runs" in prefill[0].interval


def test_percentiles_are_numpy_s() -> None:
    import numpy as np

    values = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0]
    assert list(percentiles(values).values()) == pytest.approx(np.percentile(values, [5, 50, 95, 99]).tolist())
    assert percentiles([1.0]) == {}


def test_percentiles_of_a_token_s_time_are_over_single_tokens() -> None:
    spiky = tuple(Run(prefill_seconds=1, token_seconds=(0.1,) * 9 + (1.1,)) for _ in range(6))
    (found,) = metrics.load("time_per_output_token").estimates(replace(OBSERVED, speed=(replace(HEADLINE, runs=spiky),)))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.2, 0.2))
    assert found.percentiles == pytest.approx({"p5": 0.1, "p50": 0.1, "p95": 1.1, "p99": 1.1})


def test_listing_engines_and_loading_the_curve_imports_nothing_heavy() -> None:
    code = "import sys; from runners import speed, engines; engines.available(); assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
