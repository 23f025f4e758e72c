"""Measuring against plain references: real models, float64 by hand."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Protocol
from hub.errors import BadCheckpoint, BadDocument, UnfitModel
from runners import intervals, protocols, quality, texts

QUICK = replace(protocols.load(protocols.QUICK), windows=4, sequence_length=128, prompt_tokens=16, new_tokens=4)


@pytest.fixture(scope="module")
def stories(shared: Path) -> Path:
    return shared / "models" / "stories260K"


@pytest.fixture(scope="module")
def tale(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Protocol:
    """The protocol on real stories: 8 windows of 256 tokens."""
    stories = json.loads((shared / "data" / "tinystories-sample" / "tinystories_1000.json").read_text("utf-8"))
    lines = [story if isinstance(story, str) else str(story.get("text", story)) for story in list(stories)[:60]]
    path = tmp_path_factory.mktemp("texts") / "tale.txt"
    path.write_text("\n\n".join(lines), "utf-8")
    return replace(QUICK, text=str(path), text_sha256=texts.sha256(str(path)), windows=8, sequence_length=256)


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


def reference(folder: Path, base: Path, protocol: Protocol) -> dict[str, Any]:
    """Perplexity, KL and agreement by the definition, with nothing of ours: one window at a time, float64 softmax, plain sums."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = [AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval() for place in (folder, base)]
    ids = AutoTokenizer.from_pretrained(folder)(Path(protocol.text).read_text("utf-8"))["input_ids"]
    length, total = protocol.sequence_length, len(ids) // protocol.sequence_length
    nll, base_nll, kl, same = [], [], [], []
    for index in range(protocol.windows):
        start = index * total // protocol.windows * length
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
    return {
        "perplexity": math.exp(np.mean(nll)),
        "perplexity_ratio": math.exp(np.mean(nll)) / math.exp(np.mean(base_nll)),
        "kl_divergence": float(np.mean(kl)),
        "same_top_token": float(np.mean(same)),
    }


@pytest.mark.integration
@pytest.mark.shared
def test_quality_agrees_with_an_independent_reference(stories: Path, blurred: Path, tale: Protocol) -> None:
    from runners.measure import measure

    found = {one.metric: one for one in measure(blurred, stories, tale)}
    for name, value in reference(blurred, stories, tale).items():
        assert found[name].value == pytest.approx(value, rel=1e-6), name
        assert found[name].ci_low <= value <= found[name].ci_high
        assert found[name].samples == 8
    assert 3 < found["perplexity"].value < 6, "its maker gives 4.16 on such stories"
    assert 0 < found["kl_divergence"].value < 0.01
    assert found["perplexity"].engine.endswith("float32")


@pytest.mark.integration
@pytest.mark.shared
def test_a_base_has_no_paired_numbers_and_beside_itself_differs_by_nothing(stories: Path) -> None:
    from runners.measure import measure

    alone = {one.metric: one for one in measure(stories, None, QUICK)}
    assert not {"kl_divergence", "perplexity_ratio", "same_top_token", "decode_speedup", "prefill_speedup"} & set(alone)
    assert alone["bits_per_weight"].value == 32
    assert alone["disk_size"].value == sum(path.stat().st_size for path in stories.iterdir() if path.suffix != ".md")
    assert 0 < alone["peak_memory"].value < 200e6
    assert all(one.unit and one.interval and one.protocol and one.engine and one.measured_at for one in alone.values())
    beside = {one.metric: one.value for one in measure(stories, stories, QUICK)}
    assert (beside["kl_divergence"], beside["perplexity_ratio"], beside["same_top_token"]) == (0.0, 1.0, 1.0)
    assert 0.5 < beside["decode_speedup"] < 2
    assert 0.5 < beside["prefill_speedup"] < 2
    assert beside["perplexity"] == alone["perplexity"].value


def test_windows_are_whole_apart_and_spread_over_the_text() -> None:
    protocol = replace(QUICK, windows=3, sequence_length=10)
    cut = quality.windows(list(range(79)), protocol)
    assert [list(window) for window in cut] == [list(range(start, start + 10)) for start in (0, 20, 40)]
    assert len(quality.windows(list(range(79)), replace(protocol, windows=0))) == 7
    with pytest.raises(UnfitModel, match="gives 2 windows of 10"):
        quality.windows(list(range(29)), protocol)


def test_a_perplexity_too_large_for_a_float_is_infinite() -> None:
    found = intervals.exp_mean([700.0, 800.0])
    assert (found.value, found.high) == (math.inf, math.inf)
    assert found.low < found.value


def test_another_text_under_the_same_name_is_refused() -> None:
    with pytest.raises(BadDocument, match="stdlib-heldout"):
        quality.read_text(replace(QUICK, text_sha256="0" * 64))


@pytest.mark.integration
@pytest.mark.shared
def test_models_that_cannot_be_measured_say_why(stories: Path, tmp_path: Path) -> None:
    from runners.measure import measure

    with pytest.raises(UnfitModel, match="takes 512 tokens"):
        measure(stories, None, replace(QUICK, sequence_length=1024))
    with pytest.raises(BadCheckpoint):
        measure(tmp_path, None, QUICK)
    folder = tmp_path / "unknown-method"
    shutil.copytree(stories, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "modelopt"}}))
    with pytest.raises(BadCheckpoint, match="modelopt"):
        measure(folder, None, QUICK)
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6}))
    with pytest.raises(BadCheckpoint, match="no stored tensor fills"):
        measure(folder, None, QUICK)


@pytest.mark.integration
@pytest.mark.shared
def test_a_cut_off_file_is_a_bad_checkpoint(stories: Path, tmp_path: Path) -> None:
    from runners.measure import measure

    folder = tmp_path / "cut"
    shutil.copytree(stories, folder)
    weights = folder / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:500_000])
    with pytest.raises(BadCheckpoint):
        measure(folder, None, QUICK)
