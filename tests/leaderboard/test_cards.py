from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hub.domain import Calibration, Measurement, Recipe, Step, StepRecord, Thresholds
from hub.errors import PolicyRefusal
from hub.history import Audit, Check, Release, ReleaseChange, VariantRecord, Verdict
from hub.local import cards as hub_cards
from hub.protocol import Memory, Protocol, Quality, Speed, Tasks, Text
from leaderboard import cards, families, frontmatter, looks, notices, overtaking, siblings, words
from leaderboard.cards import Change, Extras
from leaderboard.rows import State, state_of

GOLDEN = Path(__file__).parents[1] / "golden"
LOCAL = "http://127.0.0.1:8757"
PROTOCOL = Protocol(
    name="stdlib-heldout@512",
    text=Text(name="stdlib-heldout", sha256="e" * 64),
    quality=Quality(sequence_length=512, windows=96),
    speed=Speed(batches=(1,), contexts=(128,), modes=("eager",), new_tokens=64, repeats=5, seconds=0.0, warmup=1),
    memory=Memory(contexts=(), loads=3),
)
FURTHER = (
    Protocol(name="tasks-quick", tasks=Tasks(names=("boolq", "piqa"), limit=100, shots=0, seed=1234)),
    Protocol(
        name="serving",
        text=Text(name="stdlib-heldout", sha256="e" * 64),
        speed=Speed(batches=(1, 8, 64), contexts=(256,), modes=("compiled",), new_tokens=64, repeats=10, seconds=3.0, warmup=3),
    ),
)
HOSTILE = (
    "x | y `z` <script>alert(1)</script> [click](javascript:alert(1)) ![i](http://evil.example/i.png) "
    "www.evil.example\n# Heading\n---\n\u202e&copy; {{ 7*7 }}"
)


def wanda(make: SimpleNamespace, decode: float = 208.0) -> VariantRecord:
    recipe = make.recipe(
        "wanda-50",
        title="Wanda, half of the weights set to zero",
        summary="Unstructured pruning by weight times activation norm.",
        format="dense",
        track="research",
        steps=(Step(method="wanda", scheme="unstructured", params={"sparsity": 0.5}),),
        thresholds=Thresholds(kl_divergence=1.0, perplexity_ratio=2.0),
    )
    return make.judged(make.variant(recipe, kl=0.31, ratio=1.6, decode=decode, size=8_600_000))


def student(make: SimpleNamespace) -> VariantRecord:
    recipe = make.recipe(
        "depth-distil",
        title="Half the layers, distilled",
        summary="Every other layer is dropped and the rest learns from the base.",
        format="dense",
        steps=(Step(method="depth_prune", scheme="depth"), Step(method="distil", scheme="logits")),
        thresholds=Thresholds(kl_divergence=2.0, perplexity_ratio=3.0),
    )
    return make.judged(make.variant(recipe, kl=0.9, ratio=1.9, decode=400.0, size=5_000_000))


def family(make: SimpleNamespace) -> tuple[VariantRecord, ...]:
    return make.judged(make.variant()), wanda(make), student(make)


SHOWN = Calibration(text="stdlib-calibration", samples=32, sequence_length=512)


def packed(make: SimpleNamespace) -> VariantRecord:
    """A quantized variant of which everything is told: one layer would not be quantized."""
    layers = {"model.layers.0.mlp.up_proj": {"damp": 0.05}, "model.layers.1.mlp.up_proj": {"damp": 0.1}}
    failed = {"model.layers.1.mlp.down_proj": {"kept": "its Hessian is not positive definite, even with damping 0.5"}}
    note = "Pressed again on the same machine with as many threads, the bytes are the same; other hardware sums in another order."
    step = StepRecord(method="gptq", text_sha256="1" * 64, samples_sha256="2" * 64, layers=layers | failed, notes=(note,))
    errors = make.layers(**{"0": 0.04, "0__mlp__up_proj": 0.021, "0__mlp__gate_proj": 0.0201, "1__mlp__up_proj": 0.113})
    record = make.judged(make.variant(steps=(step,), layers=errors))
    gpu = replace(make.machine, hardware="Example GPU 80GB", device="cuda")
    environments = {make.protocol: make.machine, "serving": gpu}
    return replace(record, measurements=(*record.measurements, *points(make), *serving(make)), environments=environments)


def serving(make: SimpleNamespace) -> list[Measurement]:
    """Speed on a GPU, where the variant is faster at batch 1 and the base from batch 8 on."""
    found = [make.measured("decode_tokens_per_second", 300.0, 5.0), make.measured("decode_speedup", 1.31, 0.03)]
    for batch, speed, ratio in ((8, 1700.0, 0.97), (64, 5200.0, 0.55)):
        point = {"mode": "compiled", "batch": batch, "context": 256}
        found.append(replace(make.measured("decode_tokens_per_second", speed, 9.0), conditions=point))
        found.append(replace(make.measured("decode_speedup", ratio, 0.02), conditions=point))
    return [replace(one, protocol="serving", engine="vllm 0.30.0 bfloat16") for one in found]


def points(make: SimpleNamespace) -> list[Measurement]:
    """Numbers at points of curves, and what stands beside the headline numbers."""
    found = [make.measured("delta_perplexity", 0.41, 0.05), make.measured("rms_delta_probability", 0.0312, 0.0011)]
    found += [
        replace(make.measured("kl_divergence", value, value / 9), conditions={"percentile": at}) for at, value in ((50, 0.004), (99.9, 0.8))
    ]
    for batch, speed, ratio in ((1, 180.0, 0.86), (8, 900.0, 0.61)):
        point = {"mode": "eager", "batch": batch, "context": 256}
        found.append(replace(make.measured("decode_tokens_per_second", speed, 4.0), conditions=point))
        found.append(replace(make.measured("decode_speedup", ratio, 0.02), conditions=point))
        found.append(replace(make.measured("time_to_first_token", 0.082, 0.003), conditions=point))
        found.append(replace(make.measured("time_per_output_token", batch / speed, 0.0001), conditions=point))
    for context, basis in ((512, "measured"), (2048, "estimated")):
        for metric, one in (("kv_cache_memory", 4096.0), ("activation_memory", 70_000.0), ("peak_memory", 74_500.0)):
            half = 0.0 if metric == "kv_cache_memory" else context * 900.0
            found.append(replace(make.measured(metric, context * one, half), conditions={"context": context}, basis=basis))
    found += [
        replace(make.measured("accuracy", 0.41, 0.03, protocol="tasks-quick"), conditions={"task": task}) for task in ("piqa", "boolq")
    ]
    return found


def awq(make: SimpleNamespace) -> VariantRecord:
    step = Step(method="awq", scheme="W4A16", params={"group_size": 128}, calibration=SHOWN)
    recipe = make.recipe("awq-w4a16-g128", title="AWQ, 4-bit weights", summary="Scales folded into the norms.", format="awq", steps=(step,))
    return make.judged(make.variant(recipe, layers=make.layers(**{"0": 0.04, "1": 0.03, "10": 0.05})))


def low_rank(make: SimpleNamespace) -> VariantRecord:
    recipe = make.recipe(
        "svd-50",
        title="Truncated SVD, half of the weights",
        summary="Every linear layer becomes two smaller ones.",
        format="low-rank",
        track="research",
        steps=(Step(method="low_rank", scheme="svd", params={"share": 0.5}),),
    )
    ranks = {f"model.layers.{place}.mlp.up_proj": {"rank": 40 + 4 * place, "energy": 0.7 + place / 100} for place in range(8)}
    return make.judged(make.variant(recipe, kl=0.09, ratio=1.08, steps=(StepRecord(method="low_rank", layers=ranks),)))


def recovered(make: SimpleNamespace) -> VariantRecord:
    recipe = make.recipe(
        "lora-merged",
        title="A LoRA merged into dense weights",
        summary="Adapters learn from the base.",
        format="dense",
        steps=(Step(method="lora", scheme="lora", params={"rank": 16, "steps": 200}, calibration=SHOWN),),
    )
    return make.judged(make.variant(recipe, kl=0.01, ratio=0.99, size=8_612_345))


def exported(make: SimpleNamespace) -> VariantRecord:
    recipe = make.recipe(
        "gguf-q4_k_m",
        title="GGUF for llama.cpp, Q4_K_M",
        summary="One file, weights in mixed 4 and 6 bits.",
        format="gguf",
        steps=(Step(method="gguf", scheme="Q4_K_M"),),
    )
    engine = "llama-cpp-python 0.3.36 float32"
    record = make.variant(recipe, kl=0.02, file="tiny-llama-Q4_K_M.gguf", engine=engine)
    return make.judged(record, make.facts(engine=engine))


def unknown(make: SimpleNamespace) -> VariantRecord:
    recipe = make.recipe("x", title="Unknown", summary="No such format.", format="x/../y", steps=(Step(method="x", scheme="W4A16"),))
    return make.judged(make.variant(recipe, file="weights.bin"))


def released(record: VariantRecord, *, why: str | None = None, newer: str | None = "modelpress/tiny-llama-lora-2") -> VariantRecord:
    """The record with a release of its artifact, deprecated where `why` is given."""
    assert record.artifact is not None
    release = Release(
        variant_id=record.variant_id,
        repo_id=f"modelpress/tiny-llama-{record.recipe.name}",
        sha="9" * 40,
        artifact_digest=record.artifact.digest,
        url="",
        released_at="2026-11-21T00:00:00+00:00",
        retired_at="2026-11-24T09:00:00+00:00" if why else None,
        retired_why=why,
        new_version=newer,
    )
    return replace(record, release=release)


def audit(make: SimpleNamespace, record: VariantRecord, reason: str = "") -> Audit:
    """An audit that measured the divergence again, on a sample."""
    sample = "stdlib-heldout@512[16 of 96 windows]"
    again, before = (replace(make.measured("kl_divergence", found, 0.0009), protocol=sample) for found in (0.0124, 0.0125))
    return Audit(
        variant_id=record.variant_id,
        repo_id="modelpress/x",
        sha="9" * 40,
        at="2026-12-24T09:00:00+00:00",
        passed=not reason,
        reason=reason,
        libraries={"torch": "2.14.0", "transformers": "5.18.0", "nncf": "3.5.0"},
        measurements=() if reason else (again, replace(before, conditions=notices.RECORDED)),
    )


EVERY = (packed, awq, wanda, student, low_rank, recovered, exported)


def render(
    make: SimpleNamespace, record: VariantRecord, *, hub_url: str = cards.PUBLIC_HUB, extras: Extras = cards.NOTHING_MORE, **base: object
) -> str:
    name = f"modelpress/tiny-llama-{record.recipe.name}"
    return cards.render(record, make.base(**base), family(make), repo_id=name, hub_url=hub_url, extras=extras)


def matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("maker", EVERY)
def test_cards_are_as_looked_at(make: SimpleNamespace, maker: Callable[[SimpleNamespace], VariantRecord]) -> None:
    """The golden cards were read by a person; UPDATE_GOLDEN=1 writes them anew, then read them again."""
    record = released(maker(make), why="a later press is closer to the base") if maker is recovered else maker(make)
    changes = (Change(day="2026-11-23", what="artifact new replaces old"),) if maker is packed else ()
    repos = ((family(make)[0].variant_id, "modelpress/tiny-llama-gptq-w4a16-g128"),)
    extras = Extras(protocol=PROTOCOL, further=FURTHER if maker is packed else (), changes=changes, sibling_repos=repos)
    if maker in (packed, exported):
        extras = replace(extras, audit=audit(make, record, reason="" if maker is packed else "the file no longer loads"))
    licence = {wanda: "llama3.2", low_rank: "gemma"}.get(maker, "apache-2.0")
    card = render(make, record, hub_url=LOCAL if maker is student else cards.PUBLIC_HUB, extras=extras, license=licence)
    path = GOLDEN / f"card-{record.recipe.name}.md"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(card, encoding="utf-8")
    assert card == path.read_text(encoding="utf-8")


def test_what_the_steps_did_is_told(make: SimpleNamespace) -> None:
    card = render(make, packed(make))
    assert "left 1 layer in the base's precision, as it came: `model.layers.1.mlp.down_proj`. Reason: its Hessian is not" in card
    assert "largest: `model.layers.1.mlp.up_proj` 11 %, `model.layers.0.mlp.up_proj` 2.1 %" in card
    assert "median 2.1 % over 3 linear layers" in card
    assert f"token windows of SHA-256 `{'2' * 64}`" in card
    assert "gptq, layer by layer: damp 0.0500 (1), 0.100 (1)." in card
    assert "1 more stayed in the base's precision, as the manifest says: model.layers.1.mlp.down\\_proj." in card
    assert "median 4.0 % over 3 decoder layers" in render(make, awq(make))
    assert "rank 40 to 68, median 54.0" in render(make, low_rank(make))


def test_every_format_says_how_it_is_loaded(make: SimpleNamespace) -> None:
    formats = {record.recipe.format: record for record in (maker(make) for maker in (*EVERY, unknown))}
    assert {name: matter(render(make, record)).get("library_name") for name, record in formats.items()} == {
        "gptq": "transformers",
        "awq": "transformers",
        "dense": "transformers",
        "x/../y": "transformers",
        "low-rank": None,
        "gguf": "gguf",
    }
    for record in formats.values():
        use = render(make, record).split("## Use it\n")[1].split("\n## ")[0]
        assert "```bash" in use
        assert f"modelpress/tiny-llama-{record.recipe.name}" in use
    assert "`weights.bin` is in the format `x/../y`" in render(make, formats["x/../y"])
    card = render(make, exported(make))
    assert matter(card)["base_model_relation"] == "quantized"
    assert "loads in a clean process with llama-cpp-python 0.3.36 float32" in card
    assert (
        "The base ran in transformers 5.17.0 bfloat16: its speed, load time and memory beside the variant's are those of two engines"
        in card
    )
    assert "two engines" not in render(make, awq(make))
    assert "| 0.45 ± 0.04 ×, in llama-cpp-python |" in card
    assert "the base's speed, both timed in turns (it in llama-cpp-python, the base in transformers): **slower" in card


def test_every_shipped_format_has_lines_that_load_it() -> None:
    from runners import recipes

    assert "other" not in {words.usage(recipes.load(name).format) for name in recipes.names()}


def test_a_card_of_a_large_family_stays_short(make: SimpleNamespace) -> None:
    others = [
        make.judged(make.variant(make.recipe(f"gptq-{index}", format="gptq", **steps(index)), kl=0.01 + index / 1e3)) for index in range(80)
    ]
    record = others[40]
    card = cards.render(record, make.base(), others, repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB)
    table = card.split("| Variant | Method")[1].split("\n\n")[0]
    assert table.count("\n| ") <= 14
    assert "**gptq-40** (this one)" in table
    assert "gptq-0" in table, "nothing beats it"
    assert "of the 80 variants" in card
    assert all(len(line) < 300 for line in card.split("## Which variant to take")[1].split("|")[0].splitlines())


def steps(index: int) -> dict[str, object]:
    return {"steps": (Step(method="gptq", scheme="W4A16", params={"seed": index}),)}


def recipe_of(*pairs: tuple[str, str]) -> Recipe:
    steps = tuple(Step(method=method, scheme=scheme) for method, scheme in pairs)
    return Recipe(
        name="r", title="R", summary="R.", format="dense", steps=steps, thresholds=Thresholds(kl_divergence=1, perplexity_ratio=2)
    )


def test_families_are_those_that_the_methods_name() -> None:
    from runners import methods

    found = {(info.name, scheme): info.family for info in methods.available() if info.family != "broken" for scheme in info.schemes}
    assert {key: families.family_of(Step(method=key[0], scheme=key[1])) for key in found} == found
    assert set(found.values()) <= set(families.FAMILIES)
    assert families.family(recipe_of(("width_prune", "width"), ("distil", "logits"), ("rtn", "W4A16"))) == "chain"
    assert families.family(recipe_of(("wanda", "2:4"), ("lora", "lora"))) == "recovery"
    assert families.family(recipe_of(("student", "layers"), ("distil", "logits"))) == "distillation"


def test_the_same_record_gives_the_same_bytes_in_another_process(make: SimpleNamespace) -> None:
    record = family(make)[0]
    assert render(make, record) == render(make, record)
    assert not re.search(r"\n{3,}|[ \t]+\n", render(make, record))


def test_the_hubs_own_reader_takes_the_card(make: SimpleNamespace) -> None:
    for record in family(make):
        card = ModelCard(render(make, record))
        data = card.data
        assert data.base_model == ["sample-org/tiny-llama"]
        assert data.library_name == "transformers"
        assert data.pipeline_tag == "text-generation"
        results = {result.metric_type: result for result in data.eval_results}
        assert results["kl_divergence"].dataset_name == "stdlib-heldout@512"
        assert results["decode_tokens_per_second"].source_url == f"https://huggingface.co/modelpress/tiny-llama-{record.recipe.name}"
        assert set(results) == {
            "perplexity",
            "perplexity_ratio",
            "kl_divergence",
            "same_top_token",
            "prefill_tokens_per_second",
            "decode_tokens_per_second",
        }


def test_what_was_done_is_in_relation_and_tags(make: SimpleNamespace) -> None:
    quantized, pruned, distilled = (matter(render(make, record)) for record in family(make))
    assert (quantized["base_model_relation"], quantized["quantized_by"]) == ("quantized", "modelpress")
    assert {"gptq", "4-bit", "w4a16", "modelpress"} <= set(quantized["tags"])
    assert (pruned["base_model_relation"], "quantized_by" in pruned) == ("finetune", False)
    assert {"pruned", "wanda", "unstructured", "research"} <= set(pruned["tags"])
    assert {"pruned", "distilled"} <= set(distilled["tags"])
    assert not {"depth", "logits"} & set(distilled["tags"]), "a word of another meaning on the Hub"
    mixed = recipe_of(("mixed", "WxA16"))
    assert frontmatter.relation(mixed) == "quantized", "its scheme names no single width"
    assert "mixed-precision" in frontmatter.tags(mixed, make.base())
    fresh = recipe_of(("student", "random"), ("distil", "logits"))
    assert frontmatter.relation(fresh) == "finetune"
    assert "pruned" not in frontmatter.tags(fresh, make.base())


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        ("W4A16", 4),
        ("W8A8", 8),
        ("NF4", 4),
        ("FP8_DYNAMIC", 8),
        ("NVFP4A16", 4),
        ("MXFP4", 4),
        ("INT8", 8),
        ("W3A16", 3),
        ("2:4", None),
        ("50%", None),
    ],
)
def test_bits_of_a_scheme(scheme: str, bits: int | None) -> None:
    assert families.bits(scheme) == bits


def test_the_licence_is_copied_from_the_base(make: SimpleNamespace) -> None:
    record = family(make)[0]
    data = matter(render(make, record, license="other", license_name="tiny-licence", license_link="LICENSE"))
    address = "https://huggingface.co/sample-org/tiny-llama/blob/0123456789abcdef0123456789abcdef01234567/LICENSE"
    assert (data["license"], data["license_name"], data["license_link"]) == ("other", "tiny-licence", address)
    assert f"Licence: [tiny-licence]({address})" in render(
        make, record, license="other", license_name="tiny-licence", license_link="LICENSE"
    )
    assert "license_link" not in matter(render(make, record, license_link="javascript:alert(1)"))


def test_a_licence_file_in_the_artifact_is_linked_there(make: SimpleNamespace) -> None:
    record = family(make)[0]
    assert record.artifact is not None
    files = (*record.artifact.files, replace(record.artifact.files[0], path="LICENSE"))
    record = replace(record, artifact=replace(record.artifact, files=files))
    assert matter(render(make, record, license_link="LICENSE"))["license_link"] == "LICENSE"


def test_slower_than_the_base_is_said(make: SimpleNamespace) -> None:
    card = render(make, family(make)[0])
    assert "decodes at **0.45 ± 0.04 ×** the base's speed, both timed in turns: **slower than the base**" in card
    assert "It decodes more slowly than the base" in card
    assert "**faster than the base**" in render(make, student(make))
    unsure = render(make, wanda(make))
    assert "the base's speed, both timed in turns: no difference can be told" in unsure
    assert "decodes more slowly" not in unsure


@pytest.mark.parametrize("decode", [120.0, 300.0])
def test_zeros_in_dense_weights_give_neither_speed_nor_size(make: SimpleNamespace, decode: float) -> None:
    """Whatever a restless machine measured."""
    card = render(make, wanda(make, decode))
    assert "**As large as the base** on disk" in card
    assert "zeros among the weights make neither the file smaller nor ordinary kernels faster" in card
    assert "no gain or loss" in card
    assert not [words for words in ("faster than the base", "slower than the base", "decodes more slowly", "peak memory.") if words in card]


def test_only_what_nothing_surely_beats_is_named(make: SimpleNamespace) -> None:
    """A chain of overlaps from the fastest down to the base does not make the base one of the fastest."""
    chain = [
        make.judged(make.variant(make.recipe(name), decode=decode)) for name, decode in (("one", 218.0), ("two", 230.0), ("three", 242.0))
    ]
    found = dict(words.advice(make.base(), [*chain, wanda(make, 300.0)]))
    assert found["Fastest at decoding here"] == "two and three (these cannot be told apart)"


def test_a_note_of_several_steps_is_told_once_and_nothing_leaves_a_hole(make: SimpleNamespace) -> None:
    note = "Other hardware sums in another order."
    told = tuple(StepRecord(method=name, notes=(note,)) for name in ("sparsegpt", "rtn"))
    record = make.variant(make.recipe("deep", track="research"), steps=told)
    card = cards.render(record, make.base(), (), repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB)
    assert card.count(note) == 1
    assert not re.search(r"\n{3,}", card), "no advice where nothing is for serving"


def test_only_another_hub_needs_its_address(make: SimpleNamespace) -> None:
    record = family(make)[0]
    assert "HF_ENDPOINT" not in render(make, record)
    assert f"export HF_ENDPOINT={LOCAL}\n" in render(make, record, hub_url=LOCAL)


def test_deep_compression_says_what_coding_would_gain_and_that_nothing_is_coded(make: SimpleNamespace) -> None:
    size = make.measured("disk_size", 2_600_000.0)
    base = replace(make.base(), measurements=(*make.base().measurements, replace(size, metric="entropy_coded_size", value=5.6e6)))
    cards_of = []
    for pairs in (
        (Step(method="sparsegpt", scheme="unstructured"), Step(method="rtn", scheme="W4A16")),
        (Step(method="rtn", scheme="W4A16"),),
    ):
        record = make.variant(make.recipe("deep", format="compressed-tensors", steps=pairs))
        coded = replace(size, metric="entropy_coded_size", value=1.234e6)
        record = make.judged(replace(record, measurements=(*record.measurements, coded)))
        cards_of.append(cards.render(record, base, (), repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB))
    assert "the weights would take **1.23 MB**; the base's, coded in the same way, take 5.60 MB." in cards_of[0]
    assert "no engine runs coded weights" in cards_of[0]
    assert "Huffman" not in cards_of[1], "no recipe made for it"


def test_siblings_that_did_not_pass_are_left_out(make: SimpleNamespace) -> None:
    record = family(make)[0]
    failed = make.variant(make.recipe("bad", steps=(Step(method="rtn", scheme="W2A16"),)), kl=5.0)
    other = replace(make.variant(make.recipe("elsewhere")), base=replace(make.ref, sha="f" * 40))
    card = cards.render(record, make.base(), [record, make.judged(failed), other], repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB)
    assert "W2A16" not in card
    assert "elsewhere" not in card


def test_a_protocol_is_told_section_by_section() -> None:
    text = Text(name="wiki.txt", sha256="6" * 64, dataset="Salesforce/wikitext", revision="b" * 40, file="test.parquet")
    full = Protocol(
        name="all",
        text=text,
        quality=Quality(sequence_length=2048, windows=0),
        tasks=Tasks(names=("boolq", "piqa"), limit=100, shots=5, seed=1234),
        speed=Speed(batches=(1, 8), contexts=(256, 2048), modes=("compiled",), new_tokens=32, repeats=9, seconds=0.5, warmup=2),
        memory=Memory(contexts=(2048, 32768), loads=1),
    )
    quality, tasks, speed, memory = words.protocol_words(full, "all")
    assert quality == (
        f"Quality: all non-overlapping windows of 2048 tokens of the text wiki.txt (SHA-256 {'6' * 64}, test.parquet of the dataset "
        f"Salesforce/wikitext at {'b' * 40}); the tail is dropped. Variant and base see the same windows."
    )
    assert tasks == (
        "Tasks: boolq, piqa, through lm-eval; the first 100 documents of each, 5 examples before each question, drawn with seed 1234."
    )
    assert "then 32 greedy tokens in mode compiled, at least 9 times and until they took 0.5 s; warm-up" in speed
    assert speed.endswith("The same for all of: batches 1, 8; prompts 256, 2048, as far as the model and the machine allow.")
    assert memory.startswith("Memory: loaded once, with a short run. Besides at contexts of 2048, 32768 tokens")
    assert words.protocol_words(Protocol(name="all"), "all") == words.protocol_words(full, "another") == []


def test_without_a_shared_protocol_no_quality_is_stated(make: SimpleNamespace) -> None:
    record = replace(make.variant(), measurements=tuple(replace(m, protocol="other@1") for m in make.variant().measurements))
    card = render(make, record)
    assert "model-index" not in matter(card)
    assert "Variant and base share no protocol, so no quality is stated." in card
    assert "nats/token**" not in card


def test_text_from_outside_stays_text(make: SimpleNamespace) -> None:
    hostile = make.recipe(title=HOSTILE, summary=HOSTILE, steps=(Step(method=HOSTILE, scheme=HOSTILE, params={HOSTILE: HOSTILE}),))
    record = make.judged(make.variant(hostile))
    record = replace(record, environment=replace(make.machine, hardware=HOSTILE, libraries={"torch": "2; rm -rf /"}))
    words = {"license": HOSTILE, "license_name": HOSTILE, "license_link": HOSTILE, "pipeline_tag": HOSTILE, "languages": (HOSTILE,)}
    base = replace(make.base(**words), environment=record.environment)
    card = cards.render(record, base, (), repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB)
    calm_card = cards.render(make.judged(make.variant()), make.base(), (), repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB)
    body = card.split("---\n", 2)[2]
    html, calm = (MarkdownIt("commonmark").enable("table").render(text.split("---\n", 2)[2]) for text in (card, calm_card))
    assert "<script" not in html
    assert re.findall('<img src="([^"]*)"', html) == ["chart.svg"]
    assert "\u202e" not in card
    assert "{{ 7*7 }}" in html
    assert "rm -rf" not in body.split("```bash")[1].split("```")[0]
    ours = {"bench.json", "sbom.cdx.json"}
    assert all(address.startswith("https://huggingface.co/") for address in set(re.findall(r'href="([^"#][^"]*)"', html)) - ours)
    tags = [re.findall(r"<(h\d|tr|td|th|li|table)[ >]", page) for page in (html, calm)]
    assert tags[0] == tags[1], "hostile text changed the layout"
    data = matter(card)
    assert data["license_name"] == data["license"]
    assert "&" not in yaml.safe_dump(data["tags"])[:1]


@pytest.mark.parametrize("name", ["modelpress/a b", "modelpress", 'a/b"); import os', "a/../b\n"])
def test_a_repository_name_that_no_hub_allows_is_refused(make: SimpleNamespace, name: str) -> None:
    with pytest.raises(PolicyRefusal, match="no card can be written"):
        cards.render(family(make)[0], make.base(), (), repo_id=name, hub_url=cards.PUBLIC_HUB)


def test_the_code_is_python(make: SimpleNamespace) -> None:
    for tags in ((), ("conversational",)):
        card = render(make, family(make)[0], tags=tags)
        code = card.split("```python\n")[1].split("```")[0]
        ast.parse(code)
        assert ("apply_chat_template" in code) is bool(tags)


def test_cards_need_no_heavy_import() -> None:
    heavy = ("torch", "transformers", "huggingface_hub", "jinja2")
    program = f"import sys, leaderboard.cards, leaderboard.gate; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_where_the_base_overtakes_is_told_and_no_more_than_was_measured(make: SimpleNamespace) -> None:
    speed = Speed(batches=(1,), contexts=(256,), modes=("eager",), new_tokens=8, repeats=3, seconds=0.0, warmup=1)

    def told(*ratios: tuple[int, float], contexts: tuple[int, ...] = (256,)) -> list[str]:
        found = []
        for context in contexts:
            for batch, ratio in ratios:
                one = make.measured("decode_speedup", ratio, 0.05)
                place = {"mode": "eager", "batch": batch, "context": context}
                found.append(one if (batch, context) == (1, 256) else replace(one, conditions=place))
        return [str(sentence) for sentence in overtaking.sentences(found, make.protocol, speed)]

    assert told() == []
    assert told((1, 1.5)) == ["Mode `eager`, context 256: the base does not overtake within the batches measured (1)."]
    assert told((1, 0.9), (8, 0.5))[0].endswith("the base is faster at every batch measured (1, 8).")
    crossed = "**the base overtakes at batch 16** (0.80 ± 0.05 ×) of those measured (1, 4, 8, 16, 64); at batch 4 the variant is ahead"
    assert crossed in told((64, 0.5), (1, 1.5), (8, 1.02), (4, 1.2), (16, 0.8))[0]
    assert told((1, 1.02), (8, 0.8))[0].endswith("of those measured (1, 8); at smaller ones no difference can be told.")
    assert "faster at batch 1, the variant at batch 64 (measured: 1, 8, 64)" in told((1, 0.5), (8, 1.01), (64, 1.4))[0]
    assert told((1, 0.5), (8, 0.5), contexts=(256, 2048)) == [
        "Mode `eager`, context 256 and 2,048: the base is faster at every batch measured (1, 8)."
    ]
    assert "overtake" not in render(make, wanda(make), extras=Extras(protocol=PROTOCOL)), (
        "dense as the base: a machine's unrest is no order"
    )


def test_speed_is_told_by_hardware(make: SimpleNamespace) -> None:
    speed = render(make, packed(make), extras=Extras(protocol=PROTOCOL, further=FURTHER)).split("## Speed")[1].split("## Memory")[0]
    first, second = speed.split("Under protocol `serving`:")
    assert "on Example CPU 2000 (CPU" in first
    assert "5,200" in second
    assert "with vllm 0.30.0 bfloat16 on Example GPU 80GB (GPU (CUDA)" in second
    assert "**the base overtakes at batch 8** (0.970 ± 0.020 ×) of those measured (1, 8, 64); at batch 1 the variant is ahead" in second
    assert "Speed: batch 1, a prompt of 256 tokens" in second


def test_each_memory_gets_what_is_closest_to_the_base_and_no_noise(make: SimpleNamespace) -> None:
    def with_memory(name: str, memory: float, kl: float, **changes: object) -> VariantRecord:
        record = make.variant(make.recipe(name, **changes), kl=kl, size=2_000_000 + len(name))
        others = tuple(one for one in record.measurements if one.metric != "peak_memory")
        return make.judged(replace(record, measurements=(*others, make.measured("peak_memory", memory * 1e6, 1e6))))

    small, middle, same, worse = (
        with_memory(name, memory, kl)
        for name, memory, kl in (("s", 100, 0.09), ("mid", 200, 0.02), ("same", 300, 0.0199), ("wor", 250, 0.05))
    )
    larger, research = with_memory("large", 500, 0.001), with_memory("res", 110, 0.01, track="research")
    rungs = siblings.ladder(make.base(), [small, middle, same, worse, larger, research], make.protocol)
    assert [(rung.memory, rung.variant and rung.variant.recipe.name) for rung in rungs] == [(101e6, "s"), (201e6, "mid"), (416e6, None)]
    assert siblings.ladder(make.base(), [larger], make.protocol) == []
    assert siblings.ladder(make.base(), [small], "another") == []


def test_nothing_deprecated_is_recommended(make: SimpleNamespace) -> None:
    best = make.judged(make.variant(make.recipe("best", format="awq"), kl=0.001, decode=900.0))
    record = family(make)[0]
    before, after = (
        cards.render(record, make.base(), [other], repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB).split("## Quality")[0]
        for other in (best, released(best, why="it fails"))
    )
    assert "Closest to the base (KL divergence): best" in before
    assert "Closest to the base (KL divergence): gptq-w4a16-g128" in after
    assert re.findall(r"best[^|]*", after) == ["best](https://huggingface.co/modelpress/tiny-llama-best) (deprecated) "]


def test_siblings_stand_under_the_cards_protocol_alone(make: SimpleNamespace) -> None:
    """One that was measured under another protocol too, and longer there, is not shown with those numbers."""
    other = make.variant(make.recipe("other", format="awq"), kl=0.02)
    longer = [replace(one, protocol="long@2048", samples=500, value=one.value * 3, ci_low=0.0, ci_high=99.0) for one in other.measurements]
    other = make.judged(replace(other, measurements=(*other.measurements, *longer)))
    own = make.base()
    base = replace(own, measurements=(*own.measurements, *(replace(one, protocol="long@2048") for one in own.measurements)))
    card = cards.render(family(make)[0], base, [other], repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB)
    row = next(line for line in card.splitlines() if line.startswith("| other"))
    assert "0.0200 ± 0.0008" in row


def test_what_must_not_be_overlooked_stands_on_top(make: SimpleNamespace) -> None:
    record = awq(make)
    retired = released(record, why="loses more than it gains")
    card = render(make, retired)
    top = card.split("---\n", 2)[2].split("**AWQ")[0]
    link = "[modelpress/tiny-llama-lora-2](https://huggingface.co/modelpress/tiny-llama-lora-2)"
    assert f"> **Deprecated on 2026-11-24**: loses more than it gains. Take {link} in its place." in top
    assert matter(card)["new_version"] == "modelpress/tiny-llama-lora-2"
    assert "> **There is a newer version.** Take [" in render(make, released(record))
    assert "> **Deprecated on 2026-11-24**." in render(make, replace(retired, release=replace(retired.release, retired_why=None)))
    again = replace(retired, release=replace(retired.release, artifact_digest="0" * 16))
    assert "Deprecated" not in render(make, again), "another artifact was deprecated, not this one"
    assert "new_version" not in matter(render(make, again))
    with pytest.raises(PolicyRefusal, match="its new version cannot be a repository"):
        render(make, released(record, newer="x/y; rm -rf /"))


def test_what_an_audit_found_is_told(make: SimpleNamespace) -> None:
    record = awq(make)
    card = render(make, record, extras=Extras(audit=audit(make, record)))
    assert (
        f"Last verified on 2026-12-24, commit `{'9' * 40}`: it was downloaded, loaded with torch 2.14.0, transformers 5.18.0, and passed."
        in card
    )
    sample = "`stdlib-heldout@512[16 of 96 windows]`, KL divergence from the base: 0.0124 ± 0.0009 nats/token"
    assert f"Measured again under {sample} (before: 0.0125 ± 0.0009 nats/token)." in card
    assert "nncf" not in card
    broken = render(make, record, extras=Extras(audit=audit(make, record, reason=HOSTILE)))
    assert "> **The audit of 2026-12-24 found this release broken**: x \\| y" in broken.split("## Which")[0]
    assert f"Audited on 2026-12-24, commit `{'9' * 40}`: x \\| y" in broken
    assert "Last verified" not in broken


def test_what_an_audit_found_broken_is_held_back_until_it_passes_again(make: SimpleNamespace) -> None:
    record = released(awq(make), newer=None)
    found = audit(make, record, reason="it is gone")
    assert state_of(record, looks.last(record, (found,), ())) == State(
        code="held", word="Held back", detail="audited 2026-12-24: it is gone"
    )
    good = looks.last(record, (replace(found, passed=True, reason=""),), ())
    assert good
    assert (good.passed, state_of(record, good)) == (True, state_of(record))
    put = ReleaseChange(repo_id="us/x", at="2026-12-25T00:00:00+00:00", kind="replaced", what="", content="")
    assert looks.last(record, (found,), (put,)) is None, "what was audited was replaced"
    assert looks.last(record, (found,), (replace(put, kind="card"),)) is not None
    # A verification that came after it, and the other way round.
    checks = (Check(name="loads", passed=True, detail=""),)
    again = Verdict(variant_id=record.variant_id, stage="release", subject="f" * 40, checks=checks, judged_at="2026-12-25T00:00:00+00:00")
    passed = looks.last(replace(record, verdicts=(again,)), (found,), ())
    assert passed == looks.Look(at=again.judged_at, passed=True)
    broken = replace(record, verdicts=(replace(again, checks=(replace(checks[0], passed=False, detail="It does not."),)),))
    held = state_of(broken, looks.last(broken, (found,), ()))
    assert held == State(code="held", word="Held back", detail="the published bytes: loads: It does not")
    late = replace(found, at="2026-12-26T00:00:00+00:00", passed=True, reason="")
    assert state_of(broken, looks.last(broken, (late,), ())).code != "held"


def test_an_audit_of_what_was_replaced_says_nothing_of_what_is_there(make: SimpleNamespace) -> None:
    record = released(awq(make), newer=None)
    first, later = replace(audit(make, record), at="2026-12-01T00:00:00+00:00"), audit(make, record)
    old = ReleaseChange(repo_id="modelpress/x", at="2026-11-21T00:00:00+00:00", kind="released", what="", content="")
    assert notices.newest(record, (first, later), (old,)) == later
    assert notices.newest(record, (first,), (old, replace(old, kind="replaced", at="2026-12-02T00:00:00+00:00"))) is None
    assert notices.newest(record, (first,), (old, replace(old, kind="card", at="2026-12-02T00:00:00+00:00"))) == first
    assert notices.newest(awq(make), (first,), (old,)) is None, "not released"


def test_the_licence_shows_what_it_demands(make: SimpleNamespace) -> None:
    record = awq(make)
    llama = render(make, record, license="llama3.1")
    assert "\n**Built with Llama**\n" in llama.split("## Which")[0]
    assert "Use must follow the Llama 3.1 Acceptable Use Policy, which is part of the licence." in llama.split("## Licence")[1]
    assert llama.count("Built with Llama") == 1
    assert "Llama 3.1 is licensed under the Llama 3.1 Community License, Copyright © Meta Platforms, Inc." in llama
    assert "A copy of the licence lies beside the files." in llama
    assert "A copy of the licence" not in render(make, record)
    gemma = render(make, record, license="gemma").split("## Licence")[1]
    assert "Use is restricted by section 3.2 of the Gemma Terms of Use" in gemma
    assert "The files were modified" in gemma
    assert "[gemma](https://ai.google.dev/gemma/terms)" in gemma


def test_the_index_names_the_hubs_datasets_with_their_revision_and_every_task(make: SimpleNamespace) -> None:
    text = Text(name="wiki.txt", sha256="6" * 64, dataset="Salesforce/wikitext", revision="b" * 40, file="test.parquet")
    card = render(make, packed(make), extras=Extras(protocol=replace(PROTOCOL, text=text)))
    assert "&id" not in card.split("---\n")[1]
    results = {(result.dataset_type, result.metric_type): result for result in ModelCard(card).data.eval_results}
    assert results["Salesforce/wikitext", "kl_divergence"].dataset_revision == "b" * 40
    assert results["piqa", "accuracy"].dataset_name == "piqa (tasks-quick)"
    shown = Calibration(text="hub:owner/texts@main/a.parquet#text", samples=1, sequence_length=8)
    recipe = make.recipe("h", steps=(Step(method="gptq", scheme="W4A16", calibration=shown),))
    assert matter(render(make, make.judged(make.variant(recipe))))["datasets"] == ["owner/texts"]
    assert "datasets" not in matter(render(make, packed(make))), "a text of ModelPress is no dataset of the Hub"


def test_the_embedded_hub_and_the_hubs_own_reader_take_the_front_matter_of_every_family(make: SimpleNamespace) -> None:
    for maker in EVERY:
        card = render(make, released(maker(make)), license="llama3.2", languages=("en", "no"))
        assert hub_cards.validate(card) == ([], [])
        data = ModelCard(card, ignore_metadata_errors=False).data
        assert (data.license, data.language, data.new_version) == ("llama3.2", ["en", "no"], "modelpress/tiny-llama-lora-2")
