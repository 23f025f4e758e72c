"""The quality pass against plain float64, the base's kept states, and what is refused: on tiny models of random weights, and real ones."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub.errors import BadCheckpoint, BadDocument, ModelPressError, UnfitModel, Unstable
from hub.protocol import Quality
from runners import intervals, metrics, quality, texts
from runners.quality import Scored, Side

pytestmark = pytest.mark.integration

WINDOW_METRICS = [name for name in metrics.names() if hasattr(metrics.load(name), "per_token")]
PLAN = Quality(sequence_length=64, windows=4)
TEXT = texts.read("stdlib-heldout")[:20_000]
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return what makes a tiny random model in a folder, with the samples' tokenizer."""

    def tiny(
        seed: int = 0,
        vocabulary: int = 2048,
        *,
        kind: str = "Llama",
        context: int = 128,
        edit: Callable[[Any], None] = lambda _: None,
        **more: Any,
    ) -> Path:
        import torch
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
            **more,
        )
        torch.manual_seed(seed)
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        with torch.no_grad():
            edit(model)
        folder = tmp_path_factory.mktemp("tiny")
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(samples / "sample-llama" / name, folder / name)
        return folder

    return tiny


@pytest.fixture(scope="module")
def base(make: Make) -> Path:
    return make()


@pytest.fixture(scope="module")
def variant(make: Make) -> Path:
    """The same model with its output embedding moved a little."""
    import torch

    return make(edit=lambda model: model.lm_head.weight.add_(0.05 * torch.randn(model.lm_head.weight.shape)))


def side(folder: Path, dtype: str = "float32") -> Side:
    from runners.engines import transformers

    return Side(folder=folder, loaded=transformers.load(folder, dtype=dtype))


def run(one: Side, beside: Side | None, plan: Quality = PLAN, text: str = TEXT, cache: Path | None = None) -> Scored:
    wanted = {name: metrics.load(name) for name in WINDOW_METRICS if beside or not metrics.load(name).PAIRED}
    return quality.score(one, beside, text, plan, wanted, cache=cache)


def counted(one: Side) -> list[int]:
    """Return a list that grows by one with every forward pass of the model."""
    passes: list[int] = []
    one.loaded.model.register_forward_pre_hook(lambda *_: passes.append(1))  # type: ignore[attr-defined]
    return passes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_a_chunk_agrees_with_plain_float64(dtype: str, scale: float) -> None:
    import numpy as np
    import torch

    from runners.observations import Chunk, Room

    torch.manual_seed(0)
    kind, room = getattr(torch, dtype), Room()
    for rows in (5, 3):  # the second one uses the room of the first
        base = (scale * torch.randn(rows, 999)).to(kind)
        logits = (base.float() + 0.05 * scale * torch.randn(rows, 999)).to(kind)
        targets = torch.randint(0, 999, (rows,))
        chunk = Chunk(logits, targets, base, room)
        z, b = (tensor.double().numpy() for tensor in (logits, base))
        q, p = (row - np.log(np.exp(row - row.max(1, keepdims=True)).sum(1, keepdims=True)) - row.max(1, keepdims=True) for row in (z, b))
        np.testing.assert_allclose(chunk.nll.numpy(), -q[np.arange(rows), targets], rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(chunk.base_nll.numpy(), -p[np.arange(rows), targets], rtol=1e-9, atol=1e-13)
        np.testing.assert_allclose(chunk.divergence.numpy(), [math.fsum(row) for row in np.exp(p) * (p - q)], rtol=1e-9, atol=1e-13)
        assert chunk.top.tolist() == logits.argmax(-1).tolist()
        assert chunk.base_top.tolist() == base.argmax(-1).tolist()
        assert Chunk(base, targets, base).divergence.tolist() == [0.0] * rows


def test_masked_tokens_have_no_part_in_the_divergence() -> None:
    import torch

    from runners.observations import Chunk

    torch.manual_seed(0)
    base, logits, targets = torch.randn(3, 50), torch.randn(3, 50), torch.tensor([0, 1, 2])
    plain = Chunk(logits[:, :40], targets, base[:, :40])
    base[:, 40:] = -math.inf
    logits[:, 40:] = -math.inf
    masked = Chunk(logits, targets, base)
    assert masked.divergence.tolist() == pytest.approx(plain.divergence.tolist(), rel=1e-12)
    assert masked.nll.tolist() == pytest.approx(plain.nll.tolist(), rel=1e-12)
    logits[0, 3] = -math.inf
    assert Chunk(logits, targets, base).divergence.tolist()[0] == math.inf, "the base gives it a chance, the variant none"
    logits[1] = math.nan
    assert math.isnan(Chunk(logits, targets, base).divergence.tolist()[1])


def test_window_metrics_are_those_of_their_definitions(base: Path, variant: Path) -> None:
    import numpy as np

    mine, its = side(variant), side(base)
    found = run(mine, its)
    cut = quality.tokenize(mine, TEXT, PLAN)
    assert len(cut.ids) == 4
    columns: dict[str, list[Any]] = {"nll": [], "base": [], "kl": [], "same": []}
    for ids in cut.ids:
        z, b = (one.loaded.logits(ids[:-1]).double().numpy() for one in (mine, its))
        q, p = (np.exp(row) / np.exp(row).sum(1, keepdims=True) for row in (z, b))
        place = (np.arange(63), list(ids[1:]))
        columns["nll"].append(-np.log(q[place]))
        columns["base"].append(-np.log(p[place]))
        columns["kl"].append((p * np.log(p / q)).sum(1))
        columns["same"].append(q.argmax(1) == p.argmax(1))
    nll, other, kl, same = (np.stack(columns[name]) for name in ("nll", "base", "kl", "same"))
    change = np.exp(-nll) - np.exp(-other)
    headline = {name: metrics.load(name).summarize(found.windows[name])[0] for name in WINDOW_METRICS}
    for name, value in {
        "perplexity": np.exp(nll.mean()),
        "perplexity_ratio": np.exp(nll.mean() - other.mean()),
        "delta_perplexity": np.exp(nll.mean()) - np.exp(other.mean()),
        "kl_divergence": kl.mean(),
        "same_top_token": same.mean(),
        "rms_delta_probability": np.sqrt((change**2).mean()),
        "delta_probability": change.mean(),
        "bits_per_byte": nll.sum() / math.log(2) / sum(cut.bytes),
    }.items():
        assert headline[name].value == pytest.approx(value, rel=1e-9), name
        assert headline[name].low <= headline[name].value <= headline[name].high
        assert not headline[name].conditions
    single = metrics.load("kl_divergence").summarize(found.windows["kl_divergence"])[1:]
    expected = {percent: np.percentile(kl, percent, method="inverted_cdf") for percent in (50, 90, 95)}
    assert {one.conditions["percentile"]: one.value for one in single} == pytest.approx(expected, rel=1e-9)


def test_the_record_of_windows_tells_what_was_scored(base: Path) -> None:
    one = side(base)
    scores = run(one, None).scores
    again = run(one, None, Quality(sequence_length=64, windows=3)).scores
    assert scores.source == "windows"
    assert scores.fingerprint != again.fingerprint
    assert scores.tokenizer_sha256 == again.tokenizer_sha256
    assert set(scores.values) == {"perplexity", "bits_per_byte"}
    assert scores.sizes["tokens"] == (63,) * 4
    decode = one.loaded.decode
    whole = [len(decode(ids[1:]).encode()) for ids in quality.tokenize(one, TEXT, PLAN).ids]
    assert scores.sizes["bytes"] == tuple(whole)
    (one.folder / "tokenizer.json").rename(one.folder / "away.json")
    try:
        assert len(quality.tokenizer_sha256(one)) == 64
    finally:
        (one.folder / "away.json").rename(one.folder / "tokenizer.json")


def test_the_base_runs_once_for_all_its_variants(make: Make, base: Path, variant: Path, tmp_path: Path) -> None:
    plain = [run(side(one), side(base)) for one in (variant, base)]
    its = [side(base), side(base)]
    passes = [counted(one) for one in its]
    kept = [run(side(one), beside, cache=tmp_path) for one, beside in zip((variant, base), its, strict=True)]
    assert [len(one) for one in passes] == [PLAN.windows, 0]
    assert [one.scores for one in kept] == [one.scores for one in plain]
    assert kept[1].windows["kl_divergence"].means == (0.0,) * 4, "a base beside itself"
    assert not kept[0].notes
    index = next(tmp_path.rglob("index.json"))
    assert json.loads(index.read_text())["drift"] == 0.0
    size = sum(path.stat().st_size for path in index.parent.glob("*.safetensors"))
    assert size < 4 * 63 * 32 * 4 + 4 * 1000, "hidden states, not logits"
    assert run(side(variant, "bfloat16"), side(base, "bfloat16"), cache=tmp_path).scores != kept[0].scores
    assert len(list(tmp_path.rglob("index.json"))) == 2, "another dtype has states of its own"


def test_a_bases_own_measurement_is_its_one_run(base: Path, variant: Path, tmp_path: Path) -> None:
    alone, again = side(base), side(base)
    passes = [counted(one) for one in (alone, again)]
    own = run(alone, None, cache=tmp_path)
    run(side(variant), again, cache=tmp_path)
    assert [len(one) for one in passes] == [PLAN.windows, 0]
    assert own.scores.values["perplexity"] == pytest.approx(run(side(base), None).scores.values["perplexity"], rel=1e-9)


@pytest.mark.parametrize("harm", ["cut", "flip", "index", "missing"])
def test_damaged_states_are_made_again(base: Path, variant: Path, tmp_path: Path, harm: str) -> None:
    first = run(side(variant), side(base), cache=tmp_path)
    path = sorted(tmp_path.rglob("*.safetensors"))[2]
    if harm == "missing":
        path.unlink()
    elif harm == "index":
        (path.parent / "index.json").write_text("[1]")
    else:
        held = bytearray(path.read_bytes())
        held[-1] ^= 1
        path.write_bytes(bytes(held[:-100] if harm == "cut" else held))
    its = side(base)
    passes = counted(its)
    assert run(side(variant), its, cache=tmp_path).scores == first.scores
    assert len(passes) == PLAN.windows


def test_states_that_another_process_finished_meanwhile_are_left_to_it(base: Path, variant: Path, tmp_path: Path) -> None:
    """It may be reading them already."""
    first = run(side(variant), side(base), cache=tmp_path / "other")
    [theirs] = (tmp_path / "other" / "base-states").iterdir()
    place = tmp_path / "cache" / "base-states" / theirs.name
    its = side(base)

    def meanwhile(*_: Any) -> None:
        shutil.copytree(theirs, place)
        once.remove()

    once = its.loaded.model.register_forward_pre_hook(meanwhile)  # type: ignore[attr-defined]
    before = run(side(variant), its, cache=tmp_path / "cache")
    assert before.scores == first.scores
    assert not before.notes
    assert (place / "index.json").stat().st_mtime_ns == (theirs / "index.json").stat().st_mtime_ns, "copied with its time, not written anew"
    assert list(place.parent.iterdir()) == [place]


def test_states_go_when_nobody_used_them_for_long(base: Path, variant: Path, tmp_path: Path) -> None:
    def made(plan: Quality) -> Path:
        before = set(tmp_path.rglob("index.json"))
        run(side(variant), side(base), plan, cache=tmp_path)
        [new] = set(tmp_path.rglob("index.json")) - before
        return new.parent

    plans = [Quality(sequence_length=64, windows=count) for count in (2, 3)]
    old, used = (made(plan) for plan in plans)
    long_ago = time.time() - 31 * 24 * 3600
    for place in (old, used):
        os.utime(place, (long_ago, long_ago))
    run(side(variant), side(base), plans[1], cache=tmp_path)
    new = made(PLAN)
    assert set(old.parent.iterdir()) == {used, new}


def test_without_room_for_its_states_a_base_runs_beside_its_variant(
    base: Path, variant: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room._replace(free=1000))
    found = run(side(variant), side(base), cache=tmp_path)
    assert found.notes == ("The base is run again for each of its variants: there is no room to keep what it predicts.",)
    monkeypatch.undo()
    assert found.scores == run(side(variant), side(base)).scores
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_base_that_scales_its_logits_runs_beside_each_variant(make: Make, tmp_path: Path) -> None:
    folder = make(kind="Granite", logits_scaling=8.0)
    found = run(side(folder), side(folder), cache=tmp_path)
    assert "scales, caps or cuts its logits" in found.notes[0]
    assert found.windows["kl_divergence"].means == (0.0,) * 4
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_base_with_masked_tokens_is_measured_beside_its_variant(make: Make, tmp_path: Path) -> None:
    """Some models give tokens that stand for nothing a logit of minus infinity; both sides have it, so no number is touched by it."""

    def mask(model: Any) -> None:
        import torch

        head = torch.nn.Linear(32, 2048)
        head.weight.copy_(model.lm_head.weight)
        head.bias.zero_()[:3] = -math.inf  # special tokens, none of which is in the text
        model.lm_head = head

    one, its = side(make()), side(make())
    mask_free = run(one, its).windows
    import torch

    with torch.no_grad():
        for each in (one, its):
            mask(each.loaded.model)  # type: ignore[attr-defined]
    found = run(one, its, cache=tmp_path)
    assert "not all of its logits are finite" in found.notes[0]
    assert found.windows["kl_divergence"].means == (0.0,) * 4
    assert found.windows["perplexity"].means != mask_free["perplexity"].means
    assert found.windows["perplexity"].means == pytest.approx(mask_free["perplexity"].means, rel=0.1)


def edited_tokenizer(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text("utf-8"))
    edit(data)
    path.write_text(json.dumps(data), "utf-8")
    return folder


def test_a_token_that_ends_the_text_takes_no_bytes_away(make: Make) -> None:
    """Some tokenizers end a text with a token of their own, which stands for no bytes of it."""

    def end(data: dict[str, Any]) -> None:
        token = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
        data["post_processor"] = {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token["id"], "type_id": 0}}],
            "pair": [],
            "special_tokens": {token["id"]: token},
        }

    one = side(edited_tokenizer(make(), end))
    text = next(TEXT[:count] for count in range(1000, 1100) if len(one.loaded.encode(TEXT[:count])) % 2 == 0)
    cut = quality.tokenize(one, text, Quality(sequence_length=len(one.loaded.encode(text)) // 2, windows=0))
    assert cut.ids[-1][-1] == 0, "the end of the text is the end of its last window"
    assert cut.bytes[1] == len(one.loaded.decode(cut.ids[1][1:-1]).encode())


def test_bad_input_is_a_clear_failure_and_never_a_number(make: Make, base: Path) -> None:
    def refused(kind: type[ModelPressError], words: str, one: Path, its: Path | None = None, **more: Any) -> None:
        with pytest.raises(kind, match=words) as caught:
            run(side(one), side(its) if its else None, **more)
        assert caught.value.hint

    refused(BadDocument, "empty", base, text="")
    refused(BadDocument, "empty", base, text=" \n")
    refused(UnfitModel, "gives 0 windows of 64 tokens", base, text="def f(): pass")
    refused(UnfitModel, "takes 128 tokens, a window has 129", base, plan=Quality(sequence_length=129, windows=2))
    refused(UnfitModel, "base takes 32 tokens, a window has 64", base, make(context=32))
    refused(BadCheckpoint, "The tokenizer gives the token .*; the model knows the tokens 0 to 99", make(vocabulary=100))
    refused(BadCheckpoint, "The tokenizer gives the token .*; the model knows the tokens 0 to 99", base, make(vocabulary=100))
    refused(BadCheckpoint, "predicts 2048 tokens, its base 2056", base, make(vocabulary=2056))
    other = edited_tokenizer(make(), lambda data: data["model"]["merges"].pop(0))
    refused(BadCheckpoint, "cuts the text into other tokens", other, base)


def spoil(value: float, token: int | None) -> Callable[[Any], None]:
    """Return an edit that puts a value into the output embedding: of one token, or of all."""

    def edit(model: Any) -> None:
        model.lm_head.weight[slice(None) if token is None else token] = value

    return edit


@pytest.mark.parametrize(("value", "token"), [(math.nan, 7), (math.nan, None), (math.inf, None), (-math.inf, 7)])
def test_logits_that_are_no_numbers_are_never_a_number(make: Make, base: Path, tmp_path: Path, value: float, token: int | None) -> None:
    broken = make(edit=spoil(value, token))
    for one, its in ((broken, None), (broken, base), (base, broken)):
        for cache in (None, tmp_path) if its else (None,):
            with pytest.raises(Unstable, match="finite number") as caught:
                run(side(one), side(its) if its else None, cache=cache)
            assert caught.value.hint
    with pytest.raises(Unstable, match="in window 1 of 4"):
        run(side(broken), None)


def test_memory_stays_bounded_with_a_large_vocabulary(make: Make, tmp_path: Path) -> None:
    """Windows of 2047 tokens over a vocabulary of 151936, base states made and used: float64 for both would take 4.6 GiB."""
    folder = make(vocabulary=151936, tie_word_embeddings=True)
    code = f"""
import torch
from pathlib import Path
from runners import base_states, memory, metrics, quality
from runners.engines import transformers
loaded = transformers.load(Path({str(folder)!r}), dtype="bfloat16")
ids = tuple(torch.randint(0, 151936, (2048,)).tolist())
cut = quality.Cut(ids=(ids,), bytes=(5000,))
before = memory.resident()
beside, notes = base_states.beside(loaded, Path({str(folder)!r}), [ids[:-1]], Path({str(tmp_path)!r}))
assert not notes, notes
names = ("perplexity", "kl_divergence", "same_top_token")
found = quality.over_windows(base_states.Live(loaded), beside, cut, {{name: metrics.load(name) for name in names}})
assert max(found["kl_divergence"].tokens[0]) == 0.0, "a model beside itself"
print((memory.peak() - before) / 2**20)  # not getrusage: its peak is that of the process that started this one, where that was larger
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
    own = 2047 * 151936 * 2 / 2**20  # the logits of the variant's own forward pass, 593 MiB
    grown = float(done.stdout.split()[-1])
    assert grown < own + 600, f"grew by {grown:.0f} MiB"


@pytest.mark.shared
def test_neighbouring_windows_go_together_and_the_interval_knows(samples: Path, shared: Path) -> None:
    text = (shared / "data" / "wikitext-2-raw" / "wikitext-2-raw-v1.test.joined.txt").read_text("utf-8")[:60_000]
    found = run(side(samples / "sample-llama"), None, Quality(sequence_length=512, windows=0), text)
    means = found.windows["perplexity"].means
    assert len(means) > 40
    knowing, naive = intervals.exp_mean(means), intervals.exp_mean(means, of="windows, taken as independent")
    assert knowing.high - knowing.low > 1.2 * (naive.high - naive.low)
