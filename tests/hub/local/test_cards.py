"""Front matter: what is read, what is refused, what is judged wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from hub.local import cards


def card(yaml: str) -> str:
    return f"---\n{yaml}\n---\n# Title\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# nothing", {}),
        ("", {}),
        ("---\n---\n", {}),
        (card("license: mit"), {"license": "mit"}),
        ("\ufeff" + card("license: mit"), {"license": "mit"}),
        (card("license: mit").replace("\n", "\r\n"), {"license": "mit"}),
        (card("language: no"), {"language": "no"}),
        (card("language: [no, yes, on, off]"), {"language": ["no", "yes", "on", "off"]}),
        (card("flag: true\nother: False"), {"flag": True, "other": False}),
        (card("date: 2024-01-02"), {"date": "2024-01-02"}),
        (card("1: x\nnan: .nan\ninf: -.inf"), {"1": "x", "nan": "nan", "inf": "-inf"}),
        (card("a: 0x1F\nb: 1.5"), {"a": 31, "b": 1.5}),
        (card("<<: {a: 1}"), {"<<": {"a": 1}}),
        (card("x: !!set {a, b}"), {"x": ["a", "b"]}),
    ],
)
def test_reads(text: str, expected: dict[str, object]) -> None:
    found = cards.parse(text)
    if isinstance(found.get("x"), list):
        found["x"] = sorted(found["x"])
    assert found == expected


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: " + "[" * 5000 + "]" * 5000, "deeper"),
        ("a: {" * 30 + "}" * 30, "deeper"),
        ("x: " + "y" * 200_000, "larger"),
        ("- a\n- b", "mapping"),
        ("a: [1", "expected"),
        ("a: !!python/object/apply:os.system [ls]", "constructor"),
        ("a: !!int nonsense", "invalid"),
        ("? [a, b]\n: c", "unhashable"),
        ("a: \x01", "special characters"),
    ],
)
def test_refuses(yaml: str, message: str) -> None:
    with pytest.raises(cards.CardError, match=message):
        cards.parse(card(yaml))


@pytest.mark.parametrize(
    ("yaml", "error"),
    [
        ("tags: one", '"tags" must be an array'),
        ("tags: [1]", '"tags" must be an array'),
        ("pipeline_tag: [a]", '"pipeline_tag" must be a string'),
        ("base_model: 'not an id'", '"base_model" must be model ids'),
        ("base_model: a/b\nbase_model_relation: cousin", '"base_model_relation"'),
        ("language: English", '"language" must be ISO'),
        ("model-index: {}", '"model-index" must be an array'),
        ("model-index: [{name: x}]", "must have a name and results"),
        ("model-index: [{name: x, results: [{task: {type: t}}]}]", "dataset"),
        ("a: &x [1]\nb: *x", "Invalid YAML metadata"),
    ],
)
def test_errors(yaml: str, error: str) -> None:
    errors, _ = cards.validate(card(yaml))
    assert any(error in found for found in errors), errors


@pytest.mark.parametrize(
    ("yaml", "warning"),
    [("license: psf-2.0", "not one of the Hub's identifiers"), ("license: other", "license_name"), ("", "empty or missing")],
)
def test_warnings(yaml: str, warning: str) -> None:
    errors, warnings = cards.validate(card(yaml))
    assert errors == []
    assert any(warning in found for found in warnings)


def test_a_full_card_is_fine() -> None:
    yaml = """license: apache-2.0
language: [en, zh-Hans, code]
base_model: modelpress-samples/sample-llama
base_model_relation: quantized
library_name: transformers
pipeline_tag: text-generation
tags: [gptq, 4-bit]
model-index:
- name: x
  results:
  - task: {type: text-generation}
    dataset: {type: stdlib, name: stdlib}
    metrics: [{type: perplexity, value: 12.3}]"""
    assert cards.validate(card(yaml)) == ([], [])


@pytest.mark.shared
def test_cards_of_the_real_client(shared: Path) -> None:
    """The sample cards of huggingface_hub's own tests: the valid ones pass, the invalid ones are refused."""
    folder = shared / "data/hub-snapshots/huggingface_hub-cards/tests/fixtures/cards"
    verdicts = {path.name: cards.validate(path.read_bytes().decode()) for path in folder.glob("*.md")}
    assert verdicts["sample_simple.md"][0] == []
    assert verdicts["sample_simple_model_index.md"][0] == []
    assert verdicts["sample_windows_line_breaks.md"][0] == []
    assert verdicts["sample_no_metadata.md"] == ([], verdicts["sample_no_metadata.md"][1])
    assert verdicts["sample_invalid_card_data.md"][0]
