"""Patterns of strangers, compared with Python's own `re` where that is quick, and tried where it would never end."""

from __future__ import annotations

import re

import pytest

from hub.patterns import compiled

NAMES = [
    "lm_head",
    "model.lm_head",
    "model.layers.12.self_attn.q_proj",
    "model.layers.3.mlp.gate",
    "model.layers.3.mlp.gate_proj",
    "model.layers.x.mlp.up_proj",
    "model.layers.11.mlp.experts.5.down_proj",
    "model.layers.1.mlp.shared_expert.gate_proj",
    "model.layers.1.mlp.shared_expert_gate",
    "vision_model.encoder.layers.0.fc1",
    "model.visual.blocks.0.attn.qkv",
    "block.0",
    "a",
    "aa",
    "ab",
    "b",
    ".mlp.",
    "model-layers-3-mlp-gate",
]


@pytest.mark.parametrize(
    "form",
    [
        ".*lm_head", ".*lm_head.*", ".*mlp.gate$", r".*mlp\.gate$", r"model.layers.\d+.self_attn.*", r"^model\.layers\.(1|11)\..*",
        ".*(up|gate)_proj", r".*mlp\.(?:up|gate|down)_proj$", r".*self_attn\.(q|k|v|o)_proj$", "vision_model.*", r".*block.*\.\d",
        r".*mlp(\.shared_expert)?\.gate_proj$", r"model\.layers\.[0-9]+\.mlp\.experts\.[0-9]+\..*", r"[^.]*\.layers.*", "a?a?aa", "a|ab$",
        r".*(visual|vision_model)\..*", r".*\.mlp\.shared_expert_gate$", "", "^$", "a+b?", r"\w+\.\S+q_proj", r"model\..*?gate", "a??b",
        "((a|b)?b|lm(_(head))?)$",
    ],
)  # fmt: skip
def test_what_quantizers_write_fits_as_it_does_for_re(form: str) -> None:
    pattern = compiled(form)
    assert pattern is not None
    assert {name: pattern.match(name) for name in NAMES} == {name: re.match(form, name) is not None for name in NAMES}


def test_what_would_take_re_for_ever_is_quick_or_not_tried() -> None:
    for form in ("a?" * 12 + "a" * 40 + "$", ".*" * 12 + "b", "a*" * 12 + "b$", "(a|a)" * 6 + "a*" * 6 + "b"):
        pattern = compiled(form)
        assert pattern is not None
        assert not pattern.match("a" * 300 + "c")
    untried = (
        "(a|a)" * 50 + "b", "a?" * 50 + "a" * 50, "(a+)+$", "(a|a)*$", "a*" * 40, "a{2}", "(ab){9}", "(?!x)a", "a(?=b)", r"(a)\1", r"a\b",
        "a**", "a*??", "a*+", "[", "(", ")", "a$b", "a^", "[z-a]", "(" * 299, "x" * 301, "é{1,9}", "(?i)a", "(?P<n>a)", r"\x61", "[[a]",
    )  # fmt: skip
    assert [form for form in untried if compiled(form) is not None] == []
