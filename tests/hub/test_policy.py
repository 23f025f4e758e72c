import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.hf_api import ModelInfo
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hub import listing, names
from hub.codec import to_json
from hub.derivatives import pressed_word
from hub.domain import Candidate, HubFile, ModelRef, Recipe, Step, Thresholds
from hub.errors import UsageError
from hub.licences import effective
from hub.listing import unreadable
from hub.policy import demands, release_name, screen, stem
from hub.settings import DEFAULT_LICENSES, PolicySettings, Settings

SHARED = Path(__file__).parents[2] / "../shared/data"
RECORDED = SHARED / "hf-api-recorded/huggingface_hub_cassette_responses.json"
SNAPSHOTS = SHARED / "hub-snapshots"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md", "LICENSE")
GOOD = Candidate(
    ref=ModelRef(repo_id="Qwen/Qwen3-0.6B", sha="c1899de289a04d12100db370d81485cdf75e47ca"),
    downloads=10_034_367,
    likes=1_076,
    trending_score=12.0,
    created_at="2025-04-27T03:40:08+00:00",
    last_modified="2025-07-26T03:46:27+00:00",
    license="apache-2.0",
    license_name=None,
    license_link="https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/LICENSE",
    gated=None,
    private=False,
    library_name="transformers",
    pipeline_tag="text-generation",
    architecture="Qwen3ForCausalLM",
    base_models=("Qwen/Qwen3-0.6B-Base",),
    tags=("transformers", "safetensors", "qwen3", "base_model:Qwen/Qwen3-0.6B-Base", "base_model:finetune:Qwen/Qwen3-0.6B-Base"),
    languages=("en",),
    parameters=751_632_384,
    files=tuple(HubFile(path=path, size=1_503_300_328 if path.startswith("model") else 700, blob_id="0" * 40) for path in FILES),
)
RECIPE = Recipe(
    name="gptq-w4a16-g128",
    title="GPTQ",
    summary="",
    format="gptq",
    steps=(Step(method="gptq", scheme="W4A16"),),
    thresholds=Thresholds(kl_divergence=1, perplexity_ratio=2),
)


def _settings(**policy: Any) -> Settings:
    return Settings(policy=PolicySettings(**policy))


def _with_files(*paths: str, size: int = 700) -> Candidate:
    return replace(GOOD, files=tuple(HubFile(path=path, size=size, blob_id="0" * 40) for path in paths))


def _named(repo_id: str, **changes: Any) -> Candidate:
    return replace(GOOD, ref=replace(GOOD.ref, repo_id=repo_id), **changes)


def test_a_good_model_is_let_in() -> None:
    assert screen(GOOD, _settings()) is None


@pytest.mark.parametrize(
    ("candidate", "policy", "code", "words"),
    [
        (GOOD, {"banned": ["qwen/qwen3-0.6b"]}, "banned", ["'qwen/qwen3-0.6b'", "policy.banned"]),
        (GOOD, {"banned": ["Qwen/*"]}, "banned", ["'Qwen/*'"]),
        (unreadable("a/b"), {}, "unavailable", ["no details"]),
        (replace(GOOD, private=True), {}, "private", ["only public"]),
        (replace(GOOD, gated="manual"), {}, "gated", ["'manual'", "'apache-2.0'", "allowed: none"]),
        (replace(GOOD, gated="auto"), {"gated_licenses": ["llama3.1"]}, "gated", ["allowed: llama3.1"]),
        (replace(GOOD, license="x"), {"licenses": list("abcde")}, "license", ["allowed: a, b, c, d, e"]),
        (replace(GOOD, license="x"), {"licenses": list("abcdef")}, "license", ["allowed: a, b, c, d and 2 more in policy.licenses"]),
        (replace(GOOD, pipeline_tag="fill-mask"), {}, "pipeline_tag", ["'fill-mask'", "allowed: text-generation"]),
        (replace(GOOD, pipeline_tag=None), {}, "pipeline_tag", ["'none'"]),
        (replace(GOOD, downloads=3), {"min_downloads": 10}, "downloads", ["3 downloads", "10"]),
        (replace(GOOD, license=None), {}, "license", ["no licence", "apache-2.0"]),
        (replace(GOOD, license="cc-by-nc-4.0"), {}, "license", ["'cc-by-nc-4.0'", "allowed: apache-2.0"]),
        (replace(GOOD, license="other"), {}, "license", ["'other'"]),
        (replace(GOOD, license="other", license_name="apple-amlr"), {}, "license", ["'apple-amlr'"]),
        (replace(GOOD, tags=("base_model:quantized:Qwen/Qwen3-0.6B",)), {}, "derivative", ["base_model:quantized"]),
        (replace(GOOD, tags=("base_model:adapter:Qwen/Qwen3-0.6B",)), {}, "derivative", ["base_model:adapter"]),
        (replace(GOOD, tags=("base_model:merge:Qwen/Qwen3-0.6B",)), {}, "derivative", ["base_model:merge"]),
        (replace(GOOD, tags=("modelpress", "pruned")), {}, "derivative", ["pressed by ModelPress"]),
        (replace(GOOD, tags=("AWQ",)), {}, "derivative", ["'awq'"]),
        (replace(GOOD, library_name="peft"), {}, "derivative", ["'peft'"]),
        (_named("Qwen/Qwen3-0.6B-GGUF"), {}, "derivative", ["'gguf'"]),
        (_named("Qwen/Qwen3-0.6B-FP8"), {}, "derivative", ["'fp8'"]),
        (_named("a/Qwen2.5-1.5B-quantized.w8a8"), {}, "derivative", ["'quantized'"]),
        (_with_files("adapter_config.json", "adapter_model.safetensors"), {}, "derivative", ["adapter_config.json"]),
        (_with_files("config.json", "pytorch_model.bin"), {}, "no_safetensors", ["'pytorch_model.bin'", "model.safetensors"]),
        (_with_files("config.json", "sub/model.safetensors"), {}, "no_safetensors", ["'sub/model.safetensors'"]),
        (_with_files("README.md"), {}, "no_safetensors", ["no weights"]),
        (_with_files(*FILES, "modeling_x.py"), {}, "remote_code", ["'modeling_x.py'", "never run"]),
        (replace(GOOD, tags=("custom_code",)), {}, "remote_code", ["auto_map"]),
        (_with_files(*FILES, "../evil"), {}, "name", ["'../evil'"]),
        (_with_files(*FILES, ".git/config"), {}, "name", ["'.git/config'", "belongs to git"]),
        (_with_files(*FILES, "readme.md"), {}, "name", ["upper and lower case"]),
        (replace(GOOD, parameters=None), {}, "size", ["unknown"]),
        (_with_files(*FILES, size=-1), {}, "bytes", ["unknown"]),
        (replace(GOOD, parameters=70_553_706_496), {}, "size", ["7.06e+10", "9e+09"]),
        (GOOD, {"min_parameters": 1e9}, "size", ["7.52e+08", "1e+09"]),
        (GOOD, {"max_bytes": 1e9}, "bytes", ["1.5e+09", "1e+09"]),
        (GOOD, {"authors": ["google", "meta-llama"]}, "author", ["'Qwen'", "google, meta-llama"]),
        (GOOD, {"languages": ["de", "fr"]}, "language", ["'en'", "de, fr"]),
        (replace(GOOD, languages=()), {"languages": ["en"]}, "language", ["names no language"]),
        (GOOD, {"architectures": ["LlamaForCausalLM"]}, "architecture", ["'Qwen3ForCausalLM'", "LlamaForCausalLM"]),
        (replace(GOOD, architecture=None), {"architectures": ["LlamaForCausalLM"]}, "architecture", ["'unknown'"]),
        (GOOD, {"finetunes": False}, "derivative", ["base_model:finetune", "only originals are"]),
        (replace(GOOD, tags=("mergekit", "merge")), {}, "derivative", ["'merge'"]),
        # a pin lets a model pass what is about popularity, and nothing else
        (replace(GOOD, downloads=0), {"min_downloads": 1, "pinned": ["Qwen/Qwen3-0.6B"], "authors": ["x"]}, "author", ["'Qwen'"]),
        (_with_files("model.safetensors", "tokenizer.json"), {}, "no_config", ["config.json"]),
        (_with_files("model.safetensors", "config.json", "vocab.json"), {}, "no_tokenizer", ["vocab.json with merges.txt"]),
        (
            replace(_with_files("model.safetensors", "config.json", "tokenizer.json"), license="llama3.1"),
            {},
            "no_agreement",
            ["'llama3.1'"],
        ),
    ],
)
def test_each_rule_refuses_with_the_value_and_what_is_allowed(
    candidate: Candidate, policy: dict[str, Any], code: str, words: list[str]
) -> None:
    refusal = screen(candidate, _settings(**policy))
    assert refusal is not None
    assert refusal.code == code, refusal.reason
    assert (refusal.repo_id, refusal.sha, refusal.recipe) == (candidate.ref.repo_id, candidate.ref.sha, None)
    for word in words:
        assert word in refusal.reason
    assert "\n" not in refusal.reason
    assert not refusal.reason.endswith(".")


@pytest.mark.parametrize(
    ("candidate", "policy"),
    [
        (replace(GOOD, gated="auto", license="llama3.1"), {"gated_licenses": ["Llama3.1"]}),
        (replace(GOOD, license="other", license_name="Qwen"), {}),
        (replace(GOOD, license="Apache-2.0"), {}),
        (replace(GOOD, pipeline_tag=None), {"pipeline_tags": []}),
        (replace(GOOD, downloads=3), {"min_downloads": 10, "pinned": ["Qwen/Qwen3-0.6B@" + "a" * 40]}),
        (
            _with_files("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "vocab.json", "merges.txt"),
            {},
        ),
        (_named("mistralai/Mistral-7B-Instruct-v0.2"), {}),
        (_named("google/gemma-3-1b-it"), {}),
        (_named("org/model-BF16"), {}),
        (replace(GOOD, tags=("modelpress",), base_models=()), {}),
        (GOOD, {"authors": ["qwen"], "languages": ["EN", "zh"], "architectures": ["qwen3forcausallm"], "min_parameters": 751_632_384}),
        (replace(GOOD, tags=()), {"finetunes": False}),
    ],
)
def test_what_is_allowed(candidate: Candidate, policy: dict[str, Any]) -> None:
    assert screen(candidate, _settings(**policy)) is None


def test_the_first_failing_rule_wins() -> None:
    bad = replace(GOOD, private=True, gated="auto", license=None, files=())
    codes = []
    for repair in ({}, {"private": False}, {"gated": None}, {"license": "mit"}):
        bad = replace(bad, **repair)
        refusal = screen(bad, _settings())
        assert refusal is not None
        codes.append(refusal.code)
    assert codes == ["private", "gated", "license", "no_safetensors"]


# -- derivatives by name, as real people name them

ORIGINALS = """
Qwen3-4B-Instruct-2507 gemma-3-12b-it-qat-q4_0-unquantized gpt-oss-120b-dequantized gemma-3-1b-it LFM2-8B-A1B Llama-3.2-1B model-BF16
Huihui-Qwen3-8B-abliterated-v2 gemma-3-12b-it-heretic DeepSeek-R1-Distill-Qwen-7B Phi-3-mini-4k-instruct gpt-j-6B bitnet-b1.58-2B-4T
Qwen2.5-7B-Instruct-1M granite-embedding-30m-sparse T-lite-it-1.0 opt-125m
"""
PRESSED = """
Qwen3-0.6B-FP8 gemma-3-1b-it-unsloth-bnb-4bit GLM-4.7-Flash-MLX-6bit T-lite-it-1.0_Q4_0 Qwen2.5-7B-GPTQ-Int4 Gemma-4-E2B-it-NVFP4A16
gemma-4-26B-A4B-it-MXFP4A16 Gemma-4-26B-A4B-JANG_2L-CRACK MiniMax-M2.7-JANGTQ Qwen3.5-4B-PARO gemma-3-27b-it-qat-compressed-tensors
opt-125m-int8wo-partial-quant Qwen3.5-122B-A10B-PrismaQuant-4.75bit-vllm gemma-4-26B-A4B-it-TQ3-native Bonsai-1.7B-ONNX Qwen3-8B-AWQ-8bit
tinyllama-oneshot-w8w8-test-static Meta-Llama-3.1-8B-Instruct-quantized.w4a16 my-model-lora llama-3-qlora-adapter Llama-Guard-3-8B-INT8
"""


@pytest.mark.parametrize("name", ORIGINALS.split())
def test_names_of_originals_and_finetunes(name: str) -> None:
    assert pressed_word(name) is None


@pytest.mark.parametrize("name", PRESSED.split())
def test_names_of_pressed_models_and_adapters(name: str) -> None:
    assert pressed_word(name)


# -- licences


@pytest.mark.parametrize("license_id", ["llama3.1", "llama3.2", "llama3.3", "llama4"])
def test_llama_demands(license_id: str) -> None:
    wanted = demands(license_id)
    assert (wanted.prefix, wanted.badge, wanted.agreement) == ("Llama", "Built with Llama", True)
    assert wanted.notice.startswith(f"Llama {license_id.removeprefix('llama')} is licensed under the Llama")
    assert "USE_POLICY*" in wanted.carry
    assert wanted.link.startswith("https://www.llama.com/llama")


def test_other_demands() -> None:
    assert demands("llama3").prefix == "Llama-3"
    assert demands("llama3").badge == "Built with Meta Llama 3"
    assert demands("gemma").agreement
    assert "Gemma Terms of Use" in demands("gemma").notice
    assert "3.2" in demands("gemma").restrictions
    assert demands("other", "qwen").badge == "Built with Qwen"
    assert demands("openrail").restrictions
    plain = demands("apache-2.0")
    assert (plain.prefix, plain.badge, plain.notice, plain.agreement) == ("", "", "", False)
    assert demands(None) == demands("")


def test_every_allowed_licence_has_an_answer() -> None:
    for license_id in DEFAULT_LICENSES:
        assert demands(license_id).license == license_id
        assert "LICENSE*" in demands(license_id).carry


def test_the_licence_that_counts() -> None:
    assert effective("other", "Llama3.1") == "llama3.1"
    assert effective("MIT", "nonsense") == "mit"
    assert effective("other", None) == "other"
    assert effective(None, "mit") is None


# -- names of releases


@pytest.mark.parametrize(
    ("repo_id", "license_id", "expected"),
    [
        ("Qwen/Qwen3-0.6B", "apache-2.0", "press/Qwen3-0.6B-gptq-w4a16-g128"),
        ("meta-llama/Llama-3.2-1B", "llama3.2", "press/Llama-3.2-1B-gptq-w4a16-g128"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama3.1", "press/Llama-3.1-8B-gptq-w4a16-g128"),
        ("meta-llama/Meta-Llama-3-8B", "llama3", "press/Llama-3-8B-gptq-w4a16-g128"),
        ("org/Hermes-3-8B", "llama3.1", "press/Llama-Hermes-3-8B-gptq-w4a16-g128"),
        ("org/Hermes-2-Pro-Llama-3-8B", "llama3", "press/Llama-3-Hermes-2-Pro-Llama-3-8B-gptq-w4a16-g128"),
        ("org/odd--name..x", "mit", "press/odd-name-x-gptq-w4a16-g128"),
        ("org/-name.git", "mit", "press/name-gptq-w4a16-g128"),
    ],
)
def test_release_names(repo_id: str, license_id: str, expected: str) -> None:
    assert release_name(_named(repo_id, license=license_id), RECIPE, "press") == expected


def test_a_long_name_is_cut_and_stays_distinct() -> None:
    base = _named("org/" + "x" * 90)
    other = _named("org/" + "x" * 89 + "y")
    first, second = release_name(base, RECIPE, "press"), release_name(other, RECIPE, "press")
    assert len(first) == len(second) == 96
    assert first != second
    revision = replace(base, ref=replace(base.ref, sha="b" * 40))
    assert release_name(revision, RECIPE, "press") == first, "a new commit of the base takes the place of the old one"


def test_a_namesake_has_its_owners_name() -> None:
    assert release_name(_named("unsloth/Llama-3.2-1B", license="llama3.2"), RECIPE, "press", namesake=True) == (
        "press/Llama-3.2-1B-unsloth-gptq-w4a16-g128"
    )
    assert stem(_named("org-/Meta-Llama-3-8B", license="llama3"), namesake=True) == "Llama-3-8B-org"


@pytest.mark.parametrize("namespace", ["", "a b", "x" * 95, "a/b"])
def test_a_namespace_that_is_none(namespace: str) -> None:
    with pytest.raises(UsageError, match="no name for a release"):
        release_name(GOOD, RECIPE, namespace)


@settings(deadline=None)
@given(
    st.text(min_size=1, max_size=120),
    st.sampled_from(DEFAULT_LICENSES),
    st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=60),
)
@example("..", "mit", "x")
@example("Meta-", "llama3.1", "-")
@example("a.git", "gemma", "b.git")
@example("²", "mit", "-")
def test_every_release_name_is_one_that_the_hub_takes(name: str, license_id: str, recipe: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    candidate = _named(f"org/{name.replace('/', '_')}", license=license_id)
    repo_id = release_name(candidate, replace(RECIPE, name=recipe), "modelpress-lab")
    validate_repo_id(repo_id)
    assert names.repo_id_fault(repo_id) is None
    assert re.fullmatch(r"modelpress-lab/[A-Za-z0-9_.-]+", repo_id)
    assert repo_id.split("/")[1].startswith(demands(license_id).prefix)


# -- names and paths


@pytest.mark.parametrize(
    "path",
    [
        *("", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "a\\b", "C:/x", "a\nb", "a\x00b", "evil\u202etxt.exe", "caf\u00e9"),
        *("a" * 241, "a" * 161, ".git/config", ".GIT/hooks/pre-commit", "x/.git/config", ".cache/huggingface/x", "con", "sub/NUL.txt"),
        *("a ", " a", "a.", "a\tb", "a*b", "$(x)", "`x`"),
    ],
)
def test_paths_that_are_not_let_in(path: str) -> None:
    fault = names.path_fault(path)
    assert fault
    assert fault.isascii()
    assert "\n" not in fault


@pytest.mark.parametrize(
    "path", [".gitattributes", ".gitignore", "model-00001-of-00002.safetensors", "onnx/model.onnx", "Model Card (v1).md", "a+b=c@d,e"]
)
def test_paths_that_are(path: str) -> None:
    assert names.path_fault(path) is None


@pytest.mark.parametrize(
    ("paths", "word"),
    [
        (["a", "A"], "case alone"),
        (["x/a", "X/b"], "case alone"),
        (["a", "a/b"], "file and a folder"),
        ([f"{number}.txt" for number in range(names.MAX_FILES + 1)], "more than"),
    ],
)
def test_listings_that_are_not_let_in(paths: list[str], word: str) -> None:
    assert word in (names.paths_fault(paths) or "")


@settings(deadline=None)
@given(st.text())
@example("a/" * 200)
def test_what_is_let_in_stays_inside_any_folder(path: str) -> None:
    if names.path_fault(path) is None:
        root = Path("/srv/of/all")
        assert (root / path).resolve().is_relative_to(root)
        assert path.isascii()
        assert path.isprintable()
        assert not {".git", ".cache", "..", "."} & {part.lower() for part in path.split("/")}


@settings(deadline=None)
@given(st.lists(st.text("abAB./-", max_size=8), max_size=8))
def test_a_listing_let_in_has_distinct_names_on_every_system(paths: list[str]) -> None:
    paths = list(dict.fromkeys(paths))
    if names.paths_fault(paths) is None:
        assert len({path.lower() for path in paths}) == len(paths)
        assert all(names.path_fault(path) is None for path in paths)


@settings(deadline=None)
@given(st.text(max_size=40), st.text(max_size=80))
def test_a_model_id_let_in_is_one_that_the_hub_takes(owner: str, name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    repo_id = f"{owner}/{name}"
    if names.repo_id_fault(repo_id) is None:
        validate_repo_id(repo_id)
        assert ".." not in repo_id


@settings(deadline=None)
@given(st.text())
def test_foreign_text_is_shown_in_plain_ascii(value: str) -> None:
    text = names.shown(value)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 1000


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 10**400, "many", None, True, [1], -5])
def test_numbers_that_cannot_be_harm_neither_ranking_nor_database(number: Any) -> None:
    info = ModelInfo(id="a/b", sha="0" * 40, downloads=number, likes=number, trendingScore=number, siblings=[])
    candidate = listing.candidate(info)
    assert 0 <= candidate.downloads <= 2**53
    assert 0 <= candidate.likes <= 2**53
    assert math.isfinite(candidate.trending_score)
    assert json.loads(to_json(candidate))["ref"]["repo_id"] == "a/b"


# -- real answers of the real Hub


@pytest.mark.shared
@pytest.mark.skipif(not RECORDED.exists(), reason="needs ../shared/data/hf-api-recorded")
def test_recorded_answers_of_the_real_hub_become_candidates_and_are_screened() -> None:
    bodies = [entry["json"] for entry in json.loads(RECORDED.read_text(encoding="utf-8")) if isinstance(entry.get("json"), dict)]
    infos = [body for body in bodies if "siblings" in body and "id" in body]
    assert len(infos) > 40
    codes: Counter[str] = Counter()
    for body in infos:
        candidate = listing.candidate(ModelInfo(**body))
        assert candidate.ref.repo_id == body["id"]
        assert candidate.ref.sha == body["sha"]
        assert candidate.downloads == body["downloads"]
        assert candidate.gated == (body["gated"] or None)
        assert candidate.created_at.startswith(body["createdAt"][:19])
        assert len(candidate.files) == len(body["siblings"])
        assert names.paths_fault(file.path for file in candidate.files) is None
        if "safetensors" in body:
            assert candidate.parameters == body["safetensors"]["total"]
        refusal = screen(candidate, _settings())
        assert refusal is not None  # these were recorded without file sizes, so the best of them has an unknown size
        codes[refusal.code] += 1
        if body["gated"]:
            assert refusal.code == "gated"
        if refusal.code == "name":
            assert "/" not in body["id"], f"a real model's names are refused: {refusal.reason}"
    assert codes["pipeline_tag"] > 5
    assert codes["size"] + codes["bytes"] > 3


@pytest.mark.shared
@pytest.mark.skipif(not SNAPSHOTS.exists(), reason="needs ../shared/data/hub-snapshots")
def test_real_listings_are_refused_for_the_right_reason() -> None:
    models = json.loads((SNAPSHOTS / "inferenceatlas/huggingface_models.json").read_text(encoding="utf-8"))["models"]
    found: dict[str, str] = {}
    for model in models:
        candidate = _named(
            model["model_id"],
            tags=tuple(model["tags"]),
            license=model["license"],
            gated="manual" if model["gated"] else None,
            pipeline_tag=model["pipeline_tag"],
        )
        refusal = screen(candidate, _settings(licenses=[*DEFAULT_LICENSES, "other"], gated_licenses=["llama3.1", "llama3.2"]))
        found[model["model_id"]] = refusal.code if refusal else "let in"
    assert len(found) == 100
    assert "name" not in found.values()
    for repo_id in ("Qwen/Qwen3-0.6B", "openai-community/gpt2", "HuggingFaceTB/SmolLM2-135M", "meta-llama/Llama-3.2-1B", "microsoft/phi-2"):
        assert found[repo_id] == "let in", found[repo_id]
    for repo_id in (
        "openai/gpt-oss-20b", "Qwen/Qwen2.5-14B-Instruct-AWQ", "Qwen/Qwen3-0.6B-FP8",
        "RedHatAI/Qwen2.5-1.5B-quantized.w8a8", "lmstudio-community/GLM-4.7-Flash-MLX-6bit", "mlx-community/gpt-oss-20b-MXFP4-Q8",
    ):  # fmt: skip
        assert found[repo_id] == "derivative", (repo_id, found[repo_id])


@pytest.mark.shared
@pytest.mark.skipif(not SNAPSHOTS.exists(), reason="needs ../shared/data/hub-snapshots")
def test_every_real_model_can_be_named_as_a_release() -> None:
    real: set[str] = set()
    for path in (SNAPSHOTS / "llmfit-snapshots").glob("*.json"):
        real.update(model["name"] for model in json.loads(path.read_text(encoding="utf-8")) if "/" in model["name"])
    assert len(real) > 1000
    for repo_id in real:
        if names.repo_id_fault(repo_id) is None:
            assert names.repo_id_fault(release_name(_named(repo_id, license="llama3.1"), RECIPE, "modelpress-lab")) is None
    assert sum(names.repo_id_fault(repo_id) is not None for repo_id in real) < len(real) / 100
