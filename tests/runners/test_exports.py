"""GGUF, ONNX and OpenVINO: what is written, read by loaders that are not ours, and by our readers and engines."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hub.domain import ModelRef
from hub.errors import BadCheckpoint, UnfitModel
from runners import checkpoint, engines, formats, ggml, inspection, press, readers, recipes
from runners.headers import Tensor, stored_tensors

BASE = ModelRef(repo_id="modelpress-samples/tiny", sha="0" * 40)
TEXTS = ("The function returns 3 333 tokens.\n\n\tx = [1, 2]  # don't", "ñandú 東京 🦙<|im_start|>user\nhi<|im_end|>", " a  b   c")
SAMPLES = ("sample-llama", "sample-qwen3-chat", "sample-gpt2")


@pytest.fixture(scope="module")
def tiny(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what makes a random float32 model like a sample, with other numbers in its config where wanted."""

    def make(sample: str, **changes: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        folder = tmp_path_factory.mktemp("tiny") / sample
        config = AutoConfig.from_pretrained(samples / sample)
        config.update(changes)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, weight in model.named_parameters():  # norms and biases that are all one and zero would hide what is mixed up
            if weight.dim() == 1:
                torch.nn.init.normal_(weight, mean=float("norm" in name or "ln_" in name), std=0.2)
        model.save_pretrained(folder)
        checkpoint.carry_over(samples / sample, folder)
        return folder

    return make


@pytest.fixture(scope="module")
def short(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what makes a model of the first two layers of a sample."""
    made: dict[str, Path] = {}

    def make(sample: str) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        if sample not in made:
            config = AutoConfig.from_pretrained(samples / sample)
            config.update({"num_hidden_layers": 2} | ({"layer_types": ["full_attention"] * 2} if "qwen" in sample else {}))
            folder = tmp_path_factory.mktemp("short") / sample
            AutoModelForCausalLM.from_pretrained(samples / sample, config=config).save_pretrained(folder)
            checkpoint.carry_over(samples / sample, folder)
            made[sample] = folder
        return made[sample]

    return make


Pressed = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def pressed(short: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Pressed:
    """Return what presses the short model of a sample by a recipe, once."""
    made: dict[tuple[str, str], Path] = {}

    def get(recipe: str, sample: str) -> Path:
        if (recipe, sample) not in made:
            folder = tmp_path_factory.mktemp("pressed") / recipe
            press.press(BASE, short(sample), recipes.load(recipe), folder)
            made[recipe, sample] = folder
        return made[recipe, sample]

    return get


def base_logits(folder: Path, ids: list[int]) -> Any:
    return engines.load("transformers").load(folder, dtype="float32").logits(ids)


def divergence(wanted: Any, found: Any) -> float:
    wanted, found = wanted.double().log_softmax(-1), found.double().log_softmax(-1)
    return float((wanted.exp() * (wanted - found)).sum(-1).mean())


def clean(code: str, *arguments: object) -> Any:
    """Run code in a process of its own, in which nothing of ours is imported; return the JSON that it prints last."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


# --- all formats ---

SMALL = {"gguf-q8-0": 0.01, "onnx-int8": 0.05, "openvino-int8": 0.01}
"""A recipe of each format with the divergence from the base on senseless text that is allowed."""
PLAIN = ("gguf-q8-0", "onnx-int4", "openvino-int8")
"""Recipes whose predictions do not depend on what is read together."""


@pytest.mark.integration
@pytest.mark.parametrize("recipe", SMALL)
@pytest.mark.parametrize("sample", SAMPLES)
def test_the_gate_finds_nothing_and_the_engine_predicts_as_the_base(
    short: Callable[[str], Path], pressed: Pressed, sample: str, recipe: str
) -> None:
    folder = pressed(recipe, sample)
    facts = inspection.inspect(folder, recipes.load(recipe), short(sample))
    assert facts.loads, facts.load_error
    assert (facts.not_packed, facts.missing_files, facts.unexpected_files, facts.checksum_errors, facts.non_finite) == ((), (), (), (), ())
    assert facts.packed_found == facts.packed_expected > 0
    assert facts.tensor_bytes_found == pytest.approx(facts.tensor_bytes_expected, rel=0.001)
    assert len(facts.generated_ids) == inspection.NEW_TOKENS

    loaded = engines.for_folder(folder).load(folder)
    ids = list(range(40, 140))
    found = loaded.logits(ids)
    assert 0 < divergence(base_logits(short(sample), ids), found) < SMALL[recipe]
    assert loaded.context_length == 512
    assert engines.for_folder(folder).count_parameters(folder) == checkpoint.shape(short(sample)).parameters


@pytest.mark.integration
@pytest.mark.parametrize("recipe", PLAIN)
def test_greedy_writing_is_that_of_whole_passes(pressed: Pressed, recipe: str) -> None:
    loaded = engines.for_folder(pressed(recipe, "sample-llama")).load(pressed(recipe, "sample-llama"))
    ids = loaded.encode(inspection.PROMPT)
    written = loaded.generate(ids, 12)
    whole = list(ids)
    for _ in written:
        whole.append(int(loaded.logits(whole)[-1].argmax()))
    assert whole[len(ids) :] == written
    assert loaded.logits(whole)[: len(ids)].argmax(-1).tolist() == loaded.logits(ids).argmax(-1).tolist()  # what follows is not seen
    assert list(loaded.time_generation(ids, 4).tokens[0]) == written[:4]


@pytest.mark.integration
@pytest.mark.parametrize("recipe", SMALL)
@pytest.mark.parametrize("sample", ["sample-llama", "sample-qwen3-chat"])
def test_the_lines_on_the_card_write_what_the_engine_writes(pressed: Pressed, tmp_path: Path, recipe: str, sample: str) -> None:
    import jinja2
    from transformers import AutoTokenizer

    folder, chat = pressed(recipe, sample), "chat" in sample
    template = (Path(__file__).resolve().parents[2] / "templates" / "use" / f"{recipe.split('-')[0]}.md.j2").read_text(encoding="utf-8")
    card = jinja2.Environment(trim_blocks=True).from_string(template).render(repo_id="x/y", requirements="z", endpoint=None, chat=chat)
    code = card.split("```python\n")[1].split("```")[0]
    # What it would download lies in MODEL already.
    code = code.replace('Llama.from_pretrained("x/y", filename="model.gguf"', 'Llama("MODEL/model.gguf"')
    (tmp_path / "MODEL").symlink_to(folder)
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]

    tokenizer = AutoTokenizer.from_pretrained(folder)
    words = [{"role": "user", "content": "What does a list comprehension do?"}]
    ids = (
        tokenizer.apply_chat_template(words, add_generation_prompt=True)["input_ids"]
        if chat
        else tokenizer("The quick brown fox")["input_ids"]
    )
    written = tokenizer.decode(engines.for_folder(folder).load(folder).generate(ids, 20)).split("<|im_end|>")[0].strip()
    assert written[:30] in done.stdout


@pytest.mark.integration
@pytest.mark.parametrize("recipe", SMALL)
def test_pressed_again_the_bytes_are_the_same(short: Callable[[str], Path], pressed: Pressed, tmp_path: Path, recipe: str) -> None:
    first = pressed(recipe, "sample-llama")
    shutil.copytree(short("sample-llama"), tmp_path / "elsewhere")
    again = press.press(BASE, tmp_path / "elsewhere", recipes.load(recipe), tmp_path / "again")
    written = checkpoint.read_manifest(first)
    assert written is not None
    assert again.files == written.files


# --- GGUF ---


@pytest.mark.integration
def test_gguf_is_read_as_gguf_s_own_reader_reads_it(pressed: Pressed) -> None:
    from gguf import GGUFReader

    path = pressed("gguf-q4-k-m", "sample-qwen3-chat") / "model.gguf"
    wanted = {
        entry.name: (entry.tensor_type.name, tuple(int(size) for size in reversed(entry.shape)), int(entry.data_offset), int(entry.n_bytes))
        for entry in GGUFReader(path).tensors
    }
    mine = {name: (it.tensor.dtype, it.tensor.shape, it.start, it.end - it.start) for name, it in readers.read(path).items()}
    assert mine == wanted
    assert {kind for kind, *_ in mine.values()} == {"F32", "Q4_K", "Q5_0", "Q6_K", "Q8_0"}  # widths of 192 and 512


@pytest.mark.integration
@pytest.mark.parametrize("scheme", ggml.MIXTURES)
@pytest.mark.parametrize(
    ("sample", "changes"),
    [
        ("sample-llama", {"num_hidden_layers": 17, "hidden_size": 256, "intermediate_size": 288, "tie_word_embeddings": False}),
        ("sample-qwen3-chat", {"num_hidden_layers": 3, "layer_types": ["full_attention"] * 3, "hidden_size": 96}),
        ("sample-gpt2", {"n_layer": 9}),
    ],
)
def test_types_are_foretold_as_llama_cpp_chooses_them(
    tiny: Callable[..., Path], tmp_path: Path, sample: str, changes: dict[str, Any], scheme: str
) -> None:
    from runners import gguf_dense, llamacpp

    source = tiny(sample, **changes)
    gguf_dense.write(source, tmp_path / "dense.gguf", dtype="F32", scratch=tmp_path)
    llamacpp.quantize(tmp_path / "dense.gguf", tmp_path / "made.gguf", scheme, 1)
    found = {name: entry.tensor for name, entry in readers.read(tmp_path / "made.gguf").items()}
    assert found == ggml.tensors(checkpoint.shape(source), scheme)


@pytest.mark.integration
@pytest.mark.parametrize("sample", SAMPLES)
def test_transformers_reads_the_gguf_file_back(short: Callable[[str], Path], pressed: Pressed, sample: str) -> None:
    import torch

    code = (
        "import json, sys, torch; from transformers import AutoConfig, AutoModelForCausalLM; folder = sys.argv[1];"
        "config = AutoConfig.from_pretrained(folder);"  # from a Qwen3 file transformers does not read how wide a head is
        "model = AutoModelForCausalLM.from_pretrained(folder, config=config, gguf_file='model.gguf', dtype=torch.float32);"
        "print(json.dumps(model(torch.arange(40, 72)[None]).logits[0].tolist()))"
    )
    found = clean(code, pressed("gguf-q8-0", sample))
    assert divergence(base_logits(short(sample), list(range(40, 72))), torch.tensor(found)) < 0.01


@pytest.mark.integration
def test_the_gguf_file_has_the_base_s_tokens_and_chat_template(short: Callable[[str], Path], pressed: Pressed) -> None:
    from transformers import AutoTokenizer

    code = (
        "import json, sys; from llama_cpp import Llama; it = Llama(sys.argv[1], vocab_only=True, verbose=False);"
        "ids = [it.tokenize(text.encode(), add_bos=True, special=True) for text in sys.argv[2:]];"
        "print(json.dumps([ids, it.metadata['tokenizer.chat_template']]))"
    )
    base = AutoTokenizer.from_pretrained(short("sample-qwen3-chat"))
    ids, template = clean(code, pressed("gguf-q8-0", "sample-qwen3-chat") / "model.gguf", *TEXTS)
    assert ids == [base(text)["input_ids"] for text in TEXTS]
    assert template == base.chat_template


@pytest.mark.integration
@pytest.mark.shared
def test_merges_of_a_sentencepiece_tokenizer_keep_their_order(shared: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from runners import gguf_dense, llamacpp

    source = shared / "models" / "stories260K"
    gguf_dense.write(source, tmp_path / "dense.gguf", dtype="F32", scratch=tmp_path)
    model = llamacpp.Model(tmp_path / "dense.gguf", vocab_only=True)
    base = AutoTokenizer.from_pretrained(source)
    story = "Once upon a time, there was a little dog.\nHe don't  like 12 apples! ñandú 🦙"
    assert model.tokenize(story) == base(story)["input_ids"]


@pytest.mark.integration
def test_a_tokenizer_that_llama_cpp_cuts_otherwise_is_refused(short: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(short("sample-llama"), tmp_path / "base")
    path = tmp_path / "base" / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, settings["pre_tokenizer"]],
    }
    path.write_text(json.dumps(settings))
    with pytest.raises(UnfitModel, match=r"llama\.cpp"):
        press.press(BASE, tmp_path / "base", recipes.load("gguf-q8-0"), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_a_broken_gguf_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for content in (b"", b"GGUF", b"GGUF" + (3).to_bytes(4, "little") + (2**40).to_bytes(16, "little"), b"PK\x03\x04" * 10):
        path.write_bytes(content)
        with pytest.raises(BadCheckpoint, match=r"model\.gguf"):
            stored_tensors(tmp_path)


@pytest.mark.integration
def test_a_truncated_gguf_file_is_told(pressed: Pressed, tmp_path: Path) -> None:
    shutil.copytree(pressed("gguf-q8-0", "sample-llama"), tmp_path / "cut")
    path = tmp_path / "cut" / "model.gguf"
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(BadCheckpoint, match="promises"):
        stored_tensors(tmp_path / "cut")
    with pytest.raises(BadCheckpoint, match=r"llama\.cpp cannot load"):
        engines.load("llama_cpp").load(tmp_path / "cut")


def test_block_types_weigh_what_llama_cpp_says() -> None:
    import gguf

    from runners.headers import BLOCKS

    for name, sizes in BLOCKS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == sizes
    assert Tensor(dtype="Q4_K", shape=(3, 512)).bytes == 3 * 2 * 144


# --- ONNX ---


@pytest.mark.integration
@pytest.mark.parametrize("recipe", ["onnx-int8", "onnx-int4"])
def test_onnx_is_read_as_onnx_s_own_library_reads_it(pressed: Pressed, recipe: str) -> None:
    import onnx

    path = pressed(recipe, "sample-llama") / "model.onnx"
    onnx.checker.check_model(path)
    model = onnx.load(path)
    mine = readers.read(path)
    assert set(mine) == {entry.name for entry in model.graph.initializer}
    for entry in model.graph.initializer:
        it = mine[entry.name]
        assert it.tensor.shape == tuple(entry.dims)
        assert it.path.read_bytes()[it.start : it.end] == onnx.numpy_helper.to_array(entry).tobytes()
    assert b"site-packages" not in path.read_bytes()


@pytest.mark.integration
@pytest.mark.parametrize(("recipe", "limit"), [("onnx-int8", 0.05), ("onnx-int4", 0.3)])
@pytest.mark.parametrize("sample", SAMPLES)
def test_plain_onnxruntime_runs_it_in_two_parts(
    short: Callable[[str], Path], pressed: Pressed, sample: str, recipe: str, limit: float
) -> None:
    import torch

    code = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
past = {it.name: np.zeros((1, it.shape[1], 0, it.shape[3]), np.float32) for it in session.get_inputs() if it.name.startswith("past")}
found = []
for start, end in ((0, 20), (20, 32)):
    given = {
        "input_ids": np.arange(40 + start, 40 + end)[None],
        "attention_mask": np.ones((1, end), np.int64),
        "position_ids": np.arange(start, end)[None],
    }
    out = dict(zip([it.name for it in session.get_outputs()], session.run(None, given | past)))
    past = {name: out[name.replace("past_key_values", "present")] for name in past}
    found += out["logits"][0].tolist()
print(json.dumps(found))
"""
    found = clean(code, pressed(recipe, sample) / "model.onnx")
    assert divergence(base_logits(short(sample), list(range(40, 72))), torch.tensor(found)) < limit


def test_a_broken_onnx_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for content in (b"x", b"\x3a\x7f", b"\x08\x08", b"\xff" * 40):
        path.write_bytes(content)
        with pytest.raises(BadCheckpoint, match=r"model\.onnx"):
            stored_tensors(tmp_path)


@pytest.mark.integration
def test_onnx_data_must_lie_beside_and_be_whole(pressed: Pressed, tmp_path: Path) -> None:
    import onnx

    shutil.copytree(pressed("onnx-int4", "sample-llama"), tmp_path / "cut")
    data = tmp_path / "cut" / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(BadCheckpoint, match="looks for"):
        stored_tensors(tmp_path / "cut")
    with pytest.raises(BadCheckpoint, match="onnxruntime cannot load"):
        engines.load("onnxruntime").load(tmp_path / "cut")
    model = onnx.load(tmp_path / "cut" / "model.onnx", load_external_data=False)
    outside = next(entry for entry in model.graph.initializer if entry.external_data)
    next(entry for entry in outside.external_data if entry.key == "location").value = "../../secret"
    (tmp_path / "cut" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BadCheckpoint, match="outside its folder"):
        stored_tensors(tmp_path / "cut")


# --- OpenVINO ---


@pytest.mark.integration
@pytest.mark.parametrize("recipe", ["openvino-int8", "openvino-int4"])
def test_openvino_is_read_as_openvino_reads_it(short: Callable[[str], Path], pressed: Pressed, recipe: str) -> None:
    path = pressed(recipe, "sample-gpt2") / "openvino_model.xml"
    code = """
import hashlib, json, sys, openvino
found = {}
for op in openvino.Core().read_model(sys.argv[1]).get_ops():
    if op.get_type_name() == "Constant":
        data = hashlib.sha256(op.data.tobytes()).hexdigest() if op.get_element_type().bitwidth % 8 == 0 else ""
        found[op.get_friendly_name()] = [list(op.shape), op.get_element_type().get_type_name(), data]
print(json.dumps(found))
"""
    wanted = {name: found for name, found in clean(code, path).items() if not name.startswith("graph/")}
    mine = readers.read(path)
    assert mine.keys() == wanted.keys()
    for name, it in mine.items():
        sizes, kind, digest = wanted[name]
        assert (list(it.tensor.shape), it.tensor.dtype.lower()) == (sizes, kind)
        assert not digest or hashlib.sha256(it.path.read_bytes()[it.start : it.end]).hexdigest() == digest
    names = set(checkpoint.shape(short("sample-gpt2")).tensors)
    assert {name.partition("/")[0] for name in mine} == names
    assert str(path.parent.parent) not in path.read_text()


@pytest.mark.integration
@pytest.mark.parametrize(("recipe", "limit"), [("openvino-int8", 0.01), ("openvino-int4", 0.3)])
@pytest.mark.parametrize("sample", SAMPLES)
def test_plain_openvino_runs_it_in_two_parts(
    short: Callable[[str], Path], pressed: Pressed, sample: str, recipe: str, limit: float
) -> None:
    import torch

    code = """
import json, sys
import numpy as np, openvino
settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
request = openvino.Core().compile_model(sys.argv[1], "CPU", settings).create_infer_request()
found = []
for start, end in ((0, 20), (20, 32)):
    request.infer({
        "input_ids": np.arange(40 + start, 40 + end)[None],
        "attention_mask": np.ones((1, end), np.int64),
        "position_ids": np.arange(start, end)[None],
        "beam_idx": np.zeros(1, np.int32),
    })
    found += request.get_tensor("logits").data[0].tolist()
print(json.dumps(found))
"""
    found = clean(code, pressed(recipe, sample) / "openvino_model.xml")
    assert divergence(base_logits(short(sample), list(range(40, 72))), torch.tensor(found)) < limit


@pytest.mark.integration
def test_an_untied_head_is_rounded_by_itself(tiny: Callable[..., Path], tmp_path: Path) -> None:
    source = tiny("sample-llama", num_hidden_layers=2, tie_word_embeddings=False)
    for name in ("openvino-int4", "onnx-int4"):
        press.press(BASE, source, recipes.load(name), tmp_path / name)
        packing = formats.packed(tmp_path / name, recipes.load(name), checkpoint.shape(source))
        assert packing.not_packed == packing.extra == ()
        assert packing.bytes_found == packing.bytes_expected
        ids = list(range(40, 72))
        assert divergence(base_logits(source, ids), engines.for_folder(tmp_path / name).load(tmp_path / name).logits(ids)) < 0.02


@pytest.mark.integration
def test_openvino_and_nncf_report_to_nobody() -> None:
    code = """
import json
from runners import openvino_graph
openvino_graph.library()
import nncf
from openvino.tools.ovc import telemetry
import sys
loaded = [name for name, module in sys.modules.items() if name.startswith("openvino_telemetry") and module]
print(json.dumps([loaded, type(telemetry).__module__]))
"""
    assert clean(code) == [[], "openvino.tools.ovc.telemetry_stub"]


@pytest.mark.integration
def test_a_broken_openvino_model_is_told(pressed: Pressed, tmp_path: Path) -> None:
    shutil.copytree(pressed("openvino-int8", "sample-gpt2"), tmp_path / "cut")
    data = tmp_path / "cut" / "openvino_model.bin"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(BadCheckpoint, match="is said to lie at"):
        stored_tensors(tmp_path / "cut")
    with pytest.raises(BadCheckpoint, match="OpenVINO cannot load"):
        engines.load("openvino").load(tmp_path / "cut")
    for content in (b"", b"<net>", b"<net></net>"):
        (tmp_path / "cut" / "openvino_model.xml").write_bytes(content)
        with pytest.raises(BadCheckpoint, match=r"openvino_model\.xml"):
            stored_tensors(tmp_path / "cut")


# --- what may lie in a folder ---


def test_only_openvino_s_own_numbers_may_end_in_bin(tmp_path: Path) -> None:
    weights = tmp_path / "openvino_model.bin"
    weights.write_bytes(b"\x00" * 16)
    assert not readers.harmless(weights)  # no model beside it
    (tmp_path / "openvino_model.xml").write_text("<net/>")
    assert readers.harmless(weights)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x00" * 16)
    assert not readers.harmless(tmp_path / "pytorch_model.bin")
    for start in (b"\x80\x02", b"PK\x03\x04"):
        weights.write_bytes(start + b"\x00" * 16)
        assert not readers.harmless(weights)
    weights.write_bytes(b"\x00" * 16)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not readers.harmless(weights)


@pytest.mark.integration
def test_vectors_that_are_equal_keep_their_names_and_values(small: Path, tmp_path: Path) -> None:
    """The exporter stores equal tensors once; the norms of a fresh model are all ones."""
    from safetensors.torch import load_file

    from runners import onnx_graph

    stored = {name: tensor.float().numpy() for name, tensor in load_file(small / "model.safetensors").items() if tensor.dim() == 1}
    assert len({array.tobytes() for array in stored.values()}) < len(stored)
    onnx_graph.export(small, tmp_path / "exported.onnx")
    found = onnx_graph.vectors(tmp_path / "exported.onnx")
    assert {name: array.tobytes() for name, array in found.items()} == {name: array.tobytes() for name, array in stored.items()}
