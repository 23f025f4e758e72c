"""Measuring against plain references: real models, float64 by hand."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Measurement
from hub.errors import BadCheckpoint, BadDocument, ModelPressError, Unavailable, UnfitModel, UnknownName
from hub.protocol import Memory, Protocol, Quality, Speed, Tasks
from runners import intervals, memory_use, metrics, protocols, speed, texts, work
from runners import measure as measuring
from runners.measure import Places, measure
from runners.observations import Observed, TaskResult

QUICK = replace(
    protocols.load(protocols.QUICK),
    quality=Quality(sequence_length=128, windows=4),
    speed=Speed(batches=(1, 2), contexts=(16, 600), modes=("eager",), new_tokens=4, repeats=6, seconds=0.0, warmup=1),
    memory=Memory(contexts=(64, 4096), loads=2),
)


@pytest.fixture(scope="module")
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """A cache, and a folder of data that holds the text of `tale`."""
    return Places(cache=tmp_path_factory.mktemp("cache"), data=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tale(shared: Path, places: Places) -> Protocol:
    """The protocol on real stories: 8 windows of 256 tokens."""
    stories = json.loads((shared / "data" / "tinystories-sample" / "tinystories_1000.json").read_text("utf-8"))
    lines = [story if isinstance(story, str) else str(story.get("text", story)) for story in list(stories)[:60]]
    assert places.data
    path = places.data / "tale.txt"
    path.write_text("\n\n".join(lines), "utf-8")
    return replace(QUICK, text=texts.parse(str(path)), quality=Quality(sequence_length=256, windows=8))


@pytest.fixture(scope="module")
def blurred(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stories model with its weights rounded to bfloat16 and back: a variant that differs a little."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("blurred")
    for path in stories.iterdir():
        shutil.copyfile(path, folder / path.name)
    tensors = {name: tensor.to(torch.bfloat16).float() for name, tensor in load_file(stories / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def headlines(folder: Path, base: Path | None, protocol: Protocol, places: Places) -> dict[str, Measurement]:
    return {one.metric: one for one in measure(folder, base, protocol, places=places).measurements if not one.conditions}


def reference(folder: Path, base: Path, text: str, plan: Quality) -> dict[str, Any]:
    """Perplexity, KL and agreement by the definition, with nothing of ours: one window at a time, float64 softmax, plain sums."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval() for place in (folder, base)]
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    length, total = plan.sequence_length, len(ids) // plan.sequence_length
    nll, base_nll, kl, same, moved = [], [], [], [], []
    for index in range(plan.windows):
        start = index * total // plan.windows * length
        window = torch.tensor([ids[start : start + length]])
        with torch.no_grad():
            mine, its = (model(window).logits[0].numpy().astype(np.float64) for model in models)
        for position in range(length - 1):
            p, q = (np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in (its[position], mine[position]))
            target = int(window[0, position + 1])
            nll.append(-math.log(q[target]))
            base_nll.append(-math.log(p[target]))
            kl.append(float((p * np.log(p / q)).sum()))
            same.append(p.argmax() == q.argmax())
            moved.append(q[target] - p[target])
    return {
        "perplexity": math.exp(np.mean(nll)),
        "perplexity_ratio": math.exp(np.mean(nll)) / math.exp(np.mean(base_nll)),
        "delta_perplexity": math.exp(np.mean(nll)) - math.exp(np.mean(base_nll)),
        "kl_divergence": float(np.mean(kl)),
        "delta_probability": float(np.mean(moved)),
        "rms_delta_probability": float(np.sqrt(np.mean(np.square(moved)))),
        "same_top_token": float(np.mean(same)),
    }


@pytest.mark.integration
@pytest.mark.shared
def test_quality_agrees_with_an_independent_reference(stories: Path, blurred: Path, tale: Protocol, places: Places) -> None:
    assert tale.text
    assert tale.quality
    found = headlines(blurred, stories, tale, places)
    for name, value in reference(blurred, stories, texts.content(tale.text, places.texts), tale.quality).items():
        assert found[name].value == pytest.approx(value, rel=1e-6, abs=2e-7), name
        assert found[name].ci_low <= value <= found[name].ci_high
        assert found[name].samples == 8
    assert 3 < found["perplexity"].value < 6, "its maker gives 4.16 on such stories"
    assert 0 < found["kl_divergence"].value < 0.01
    assert found["perplexity"].engine.endswith("float32")


@pytest.mark.integration
@pytest.mark.shared
def test_a_base_has_no_paired_numbers_and_beside_itself_differs_by_nothing(stories: Path, places: Places) -> None:
    alone = headlines(stories, None, QUICK, places)
    assert not {"kl_divergence", "perplexity_ratio", "same_top_token", "decode_speedup", "prefill_speedup"} & set(alone)
    assert alone["bits_per_weight"].value == 32
    assert alone["disk_size"].value == sum(path.stat().st_size for path in stories.iterdir() if path.suffix != ".md")
    assert 0 < alone["peak_memory"].value < 200e6
    assert all(one.unit and one.interval and one.protocol and one.engine and one.measured_at for one in alone.values())
    beside = {name: one.value for name, one in headlines(stories, stories, QUICK, places).items()}
    assert (beside["kl_divergence"], beside["perplexity_ratio"], beside["same_top_token"]) == (0.0, 1.0, 1.0)
    assert (beside["delta_perplexity"], beside["rms_delta_probability"]) == (0.0, 0.0)
    assert 0.5 < beside["decode_speedup"] < 2
    assert 0.5 < beside["prefill_speedup"] < 2
    assert beside["perplexity"] == pytest.approx(alone["perplexity"].value, rel=1e-9)


@pytest.mark.integration
@pytest.mark.shared
def test_what_is_told_beside_the_headline_numbers(stories: Path, blurred: Path, places: Places) -> None:
    found = measure(blurred, stories, QUICK, places=places)
    points = [one for one in found.measurements if one.conditions]
    assert {tuple(one.conditions.items()) for one in points if one.metric == "decode_speedup"} == {
        (("mode", "eager"), ("batch", 2), ("context", 16))
    }
    caches = {one.conditions["context"]: one.value for one in points if one.metric == "kv_cache_memory" and one.basis == "measured"}
    assert max(caches) == 64, "shorter ones are taken for the formula"
    assert any("600" in note for note in found.notes), "a context that the model does not take"
    assert any("4096" in note for note in found.notes)
    (scores,) = found.scores
    assert scores.source == "windows"
    assert len(scores.values["perplexity"]) == len(scores.values["kl_divergence"]) == scores.samples == 4
    assert len(scores.tokenizer_sha256) == 64
    assert "load_average_before" in found.state
    assert found.layers


@pytest.mark.integration
@pytest.mark.shared
def test_a_protocol_measures_its_sections_and_nothing_else(stories: Path, shared: Path, places: Places) -> None:
    only = Protocol(name="only-tasks", tasks=Tasks(names=("piqa",), limit=4, shots=0, seed=1))
    found = measure(stories, None, only, places=replace(places, data=shared / "data"))
    assert {one.metric for one in found.measurements} == {"accuracy", "normalized_accuracy"}
    assert [one.source for one in found.scores] == ["piqa"]
    text_only = replace(QUICK, name="only-quality", speed=None, memory=None)
    metrics = {one.metric for one in measure(stories, None, text_only, places=places).measurements}
    assert metrics == {"perplexity", "bits_per_byte"}


def test_what_no_metric_tells_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text("import no_such_library")
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    monkeypatch.setattr(metrics.__spec__, "submodule_search_locations", metrics.__path__)
    notes: list[str] = []
    usable = measuring._usable(notes, paired=False)
    assert len(notes) == 1
    assert re.fullmatch(r"broken was not measured: .*no_such_library.*\.", notes[0])
    tasks = tuple(
        TaskResult(task=task, version="1", estimates={metric: intervals.exact(1)})
        for task, metric in (("gsm8k", "exact_match"), ("piqa", "acc"))
    )
    seen = Observed(tasks=tasks)
    found = list(measuring._measurements(usable, {}, seen, QUICK, "engine", "now"))
    assert measuring._untold(seen, found) == ["gsm8k: no metric makes a number of exact_match."]


def test_a_perplexity_too_large_for_a_float_is_infinite() -> None:
    found = intervals.exp_mean([700.0, 800.0])
    assert (found.value, found.high) == (math.inf, math.inf)
    assert found.low < found.value


@pytest.mark.integration
@pytest.mark.shared
def test_models_that_cannot_be_measured_say_why(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(UnfitModel, match="takes 512 tokens"):
        measure(stories, None, replace(QUICK, quality=Quality(sequence_length=1024, windows=4)))
    with pytest.raises(UnknownName, match="is not here"):
        measure(stories, None, protocols.load("wikitext2-paper@512"))
    with pytest.raises(BadCheckpoint):
        measure(tmp_path, None, QUICK)
    folder = tmp_path / "unknown-method"
    shutil.copytree(stories, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "modelopt"}}))
    with pytest.raises(Unavailable, match="modelopt"):
        measure(folder, None, QUICK)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    with pytest.raises(BadCheckpoint, match="no stored tensor fills"):
        measure(folder, None, QUICK)


@pytest.mark.integration
@pytest.mark.shared
def test_what_is_missing_is_found_before_any_work(stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: object) -> None:
        raise AssertionError("work was begun")

    def refused(kind: type[ModelPressError], words: str, protocol: Protocol, base: Path | None = None) -> None:
        with work.offline(), pytest.raises(kind, match=words):
            measure(stories, base, protocol, places=Places(data=tmp_path))

    def on(text: str) -> Protocol:
        path = tmp_path / "own.txt"
        path.write_text(text, "utf-8")
        return replace(QUICK, text=texts.parse(str(path)))

    (tmp_path / "piqa.jsonl").write_text("{}", "utf-8")
    monkeypatch.setattr(memory_use, "load_repeatedly", nothing)
    monkeypatch.setattr(speed, "curve", nothing)
    refused(Unavailable, "documents of boolq", replace(QUICK, tasks=Tasks(names=("boolq",), limit=4, shots=0, seed=1)))
    refused(BadDocument, "Line 1 of .*piqa", replace(QUICK, tasks=Tasks(names=("piqa",), limit=4, shots=0, seed=1)))
    refused(UnknownName, "no task named 'pika'", replace(QUICK, tasks=Tasks(names=("pika",), limit=4, shots=0, seed=1)))
    refused(UnfitModel, "gives 0 windows of 128 tokens", on("Once upon a time."))
    refused(BadDocument, "empty", on(" \n"))
    refused(BadDocument, "empty", replace(on(" \n"), quality=None))


@pytest.mark.integration
@pytest.mark.shared
def test_a_base_that_loads_wrongly_is_no_base(stories: Path, tmp_path: Path) -> None:
    """transformers fills what no file holds with random weights, and goes on."""
    folder = tmp_path / "base"
    shutil.copytree(stories, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    with pytest.raises(BadCheckpoint, match="base loads, but wrongly: no stored tensor fills"):
        measure(stories, folder, replace(QUICK, speed=None, memory=None))


@pytest.mark.integration
@pytest.mark.shared
def test_a_cut_off_file_is_a_bad_checkpoint(stories: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(stories, folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:500_000])
    with pytest.raises(BadCheckpoint):
        measure(folder, None, QUICK)
