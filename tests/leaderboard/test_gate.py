from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hub.domain import HubFile
from hub.facts import Facts
from hub.history import Check, VariantRecord, Verdict
from leaderboard.gate import judge, least_same_top_token

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "quantization_config": {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "checkpoint_format": "gptq"
    },
}  # fmt: skip
LAYER = {
    "model.layers.0.mlp.up_proj.qweight": ("I32", (32, 512)),
    "model.layers.0.mlp.up_proj.qzeros": ("I32", (2, 64)),
    "model.layers.0.mlp.up_proj.scales": ("F16", (2, 512)),
    "model.layers.0.mlp.up_proj.g_idx": ("I32", (256,)),
}


def stated(**changes: object) -> str:
    """A config's text with other entries in its quantization_config; None removes one."""
    wanted = {**CONFIG["quantization_config"], **changes}
    return json.dumps({**CONFIG, "quantization_config": {key: value for key, value in wanted.items() if value is not None}})


def judged(make: SimpleNamespace, record: VariantRecord | None = None, facts: Facts | None = None, **options: object) -> Verdict:
    record = record or make.variant()
    chosen = {"base": make.base(), "stage": "artifact", "subject": record.artifact.digest, "at": make.at, **options}
    return judge(record, facts or make.facts(config=stated(), outlines=LAYER), **chosen)


def check(verdict: Verdict, name: str) -> Check:
    return next(item for item in verdict.checks if item.name == name)


def test_a_sound_artifact_passes_every_check(make: SimpleNamespace) -> None:
    verdict = judged(make)
    assert verdict.passed, [item for item in verdict.checks if not item.passed]
    asked = "loads generates chat_template finite packed size config files no_code no_links like_base checksums no_secrets measured"
    assert " ".join(item.name for item in verdict.checks) == f"{asked} kl_divergence perplexity_ratio same_top_token"
    assert all(item.detail.endswith(".") and any(char.isdigit() for char in item.detail) for item in verdict.checks)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("loads", {"loads": False, "load_error": "KeyError: 'scales'"}, "KeyError: 'scales'"),
        ("generates", {"generated_ids": ()}, "0 tokens"),
        ("chat_template", {"template_fault": "It took longer than the 60 s that are allowed, and was ended."}, "longer than the 60 s"),
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
        ("files", {"unexpected_files": ("run.sh",)}, "Unexpected: run.sh."),
        ("files", {"unexpected_files": ("README.md: not in the manifest",)}, "Unexpected: README.md."),
        ("no_code", {"unexpected_files": ("a: b.py: pickle or code",)}, "1 files are pickles or code; 0 may be. They are: a: b.py."),
        ("no_links", {"unexpected_files": ("vocab.json: symbolic link",)}, "1 files are symbolic links; 0 may be. They are: vocab.json."),
        ("like_base", {"unlike_base": ("tokenizer.json",)}, "differ from the base's; 0 may be. They are: tokenizer.json."),
        ("no_secrets", {"secrets": ("config.json: GitHub token, line 3",)}, "They are: config.json: GitHub token, line 3."),
        ("packed", {"packed_found": 27, "layers": {"model.layers.0": (14, 14), "model.layers.1": (14, 13)}}, "model.layers.1 (13 of 14)."),
        ("config", {"config": "[1]"}, "config.json is no JSON object"),
        (
            "config",
            {"config": stated(bits=8)},
            "Quantization_config says 8 bits, the recipe 4 (W4A16); quantization_config says 8 bits, the",
        ),
        (
            "config",
            {"config": stated(group_size=64)},
            "says groups of 64, the recipe 128; quantization_config says groups of 64, the",
        ),
        ("config", {"config": stated(quant_method="awq", version="gemm", zero_point=True)}, "says awq, the recipe's format is gptq"),
        ("config", {"config": stated(desc_act=None)}, "the keys that loaders need, config.json has 1 faults; 0 may be."),
        ("config", {"config": json.dumps({"architectures": ["X"]})}, "Model_type is missing; quantization_config says dense, the recipe's"),
        (
            "checksums",
            {"checksum_errors": ("model.safetensors",)},
            "1 files differ from the SHA-256 in the manifest; 0 may. They are: model",
        ),
    ],
)
def test_a_bad_fact_fails_its_own_check_and_no_other(make: SimpleNamespace, name: str, changes: dict[str, object], words: str) -> None:
    verdict = judged(make, facts=make.facts(**{"config": stated(), "outlines": LAYER, **changes}))
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


def test_the_share_of_equal_top_tokens_is_bounded_by_the_limit_on_divergence(make: SimpleNamespace) -> None:
    limits = make.recipe().thresholds
    assert least_same_top_token(limits) == pytest.approx(1 - (limits.kl_divergence / 2) ** 0.5)
    assert least_same_top_token(replace(limits, kl_divergence=3.0)) == 0
    for share, fine in ((0.7794, True), (0.7790, False)):  # at least 0.7764 is needed, and the interval is ± 0.003
        record = make.variant()
        others = tuple(item for item in record.measurements if item.metric != "same_top_token")
        record = replace(record, measurements=(*others, make.measured("same_top_token", share, 0.003)))
        failed = [item.name for item in judged(make, record).checks if not item.passed]
        assert failed == ([] if fine else ["same_top_token"])
    assert not check(judged(make, replace(record, measurements=others)), "same_top_token").passed


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
    for name in ("docs/LICENSE", "extra.json: not in the manifest"):
        assert not check(release(make, record, unexpected_files=(name,)), "files").passed
    for name in ("model.bin: pickle or code", "LICENSE.py: pickle or code"):
        assert [item.name for item in release(make, record, unexpected_files=(name,)).checks if not item.passed] == ["no_code"]
    assert release(make, record, unexpected_files=("chart.svg: not in the manifest", "sbom.cdx.json")).passed
    changed = release(make, record, generated_ids=(12, 44, 8, 301))
    assert [item.name for item in changed.checks if not item.passed] == ["same_tokens"]
    assert not check(release(make, record, prompt="import "), "same_tokens").passed


def test_a_release_passes_on_what_the_licence_of_its_base_demands(make: SimpleNamespace) -> None:
    record, base = make.judged(make.variant()), make.base()
    policy = HubFile(path="USE_POLICY.md", size=1, sha256="0" * 64, blob_id="0" * 40)
    strict = replace(base, candidate=replace(base.candidate, license="llama3.2", license_name=None, files=(*base.candidate.files, policy)))

    def files(*beside: str) -> Check:
        facts = make.facts(unexpected_files=tuple(f"{name}: not in the manifest" for name in ("README.md", *beside)))
        return check(judged(make, record, facts, base=strict, stage="release", subject="f" * 40), "files")

    assert files("LICENSE", "NOTICE.modelpress", "USE_POLICY.md").passed
    bare = files()
    assert not bare.passed
    assert bare.detail.startswith("3 files are missing and 0 are unexpected; both must be 0. Missing: USE_POLICY.md, a copy of the licence")
    assert bare.detail.endswith("NOTICE with the words of the licence llama3.2.")


def test_a_release_without_a_verdict_on_its_artifact_fails(make: SimpleNamespace) -> None:
    assert [item.name for item in release(make, make.variant()).checks if not item.passed] == ["same_tokens"]
    record = make.judged(make.variant())
    assert record.artifact is not None
    other = replace(record, artifact=replace(record.artifact, files=record.artifact.files[:1]))
    assert not check(release(make, other), "same_tokens").passed
