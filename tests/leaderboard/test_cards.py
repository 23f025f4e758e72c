from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hub.domain import Protocol, Step, Thresholds, VariantRecord
from hub.errors import PolicyRefusal
from leaderboard import cards, frontmatter, words
from leaderboard.cards import Change, Extras

GOLDEN = Path(__file__).parents[1] / "golden"
LOCAL = "http://127.0.0.1:8757"
PROTOCOL = Protocol(
    name="stdlib-heldout@512",
    text="stdlib-heldout",
    text_sha256="e" * 64,
    sequence_length=512,
    windows=96,
    prompt_tokens=128,
    new_tokens=64,
    repeats=5,
    warmup=1,
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


def render(
    make: SimpleNamespace, record: VariantRecord, *, hub_url: str = cards.PUBLIC_HUB, extras: Extras = cards.NOTHING_MORE, **base: object
) -> str:
    name = f"modelpress/tiny-llama-{record.recipe.name}"
    return cards.render(record, make.base(**base), family(make), repo_id=name, hub_url=hub_url, extras=extras)


def matter(card: str) -> dict[str, object]:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.mark.parametrize("index", [0, 1, 2], ids=["gptq", "wanda", "student"])
def test_cards_are_as_looked_at(make: SimpleNamespace, index: int) -> None:
    """The golden cards were read by a person; UPDATE_GOLDEN=1 writes them anew, then read them again."""
    record = family(make)[index]
    changes = (Change(day="2026-11-23", what="artifact new replaces old"),) if index == 0 else ()
    notices = ("Built with Llama.",) if index == 1 else ()
    repos = ((family(make)[0].variant_id, "modelpress/tiny-llama-gptq-w4a16-g128"),)
    extras = Extras(protocol=PROTOCOL, changes=changes, notices=notices, sibling_repos=repos)
    card = render(make, record, hub_url=LOCAL if index == 2 else cards.PUBLIC_HUB, extras=extras)
    path = GOLDEN / f"card-{record.recipe.name}.md"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(card, encoding="utf-8")
    assert card == path.read_text(encoding="utf-8")


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
    assert frontmatter.bits(scheme) == bits


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


def test_only_another_hub_needs_its_address(make: SimpleNamespace) -> None:
    record = family(make)[0]
    assert "HF_ENDPOINT" not in render(make, record)
    assert f"export HF_ENDPOINT={LOCAL}\n" in render(make, record, hub_url=LOCAL)


def test_siblings_that_did_not_pass_are_left_out(make: SimpleNamespace) -> None:
    record = family(make)[0]
    failed = make.variant(make.recipe("bad", steps=(Step(method="rtn", scheme="W2A16"),)), kl=5.0)
    other = replace(make.variant(make.recipe("elsewhere")), base=replace(make.ref, sha="f" * 40))
    card = cards.render(record, make.base(), [record, make.judged(failed), other], repo_id="modelpress/x", hub_url=cards.PUBLIC_HUB)
    assert "W2A16" not in card
    assert "elsewhere" not in card


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
    assert "<img" not in html
    assert "\u202e" not in card
    assert "{{ 7*7 }}" in html
    assert "rm -rf" not in body.split("```bash")[1].split("```")[0]
    assert all(address.startswith("https://huggingface.co/") for address in re.findall(r'href="([^"#][^"]*)"', html))
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
