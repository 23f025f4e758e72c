from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from hub.domain import Facts
from hub.history import Check, VariantRecord, Verdict
from leaderboard.gate import judge


def judged(make: SimpleNamespace, record: VariantRecord | None = None, facts: Facts | None = None, **options: object) -> Verdict:
    record = record or make.variant()
    chosen = {"base": make.base(), "stage": "artifact", "subject": record.artifact.digest, "at": make.at, **options}
    return judge(record, facts or make.facts(), **chosen)


def check(verdict: Verdict, name: str) -> Check:
    return next(item for item in verdict.checks if item.name == name)


def test_a_sound_artifact_passes_every_check(make: SimpleNamespace) -> None:
    verdict = judged(make)
    assert verdict.passed, [item for item in verdict.checks if not item.passed]
    names = ["loads", "generates", "finite", "packed", "size", "files", "checksums", "measured", "kl_divergence", "perplexity_ratio"]
    assert [item.name for item in verdict.checks] == names
    assert all(item.detail.endswith(".") and any(char.isdigit() for char in item.detail) for item in verdict.checks)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("loads", {"loads": False, "load_error": "KeyError: 'scales'"}, "KeyError: 'scales'"),
        ("generates", {"generated_ids": ()}, "0 tokens"),
        ("finite", {"non_finite": ("model.layers.0.mlp.up_proj.scales",)}, "1 of 120 tensors hold NaN or infinity, 0 may: model.layers.0"),
        (
            "packed",
            {"packed_found": 27, "not_packed": ("lm_head",)},
            "27 of 28 layers are as promised (W4A16); all must be. The others: lm_head.",
        ),
        ("packed", {"packed_found": 0, "not_packed": tuple("abcdefghijklmnopqrst")}, "The others: a, b, c, d, e and 23 more."),
        ("packed", {"packed_found": 0, "packed_expected": 0}, "promises format gptq, yet 0 layers"),
        ("size", {"tensor_bytes_found": 2_679_000}, "2679000 B where the scheme's bits sum to 2600000 B (+3.04%)"),
        ("size", {"tensor_bytes_found": 2_510_000}, "(-3.46%); at most ±3% is allowed"),
        ("size", {"tensor_bytes_expected": 0}, "no expected size"),
        (
            "files",
            {"missing_files": ("tokenizer.json",)},
            "1 files are missing and 0 are unexpected; both must be 0. Missing: tokenizer.json.",
        ),
        ("files", {"unexpected_files": ("run.py",)}, "Unexpected: run.py."),
        ("files", {"unexpected_files": ("README.md",)}, "Unexpected: README.md."),
        (
            "checksums",
            {"checksum_errors": ("model.safetensors",)},
            "1 files differ from the SHA-256 in the manifest; 0 may. They are: model",
        ),
    ],
)
def test_a_bad_fact_fails_its_own_check_and_no_other(make: SimpleNamespace, name: str, changes: dict[str, object], words: str) -> None:
    verdict = judged(make, facts=make.facts(**changes))
    assert [item.name for item in verdict.checks if not item.passed] == [name]
    assert words in check(verdict, name).detail


@pytest.mark.parametrize("found", [2_600_000 * 1.0299, 2_600_000 * 0.9701])
def test_size_within_three_per_cent_passes(make: SimpleNamespace, found: float) -> None:
    assert check(judged(make, facts=make.facts(tensor_bytes_found=int(found))), "size").passed


def test_a_dense_recipe_may_promise_no_packed_layer(make: SimpleNamespace) -> None:
    record = make.variant(make.recipe("student", format="dense"))
    verdict = judged(make, record, make.facts(packed_expected=0, packed_found=0))
    assert check(verdict, "packed").passed


def test_the_upper_end_of_the_interval_counts_not_the_value(make: SimpleNamespace) -> None:
    inside = judged(make, make.variant(kl=0.0990))  # ± 0.0008
    outside = judged(make, make.variant(kl=0.0995))
    assert check(inside, "kl_divergence").passed
    assert not check(outside, "kl_divergence").passed
    assert check(outside, "kl_divergence").detail == (
        "KL divergence from the base is 0.0995 nats per token, with 95 % confidence at most 0.1003; the recipe allows at most 0.1."
    )


def test_a_perplexity_ratio_over_the_limit_fails(make: SimpleNamespace) -> None:
    verdict = judged(make, make.variant(ratio=1.2))
    assert [item.name for item in verdict.checks if not item.passed] == ["perplexity_ratio"]


def test_no_quality_without_the_base_under_the_same_protocol(make: SimpleNamespace) -> None:
    base = make.base()
    other = replace(base, measurements=(make.measured("perplexity", 14.0, protocol="wikitext-2@2048"),))
    verdict = judged(make, base=other)
    assert not check(verdict, "measured").passed
    assert "the variant has stdlib-heldout@512, the base wikitext-2@2048" in check(verdict, "measured").detail
    assert not judged(make, replace(make.variant(), measurements=())).passed


def release(make: SimpleNamespace, record: VariantRecord, **changes: object) -> Verdict:
    beside = ("README.md: not in the manifest", ".gitattributes", "NOTICE", "LICENSE: not in the manifest")
    facts = make.facts(**{"unexpected_files": beside, **changes})
    return judged(make, record, facts, stage="release", subject="f" * 40)


def test_a_release_must_generate_what_the_artifact_generated(make: SimpleNamespace) -> None:
    record = make.judged(make.variant())
    assert release(make, record).passed
    for name in ("model.bin: pickle or code", "LICENSE.py: pickle or code", "docs/LICENSE", "extra.json: not in the manifest"):
        assert not check(release(make, record, unexpected_files=(name,)), "files").passed
    changed = release(make, record, generated_ids=(12, 44, 8, 301))
    assert [item.name for item in changed.checks if not item.passed] == ["same_tokens"]
    assert not check(release(make, record, prompt="import "), "same_tokens").passed


def test_a_release_without_a_verdict_on_its_artifact_fails(make: SimpleNamespace) -> None:
    assert [item.name for item in release(make, make.variant()).checks if not item.passed] == ["same_tokens"]
    record = make.judged(make.variant())
    assert record.artifact is not None
    other = replace(record, artifact=replace(record.artifact, files=record.artifact.files[:1]))
    assert not check(release(make, other), "same_tokens").passed
