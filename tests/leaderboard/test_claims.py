"""The lie detector: each claim of a card against bytes that bear it out, and against others; any repository, ours or another's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub.domain import HubFile
from hub.facts import Facts
from hub.headers import Tensor
from hub.packing import Tensors, scheme
from leaderboard import cards, foreign
from leaderboard.card_reader import bits_in, counts_in, read
from leaderboard.claims import compare, contradictions
from leaderboard.findings import Finding
from leaderboard.verify import Served

REPO = "press/tiny-llama-gptq-w4a16-g128"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "checkpoint_format": "gptq"}
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 768, "dtype": "bfloat16"}
DENSE: Tensors = {"model.layers.0.mlp.up_proj.weight": ("BF16", (512, 256)), "model.embed_tokens.weight": ("BF16", (100, 256))}


def words(bits: int = 4) -> Tensors:
    """A linear layer of 512 x 256 weights in groups of 128 as GPTQ lays it out, and an embedding."""
    stem = "model.layers.0.mlp.up_proj"
    return {
        f"{stem}.qweight": ("I32", (256 * bits // 32, 512)),
        f"{stem}.qzeros": ("I32", (2, 512 * bits // 32)),
        f"{stem}.scales": ("F16", (2, 512)),
        f"{stem}.g_idx": ("I32", (256,)),
        "model.embed_tokens.weight": ("BF16", (100, 256)),
    }


def lies(card: str, repo_id: str = "someone/model", config: dict | None = None, tensors: Tensors | None = None, **more: object) -> set[str]:
    """The names of the claims that fail."""
    stated = CONFIG if config is None else config
    return {check.name for check in contradictions(card, repo_id=repo_id, config=stated, tensors=tensors or DENSE, **more)}  # type: ignore[arg-type]


def front(**data: object) -> str:
    return "---\n" + "".join(f"{key}: {value}\n" for key, value in data.items()) + "---\n"


def test_our_own_card_tells_no_lie_and_each_change_to_it_is_one(make: SimpleNamespace) -> None:
    record, base = make.judged(make.variant()), make.base()
    assert record.artifact is not None
    artifact = replace(record.artifact, parameters=512 * 256 + 100 * 256)
    record = replace(record, artifact=artifact)
    card = cards.render(record, base, [], repo_id=REPO, hub_url="https://huggingface.co")
    files = {file.path: (file.size, file.sha256) for file in artifact.files}
    config = {**CONFIG, "quantization_config": GPTQ}
    bytes_of = {"config": config, "tensors": words(), "manifest": artifact, "base": base.candidate, "files": files}

    found = compare(card, repo_id=REPO, **bytes_of)
    assert {one.name: one.state for one in found if one.state != "passed"} == {}, found
    assert len(found) == 11

    def changed(old: str, new: str) -> set[str]:
        assert old in card, old
        return lies(card.replace(old, new), REPO, **bytes_of)

    assert changed("- w4a16\n", "- w8a16\n") == {"card_bits"}
    assert changed("- 4-bit\n", "- 4-bit\n- int8\n") == {"card_bits"}
    assert changed("- gptq\n", "- bitsandbytes\n") == {"card_format"}
    assert changed("base_model:\n- sample-org/tiny-llama\n", "base_model:\n- sample-org/huge-llama\n") == {"card_base_model"}
    assert changed("base_model_relation: quantized", "base_model_relation: finetune") == {"card_base_model"}
    assert changed("library_name: transformers", "library_name: gguf") == {"card_library"}
    assert changed("license: apache-2.0", "license: mit") == {"card_licence"}
    assert changed("quantized_by: press", "quantized_by: other") == {"card_quantized_by"}
    assert changed("# tiny-llama-gptq-w4a16-g128\n", "# tiny-llama-awq-w4a16-g128\n") >= {"card_name", "card_format"}
    assert changed(f'from_pretrained("{REPO}")', 'from_pretrained("evil/model")') == {"card_name"}
    assert changed("d" * 64, "e" * 64) == {"card_files"}
    assert changed(artifact.digest, "0" * 16) == {"card_recipe"}
    assert changed(record.base.sha, "f" * 40) == {"card_recipe"}
    assert changed("license: apache-2.0\n", "license: &a [*a]\n") == {"card_metadata"}
    assert changed("license: apache-2.0\n", "license: mit\nlicense: apache-2.0\n") == {"card_metadata"}
    assert changed("model-index:\n", "model-index: 3\nindex:\n") == {"card_metadata"}

    # The same true card over other bytes.
    assert "card_bits" in lies(
        card, REPO, **{**bytes_of, "tensors": words(8), "config": {**CONFIG, "quantization_config": {**GPTQ, "bits": 8}}}
    )
    assert "card_bits" in lies(card, REPO, **{**bytes_of, "tensors": words(8)}), "config and card may agree on what is not so"
    assert "card_parameters" in lies(card, REPO, **{**bytes_of, "manifest": replace(artifact, parameters=10**6)})
    assert "card_files" in lies(card, REPO, **{**bytes_of, "files": {**files, "config.json": (1, "c" * 64)}})
    assert "card_files" in lies(card, REPO, **{**bytes_of, "files": {}})


@pytest.mark.parametrize(
    ("repo_id", "card", "wrong"),
    [
        ("org/Llama-3-8B", front(license="mit"), {"card_parameters"}),  # 0.16 million weights are not 8 thousand million
        ("org/tiny-0.16M", front(license="mit"), set()),
        ("org/tiny-0.16M-128k-1M", front(license="mit"), set()),
        ("org/tiny-128k-bf16", front(tags="[bf16]"), set()),
        ("org/model-GPTQ-Int4", front(tags="[gptq, 4-bit]"), {"card_bits", "card_format"}),
        ("org/model-AWQ", front(), {"card_format"}),
        ("org/model", front(base_model="org/model"), {"card_base_model"}),
        ("org/model", front(base_model="org/base", base_model_relation="quantized"), {"card_base_model"}),
        ("org/base-4bit-chat", front(base_model="other/base-4bit", base_model_relation="finetune"), set()),
        ("org/model", front(quantized_by="me"), {"card_quantized_by"}),
        ("org/model", front(library_name="gguf"), {"card_library"}),
        ("org/model", front(library_name="something-new"), set()),
        ("org/model", "no front matter at all", set()),
        ("org/model", "---\nlicense: [\n---\n", {"card_metadata"}),
        ("org/model", "---\n" + "a: " + "[" * 90 + "]" * 90 + "\n---\n", {"card_metadata"}),
        ("org/model", "| `model.safetensors` | 5 B | `" + "0" * 64 + "` |\n", {"card_files"}),
        ("org/model", "| `model.safetensors` | 7 B | `" + "a" * 64 + "` |\n", {"card_files"}),
        ("org/model", "| `model.safetensors` | 5 B | `" + "a" * 64 + "` |\n", set()),
    ],
)  # fmt: skip
def test_cards_of_others_on_dense_weights(repo_id: str, card: str, wrong: set[str]) -> None:
    files = {"model.safetensors": (5, "a" * 64), "config.json": (2, None)}
    assert lies(card, repo_id, files=files) == wrong


@pytest.mark.parametrize(
    ("quantization", "tensors", "said", "wrong"),
    [
        (GPTQ, words(), "GPTQ-Int4", set()),
        (GPTQ, words(), "GPTQ-Int8", {"card_bits"}),
        (GPTQ, words(), "GPTQ-INT8-INT4", {"card_bits"}),
        ({**GPTQ, "bits": 8}, words(8), "w8a16", set()),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"0": {"targets": ["Linear"], "weights": {"num_bits": 4}}}},
            {"model.layers.0.mlp.up_proj.weight": ("I8", (512, 256)), "model.layers.0.mlp.up_proj.weight_scale": ("BF16", (512, 1))},
            "GPTQ-W4A8",
            set(),
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"0": {"targets": ["Linear"], "weights": {"num_bits": 8}}}},
            {"model.layers.0.mlp.up_proj.weight": ("F8_E4M3", (512, 256)), "model.layers.0.mlp.up_proj.weight_scale": ("BF16", (512, 1))},
            "FP8-dynamic",
            set(),
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            {
                "model.layers.0.mlp.up_proj.weight": ("U8", (512 * 128, 1)),
                "model.layers.0.mlp.up_proj.weight.absmax": ("F32", (2048,)),
                "model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4": ("U8", (80,)),
            },
            "bnb-4bit",
            set(),
        ),
        ({"quant_method": "awq", "bits": 4}, DENSE, "AWQ-w4a16", {"card_bits"}),  # it says packed everywhere, and nothing is
    ],
)
def test_cards_of_others_on_packed_weights(quantization: dict, tensors: Tensors, said: str, wrong: set[str]) -> None:
    config = {**CONFIG, "quantization_config": quantization}
    assert lies(front(tags=f"[{said}]"), f"org/model-{said}", config, tensors) == wrong


@pytest.mark.parametrize(
    ("said", "rows", "types", "wrong"),
    [
        # Rows as in Qwen2.5-0.5B (896, in the down projections 4,864), with the types that llama.cpp takes for them.
        ("Q3_K_M", 896, "IQ4_NL Q4_K", set()),
        ("Q2_K", 896, "IQ4_NL Q3_K", set()),
        ("Q4_K_M", 896, "Q5_0 Q8_0", set()),
        ("Q6_K", 896, "Q8_0 Q8_0", set()),
        ("Q5_K_M", 896, "Q5_1 Q8_0", set()),
        ("Q4_1", 896, "Q4_1 Q4_1", set()),
        ("Q4_K_M", 896, "Q8_0 Q8_0", {"card_bits"}),  # that is Q6_K's and Q8_0's
        ("Q2_K", 896, "Q5_0 Q4_K", {"card_bits"}),
        ("Q4_K_M", 1024, "Q5_0 Q8_0", {"card_bits"}),
        ("Q3_K_M", 1024, "IQ4_NL Q4_K", {"card_bits"}),
        ("4-bit", 1024, "Q8_0 Q8_0", {"card_bits"}),
        ("Q4_K_M", 1024, "F16 F32", {"card_bits"}),
        ("Q2_K_XL", 1024, "Q4_K Q8_0 Q2_K", set()),  # the last are the experts, of three dimensions
    ],
)
def test_bits_of_llama_cpp_s_mixtures(said: str, rows: int, types: str, wrong: set[str]) -> None:
    names = {"blk.0.attn_q": (256, rows), "blk.0.ffn_down": (256, 4864), "blk.0.ffn_up_exps": (8, 256, rows)}
    tensors: Tensors = {f"{name}.weight": (dtype, size) for (name, size), dtype in zip(names.items(), types.split(), strict=False)}
    tensors = {**tensors, "token_embd.weight": ("Q4_K", (100, 1024))}
    assert lies(front(tags="[gguf]"), f"org/model-{said}-GGUF", {}, tensors, files={"model.gguf": (1, None)}) == wrong


def test_words_are_read_as_people_write_them() -> None:
    said = ["W4A16 NVFP4 MXFP4A16 q8_0 Q4_K_M 3-bit 2bits INT8 nf4 fp8_dynamic", "8B 7b v1.5 2of4 4096 w3.5 b4 x4bit"]
    assert set(bits_in(said)) == {2, 3, 4, 8}
    assert bits_in(["Llama-3.2-1B-Instruct", "g128", "K8"]) == {}
    assert [value for _, value in counts_in(["stories42M", "Qwen2.5-0.5B-4bit", "8x7B", "30B-A3B", "q4_k_m"])] == [42e6, 0.5e9, 30e9]
    assert read("---\nlicense: mit\n---\n# Ti tle\n").title == "Ti tle"
    assert read("x" * (5 << 20)).fault.startswith("the card has 5242880 characters")


def test_configs_and_names_of_others_that_would_take_for_ever_are_passed_over() -> None:
    slow = {
        "quant_method": "compressed-tensors",
        "ignore": ["re:(a+)+$", "re:" + "(a|a)" * 60, "re:" + "a?" * 60 + "a" * 60, "re:" + "a*" * 40, "re:[", 7, "re:.*lm_head.*"],
    }
    stated = scheme({"quantization_config": slow})
    assert not stated.spares("a" * 60 + "b")
    assert stated.spares("model.lm_head.x")
    nested: dict = {}
    for _ in range(5000):
        nested = {"a": nested}
    for odd in ({"quant_method": "torchao", "quant_type": nested}, {"quant_method": ["x"], "bits": True, "config_groups": [1]}, [], 7):
        assert scheme({"quantization_config": odd}).bits == ()
    dotted: Tensors = {"model.layers.0." + "a." * 200_000 + "weight": ("BF16", (4, 4)), **words(), "": ("F99", ()), ".": ("I4", (0,))}
    assert lies(front(tags="[gptq, 4-bit]"), "org/model-1B-gptq", {**CONFIG, "quantization_config": GPTQ}, dotted) == {"card_parameters"}


STEM, ATTENTION = "model.layers.0.mlp.up_proj", "model.layers.0.self_attn.q_proj"
PACKED_ATTENTION = {f"{ATTENTION}.weight": ("F8_E4M3", (256, 256)), f"{ATTENTION}.weight_scale": ("F32", ())}
MIXED: Tensors = {**PACKED_ATTENTION, **DENSE}
TOWER: Tensors = {
    "model.visual.blocks.0.attn.qkv.weight": ("BF16", (768, 256)),
    "vision_tower.encoder.layers.1.fc1.weight": ("BF16", (8, 8)),
}
NVFP4: Tensors = {
    f"{STEM}.weight": ("U8", (512, 128)),
    f"{STEM}.weight_scale": ("F8_E4M3", (512, 16)),
    f"{STEM}.weight_scale_2": ("F32", ()),
    f"{STEM}.input_scale": ("F32", ()),
}
MXFP4: Tensors = {
    "model.layers.0.mlp.experts.gate_up_proj_blocks": ("U8", (4, 512, 8, 16)),
    "model.layers.0.mlp.experts.gate_up_proj_scales": ("U8", (4, 512, 8)),
    "model.layers.0.mlp.experts.gate_up_proj_bias": ("BF16", (4, 512)),
    f"{ATTENTION}.weight": ("BF16", (256, 256)),
}
HQQ: Tensors = {f"{STEM}.W_q": ("U8", (256, 256)), f"{STEM}.meta": ("F16", (2,)), "model.norm.weight": ("BF16", (256,))}
NOTHING = {
    **dict.fromkeys(("tensors", "packed_expected", "packed_found", "tensor_bytes_expected"), 0),
    **dict.fromkeys(("not_packed", "non_finite", "missing_files", "unexpected_files", "checksum_errors", "generated_ids"), ()),
    **dict.fromkeys(("prompt", "generated_text"), ""),
    "loads": False,
}
FP8 = {"quant_method": "compressed-tensors", "format": "float-quantized"}


def group(*targets: str, bits: int = 8) -> dict:
    return {"config_groups": {"group_0": {"targets": list(targets), "weights": {"num_bits": bits, "type": "float"}}}}


@pytest.mark.parametrize(
    ("quantization", "tensors", "packed", "size"),
    [
        ({"quant_method": "gptq", "bits": 4}, words(), "passed", "passed"),  # all else has a default in its loaders
        ({"quant_method": "gptq"}, words(), "passed", "not checked"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, DENSE, "failed", "passed"),
        ({**FP8, **group("Linear"), "ignore": ["re:.*mlp.*", "lm_head"]}, MIXED, "passed", "passed"),
        ({**FP8, **group("Linear"), "ignore": []}, MIXED, "failed", "passed"),
        ({**FP8, **group("re:.*self_attn\\.(q|k)_proj$")}, MIXED, "passed", "passed"),
        ({**FP8, **group("re:.*up_proj$")}, MIXED, "failed", "passed"),
        ({**FP8, **group("Linear"), "ignore": ["re:(?!.*q_proj).*up_proj"]}, MIXED, "not checked", "passed"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["model.layers.*.mlp*"]}, {**MIXED, **TOWER}, "passed", "passed"),
        ({"quant_method": "fp8", "modules_to_not_convert": ["*.visual.*"]}, {**MIXED, **TOWER}, "failed", "passed"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, NVFP4, "passed", "passed"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}, MXFP4, "passed", "passed"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}, MXFP4, "failed", "passed"),
        ({"quant_method": "hqq", "quant_config": {}}, HQQ, "not checked", "not checked"),
        ({"quant_method": "made-up", "bits": 4}, DENSE, "failed", "not checked"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
         {f"{STEM}.qweight": ("I32", (16, 1024)), f"{STEM}.scales": ("F16", (2, 512))}, "passed", "not checked"),
    ],
)  # fmt: skip
def test_checkpoints_of_others_are_judged_by_what_loaders_need(
    quantization: dict, tensors: Tensors, packed: str, size: str, tmp_path: Path
) -> None:
    found = looked_at(tmp_path, {**CONFIG, "quantization_config": quantization}, tensors)
    wrong = quantization == {"quant_method": "gptq"}
    assert (found["packed"].state, found["size"].state, found["config"].state) == (packed, size, "failed" if wrong else "passed"), found
    assert not wrong or "Quantization_config.bits is missing" in found["config"].detail


def looked_at(folder: Path, config: dict, tensors: Tensors, *files: str, **facts: object) -> dict[str, Finding]:
    """The findings on somebody's repository without a card."""
    sizes = sum(Tensor(dtype=dtype, shape=shape).bytes for dtype, shape in tensors.values())
    there = Served(repo_id="someone/model", sha="a" * 40, folder=folder, files=dict.fromkeys(files or ("model.safetensors",), (1, None)))
    known = {
        "load_error": "Unavailable: no",
        "config": json.dumps(config) if config else "",
        "outlines": tensors,
        "tensor_bytes_found": sizes,
    }
    seen = Facts(**{**NOTHING, **known, **facts})  # type: ignore[arg-type]
    return {one.name: one for one in foreign.judge(there, seen, foreign.Promised(), at="2026-11-21T00:00:00+00:00")}


def test_files_of_llama_cpp_need_nothing_beside_them(tmp_path: Path) -> None:
    tensors: Tensors = {"blk.0.ffn_up.weight": ("IQ4_XS", (256, 512))}
    one = looked_at(tmp_path, {}, tensors, "model.gguf", keys=("general.architecture",), missing_files=("config.json",))
    several = looked_at(tmp_path, {}, {}, "a.gguf", "b.gguf", missing_files=("config.json",))
    nothing = looked_at(tmp_path, {}, {}, "model.gguf", keys=("general.name",), missing_files=("config.json",))
    states = [{name: found[name].state for name in ("loads", "packed", "size", "config", "files")} for found in (one, several)]
    assert states[0] == {"loads": "not checked", "packed": "not checked", "size": "not checked", "config": "passed", "files": "not checked"}
    assert states[1] == {**states[0], "config": "not checked"}
    assert "The GGUF key general.architecture is missing" in nothing["config"].detail


def test_what_cannot_be_known_of_a_card_is_no_lie_and_a_tied_head_counts_once(make: SimpleNamespace) -> None:
    base = make.base().candidate
    found = {one.name: one for one in compare(front(base_model="org/base"), repo_id="a/b", config=CONFIG, tensors=DENSE, base=base)}
    assert (found["card_licence"].state, found["card_licence"].detail) == ("not checked", "the card names no licence")
    assert lies(front(tags="[4-bit]"), "org/model-hqq", {**CONFIG, "quantization_config": {"quant_method": "hqq"}}, HQQ) == set()
    assert lies(front(tags="[4-bit]"), "org/m", {**CONFIG, "quantization_config": {"quant_method": "hqq"}}, DENSE) == {"card_bits"}
    head = {**DENSE, "lm_head.weight": ("BF16", (2000, 256)), "model.embed_tokens.weight": ("BF16", (2000, 256))}
    assert lies(front(), "org/tiny-0.64M", {**CONFIG, "tie_word_embeddings": True}, head) == set()
    assert lies(front(), "org/tiny-0.64M", {**CONFIG, "tie_word_embeddings": False}, head) == {"card_parameters"}


def test_a_base_that_somebodys_manifest_names_is_pulled_only_within_the_limit(make: SimpleNamespace, tmp_path: Path) -> None:
    record, base = make.variant(), make.base().candidate
    base = replace(base, files=(HubFile(path="model.safetensors", size=10**12, blob_id="b" * 40),))
    there = Served(repo_id="someone/model", sha="a" * 40, folder=tmp_path, files={})
    within, beyond = (
        foreign.with_base(there, foreign.Promised(manifest=record.artifact), lambda _name, _sha: base, max_bytes=most)
        for most in (1e12, 9e11)
    )
    assert within.exact
    assert (beyond.exact, beyond.base) == (False, base)
    assert beyond.fault == "the base that modelpress.json names has 1e+12 bytes of weights, and policy.max_bytes allows 9e+11"
