"""The compressed-tensors format: against references in float64, against llm-compressor, and read by loaders that are not ours."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub.domain import Calibration, ModelRef, Recipe, Scalar, Step, StepRecord
from hub.errors import UnfitModel, Unstable, UsageError
from runners import checkpoint, compressed, dense, engines, formats, methods, press, recipes, texts
from runners.headers import stored_tensors
from runners.method import Outcome, PressContext
from runners.methods import smoothquant

pytestmark = pytest.mark.integration
BASE = ModelRef(repo_id="modelpress-samples/sample", sha="0" * 40)
SHOWN = Calibration(text="stdlib-calibration", samples=4, sequence_length=128)
OURS = ("rtn", "w8a8", "smoothquant", "fp8", "fp4")
RECIPES = [name for name in recipes.names() if recipes.load(name).method in OURS]
UP = "model.layers.0.mlp.up_proj"
GATE = "model.layers.0.mlp.gate_proj"
DOWN = "model.layers.0.mlp.down_proj"


def step(name: str, scheme: str, **params: Scalar) -> Step:
    return Step(method=name, scheme=scheme, params=params, calibration=SHOWN)


def recipe(asked: Step) -> Recipe:
    return replace(recipes.load("w8a8-dynamic"), steps=(asked,))


def apply(asked: Step, source: Path, target: Path) -> Outcome:
    target.mkdir()
    scratch = target.with_name(f"{target.name}-scratch")
    scratch.mkdir()
    context = PressContext(base_folder=source, scratch=scratch, cache=scratch)
    methods.get(asked.method).check(asked, checkpoint.shape(source))
    return methods.get(asked.method).apply(asked, source, target, context)


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def changed(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Copy a checkpoint, its tensors changed."""
    from safetensors.torch import save_file

    shutil.copytree(source, target)
    found = tensors(source)
    change(found)
    save_file(found, target / "model.safetensors", metadata={"format": "pt"})
    return target


Tiny = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return what makes a random Llama of two layers with a sample's tokenizer, in a dtype."""
    made: dict[str, Path] = {}

    def of(dtype: str) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        if dtype not in made:
            torch.manual_seed(0)
            config = LlamaConfig(
                hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                vocab_size=2048, max_position_embeddings=256, tie_word_embeddings=dtype != "float16",
            )  # fmt: skip
            folder = tmp_path_factory.mktemp(dtype)
            LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)
            for path in (samples / "sample-llama").glob("tokenizer*"):
                shutil.copy(path, folder)
            made[dtype] = folder
        return made[dtype]

    return of


# --- golden: round to nearest in float64 ---


def by_hand(weight: Any, bits: int, strategy: str, group: int, symmetric: bool) -> tuple[Any, Any, Any]:
    """Return the rows that share a scale, their scales, and their zero points, nothing rounded yet."""
    rows = {"tensor": weight.reshape(1, -1), "channel": weight, "group": weight.reshape(-1, group or 1)}[strategy]
    least, most = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    bottom, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = np.maximum(-least, most) / ((top - bottom) / 2) if symmetric else (most - least) / (top - bottom)
    return rows, scale, np.zeros_like(scale) if symmetric else np.clip(bottom - least / scale, bottom, top)


def unpacked(words: Any, bits: int, count: int) -> Any:
    """Return the levels of words of 32 bits, `count` a row: little-endian, the lowest bits first, 2**(bits - 1) added to each."""
    flat = np.unpackbits(np.ascontiguousarray(words).view(np.uint8), axis=1, bitorder="little")[:, : count * bits]
    return flat.reshape(len(words), count, bits) @ (1 << np.arange(bits)) - 2 ** (bits - 1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("scheme", "strategy", "group"),
    [("W8A16", "tensor", 0), ("W8A16", "channel", 0), ("W4A16", "tensor", 0), ("W4A16", "channel", 0), ("W4A16", "group", 64),
     ("W3A16", "group", 32), ("W2A16", "group", 16)],
)  # fmt: skip
def test_rounding_is_that_of_float64(
    tiny: Tiny, tmp_path: Path, scheme: str, strategy: str, group: int, symmetric: bool, dtype: str
) -> None:
    import torch

    params = {"strategy": strategy, "symmetric": symmetric, **({"group_size": group} if group else {})}
    apply(step("rtn", scheme, **params), tiny(dtype), tmp_path / "made")
    bits, base, made = int(scheme[1]), tensors(tiny(dtype)), tensors(tmp_path / "made")
    half = 0.5 + 2e-5  # the greatest weight lies just between two levels (128 - 1/2); on that verge float32 falls to either side
    for linear in checkpoint.shape(tiny(dtype)).linears[:7]:
        rows, scale, exact = by_hand(base[f"{linear.name}.weight"].double().numpy(), bits, strategy, group, symmetric)
        stored = made[f"{linear.name}.weight_scale"].double().numpy().ravel()
        assert stored == pytest.approx(torch.from_numpy(scale).float().to(getattr(torch, dtype)).double().numpy(), rel=2**-22)
        zero = np.zeros_like(exact)
        if not symmetric:
            kept = made[f"{linear.name}.weight_zero_point"].numpy()
            zero = (kept if strategy == "tensor" else unpacked(kept.T, bits, linear.out_features).T).ravel()
            assert (np.abs(zero - exact) <= half).all()
        levels = np.clip(rows / stored[:, None] + zero[:, None], -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        found = unpacked(made[f"{linear.name}.weight_packed"].numpy(), bits, linear.in_features)
        assert (np.abs(found.reshape(rows.shape) - levels) <= half).all()
        assert made[f"{linear.name}.weight_shape"].tolist() == list(found.shape)


E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.mark.parametrize("scheme", ["NVFP4A16", "MXFP4A16"])
def test_four_bit_floats_are_the_nearest_there_are(tiny: Tiny, tmp_path: Path, scheme: str) -> None:
    apply(step("fp4", scheme), tiny("float32"), tmp_path / "made")
    base, made = tensors(tiny("float32")), tensors(tmp_path / "made")
    block = 16 if scheme.startswith("NV") else 32
    for name in ("self_attn.q_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.down_proj"):
        stem = f"model.layers.1.{name}"
        codes = made[f"{stem}.weight_packed"].numpy()
        found = E2M1[np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1, block)]
        blocks = base[f"{stem}.weight"].double().numpy().reshape(found.shape)
        if scheme.startswith("NV"):
            # One global scale for what engines fuse; it makes the largest block's scale 448, the greatest of FP8.
            members = {"q": "qkv", "v": "qkv", "g": ("gate", "up"), "d": ("down",)}[name.split(".")[1][0]]
            root = stem.rpartition(".")[0]
            greatest = max(float(base[f"{root}.{member}_proj.weight"].abs().max()) for member in members)
            whole = made[f"{stem}.weight_global_scale"].double().numpy()
            assert whole == pytest.approx(448 * 6 / greatest)
            scale = made[f"{stem}.weight_scale"].double().numpy() / whole
            assert scale == pytest.approx(np.abs(blocks).max(-1) / 6, rel=1 / 15)
        else:
            scale = 2.0 ** (made[f"{stem}.weight_scale"].double().numpy() - 127)
            assert (np.abs(blocks).max(-1) / scale < 7.01).all()
            assert (np.abs(blocks).max(-1) / scale >= 3.49).all()
        nearest = np.abs(blocks[..., None] / scale[..., None, None] - E2M1).min(-1)
        assert np.abs(blocks / scale[..., None] - found) == pytest.approx(nearest, abs=1e-5)


# --- beside llm-compressor's oneshot ---

SCHEMES = {
    "W4A16 asymmetric": lambda: compressed.scheme(
        {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32}
    ),
    "W8A8": lambda: compressed.preset("W8A8"),
    "FP8_DYNAMIC": lambda: compressed.preset("FP8_DYNAMIC"),
    "FP8_BLOCK": lambda: compressed.preset("FP8_BLOCK"),
    "NVFP4A16": lambda: compressed.preset("NVFP4A16"),
    "MXFP4": lambda: compressed.preset("MXFP4"),
}


OneShot = Callable[..., None]


@pytest.fixture
def quantized(one_shot: OneShot) -> OneShot:
    """Return what quantizes a checkpoint by a scheme with llm-compressor."""

    def of(scheme: Any, source: Path, target: Path, windows: Sequence[list[int]] = ()) -> None:
        from llmcompressor.modifiers.quantization import QuantizationModifier

        modifier = QuantizationModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
        one_shot(modifier, dense.load(source, dtype=dense.own_dtype(source)), target, windows)

    return of


@pytest.mark.parametrize("name", SCHEMES)
def test_tensors_and_config_are_those_of_oneshot(tiny: Tiny, quantized: OneShot, tmp_path: Path, name: str) -> None:
    source = tiny("float32")
    (tmp_path / "ours").mkdir()
    compressed.write(source, tmp_path / "ours", SCHEMES[name]())
    quantized(SCHEMES[name](), source, tmp_path / "theirs")
    ours, theirs = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(tensor.dtype == theirs[key].dtype and bool((tensor == theirs[key]).all()) for key, tensor in ours.items())
    both = [checkpoint.read_config(tmp_path / folder)["quantization_config"] for folder in ("ours", "theirs")]
    for config in both:
        config["config_groups"]["group_0"]["weights"].pop("observer")  # how it was found, no part of what it is
        for key in ("transform_config", "sparsity_config"):
            assert not config.pop(key, None)
    assert both[0] == both[1]


def test_a_bfloat16_model_loses_less_than_with_oneshot(samples: Path, quantized: OneShot, tmp_path: Path) -> None:
    source = samples / "sample-llama"
    (tmp_path / "ours").mkdir()
    compressed.write(source, tmp_path / "ours", compressed.preset("W8A8"))
    quantized(compressed.preset("W8A8"), source, tmp_path / "theirs")
    base, ours, theirs = tensors(source), tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    shares = []
    for linear in checkpoint.shape(source).linears:
        key = f"{linear.name}.weight"
        assert (ours[f"{key}_scale"] == theirs[f"{key}_scale"]).all()
        scale = ours[f"{key}_scale"].double()
        lost = [float((base[key].double() - made[key].double() * scale).norm()) for made in (ours, theirs)]
        assert lost[0] < lost[1]
        shares.append(float((ours[key] != theirs[key]).double().mean()))
    print(f"levels that differ from llm-compressor's in bfloat16: {sum(shares) / len(shares):.1%}")


def test_static_scales_are_those_of_oneshot(tiny: Tiny, quantized: OneShot, tmp_path: Path) -> None:
    source = tiny("float32")
    asked = step("w8a8", "W8A8", activations="static")
    outcome = apply(asked, source, tmp_path / "ours")
    assert len(outcome.notes) == 1  # sums over text come out otherwise on other hardware
    windows = texts.windows(SHOWN, dense.tokenizer(source))
    quantized(compressed.scheme(compressed.INT8_ROWS, compressed.INT8_STATIC), source, tmp_path / "theirs", windows)
    ours, theirs = tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for key in (key for key in ours if key.endswith("input_scale")):
        assert ours[key].shape == theirs[key].shape == (1,)
        # Theirs shows each layer what the rounded ones before it make; ours what the dense ones make.
        assert float(ours[key]) == pytest.approx(float(theirs[key]), rel=0.1)


# --- what the files are, to loaders that are not ours ---

READER = """
import json, sys
import torch, transformers
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.utils import is_module_quantized
found = {}
for folder in sys.argv[1:]:
    config = json.load(open(f"{folder}/config.json"))["quantization_config"]
    checked = QuantizationConfig.model_validate({key: value for key, value in config.items() if key != "version"})
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("def main(arguments: list[str]) -> int:\\n    return 0\\n", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    found[folder] = {
        "format": checked.format, "status": checked.quantization_status.value, "ignore": checked.ignore, "loss": loss,
        "quantized": sum(is_module_quantized(module) for module in model.modules()),
        "defects": sorted(str(name) for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key]),
    }
    assert not any(name.split(".")[0] in ("runners", "hub") for name in sys.modules)
print(json.dumps(found))
"""


def read_elsewhere(*folders: Path) -> dict[str, Any]:
    """Return what plain transformers makes of checkpoints, in a process that never saw ours."""
    command = [sys.executable, "-I", "-c", READER, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {Path(folder).name: facts for folder, facts in json.loads(done.stdout.splitlines()[-1]).items()}


FORMAT_OF: Mapping[str, str] = {
    "rtn": "pack-quantized", "w8a8": "int-quantized", "smoothquant": "int-quantized", "fp8": "float-quantized",
    "NVFP4": "nvfp4-pack-quantized", "NVFP4A16": "nvfp4-pack-quantized", "MXFP4": "mxfp4-pack-quantized",
    "MXFP4A16": "mxfp4-pack-quantized",
}  # fmt: skip


def test_every_recipe_is_read_by_plain_transformers(samples: Path, tmp_path: Path) -> None:
    source = samples / "sample-llama"
    for name in RECIPES:
        asked = recipes.load(name).steps[0]
        made = replace(recipes.load(name), steps=(replace(asked, calibration=asked.calibration and SHOWN),))
        press.press(BASE, source, made, tmp_path / name)
    found = read_elsewhere(*(tmp_path / name for name in RECIPES))
    assert len(found) == len(RECIPES) >= 20
    best = found["rtn-w8a16-channel"]["loss"]
    for name, facts in found.items():
        asked = recipes.load(name).steps[0]
        assert facts["format"] == FORMAT_OF.get(asked.scheme, FORMAT_OF.get(asked.method))
        assert (facts["status"], facts["ignore"], facts["quantized"], facts["defects"]) == ("compressed", ["lm_head"], 28, [])
        assert facts["loss"] == pytest.approx(best, abs=0.9 if "w2" in name else 0.4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("name", "scheme"), [(name, scheme) for name in OURS for scheme in methods.get(name).SCHEMES])
def test_models_of_other_dtypes_run_in_the_engine(tiny: Tiny, tmp_path: Path, name: str, scheme: str, dtype: str) -> None:
    source, asked = tiny(dtype), step(name, scheme, **({"group_size": 32} if name == "rtn" else {}))
    apply(asked, source, tmp_path / "made")
    packing = formats.packed(tmp_path / "made", recipe(asked), checkpoint.shape(source))
    assert packing.not_packed == packing.extra == ()
    assert packing.bytes_found == packing.bytes_expected
    checkpoint.carry_over(source, tmp_path / "made")
    loaded = engines.for_folder(tmp_path / "made").load(tmp_path / "made")
    assert loaded.defects == ()
    assert loaded.dtype == ("bfloat16" if name == "fp4" else dtype)
    assert loaded.logits([5, 6, 7, 8]).isfinite().all()


# --- SmoothQuant ---


def test_smoothing_tames_outliers_that_static_scales_cannot_bear(samples: Path, tmp_path: Path) -> None:
    import torch

    def outliers(found: dict[str, Any]) -> None:
        # The same function, but a few channels of what the linears read are a hundred times as large.
        for layer in range(4):
            root = f"model.layers.{layer}"
            for norm, readers in (("input_layernorm", ("q", "k", "v")), ("post_attention_layernorm", ("gate", "up"))):
                found[f"{root}.{norm}.weight"][::64] *= 128
                for reader in readers:
                    part = "self_attn" if len(readers) == 3 else "mlp"
                    found[f"{root}.{part}.{reader}_proj.weight"][:, ::64] /= 128

    source = changed(samples / "sample-llama", tmp_path / "base", outliers)
    ids = torch.tensor(texts.tokens("stdlib-heldout", dense.tokenizer(source)))[: 8 * 256].view(-1, 256)

    def scores(folder: Path) -> Any:
        with torch.inference_mode():
            return engines.load("transformers").load(folder).model(ids).logits.float().log_softmax(-1)

    wanted = scores(source)
    lost = {}
    for name in ("w8a8", "smoothquant"):
        press.press(BASE, source, recipe(step(name, "W8A8", activations="static")), tmp_path / name)
        found = scores(tmp_path / name)
        lost[name] = float((wanted.exp() * (wanted - found)).sum(-1).mean())
    print({name: round(value, 4) for name, value in lost.items()})
    assert lost["smoothquant"] < lost["w8a8"] / 4
    assert math.isfinite(lost["w8a8"])


@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_smoothing_is_llm_compressor_s_and_keeps_the_function(tiny: Tiny, one_shot: OneShot, tmp_path: Path, strength: float) -> None:
    import torch
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    source = tiny("float32")
    windows = texts.windows(SHOWN, dense.tokenizer(source))
    (tmp_path / "ours").mkdir()
    smoothquant.smooth(source, tmp_path / "ours", windows, strength)
    one_shot(SmoothQuantModifier(smoothing_strength=strength), dense.load(source, dtype="float32"), tmp_path / "theirs", windows)
    base, ours, theirs = tensors(source), tensors(tmp_path / "ours"), tensors(tmp_path / "theirs")
    assert ours.keys() == base.keys()
    moved = tuple(f"{name}.weight" for name in ("layernorm", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5)
        assert bool((tensor != base[name]).any()) == name.endswith(moved)
    ids = torch.tensor(windows)
    with torch.inference_mode():
        before, after = (dense.load(folder, dtype="float32")(ids).logits for folder in (source, tmp_path / "ours"))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_smoothed_stays_as_it_is(tiny: Tiny, tmp_path: Path) -> None:
    def spoil(found: dict[str, Any]) -> None:
        found["model.layers.0.input_layernorm.weight"][3] = 0  # a channel that no text moves
        found["model.layers.1.mlp.up_proj.weight"][2, 5] = float("nan")

    source = changed(tiny("float16"), tmp_path / "base", spoil)
    outcome = apply(step("smoothquant", "W8A8"), source, tmp_path / "made")
    base, made = tensors(source), tensors(tmp_path / "made")
    last = "model.layers.1.mlp"
    assert set(kept(outcome)) == {f"{last}.gate_proj", f"{last}.up_proj"}
    assert formats.non_finite(tmp_path / "made") == (f"{last}.up_proj.weight",)
    for name in (f"{last}.gate_proj", "model.layers.1.post_attention_layernorm"):
        assert (made[f"{name}.weight"] == base[f"{name}.weight"]).all()
    assert made["model.layers.0.input_layernorm.weight"][3] == 0
    assert (made["model.layers.0.input_layernorm.weight"] != base["model.layers.0.input_layernorm.weight"]).any()


# --- layers that cannot be rounded ---


def kept(outcome: Outcome) -> dict[str, str]:
    return {name: str(facts["kept"]) for name, facts in outcome.layers.items() if "kept" in facts}


def test_a_layer_with_an_infinity_stays_as_it_is_and_is_named(tiny: Tiny, tmp_path: Path) -> None:
    def broken(found: dict[str, Any]) -> None:
        found[f"{UP}.weight"][3, 4] = float("inf")

    source = changed(tiny("bfloat16"), tmp_path / "base", broken)
    steps = step("rtn", "W4A16", group_size=32), step("w8a8", "W8A8"), step("fp8", "FP8_DYNAMIC"), step("fp4", "NVFP4A16")
    shape, base = checkpoint.shape(source), tensors(source)
    for asked in steps:
        target = tmp_path / asked.method
        outcome = apply(asked, source, target)
        checkpoint.carry_over(source, target)
        assert kept(outcome) == {UP: "its weights hold NaN or infinity", GATE: f"engines fuse it with {UP}, kept"}
        record = StepRecord(method=asked.method, text_sha256="", samples_sha256="", layers=outcome.layers, notes=())
        packing = formats.packed(target, recipe(asked), shape, (record,))
        assert packing.not_packed == packing.extra == ()
        assert packing.bytes_found == packing.bytes_expected
        assert packing.expected == len(shape.linears) - 2
        assert all((tensors(target)[f"{layer}.weight"] == base[f"{layer}.weight"]).all() for layer in (UP, GATE))
    for facts in read_elsewhere(*(tmp_path / asked.method for asked in steps)).values():
        assert sorted(facts["ignore"]) == sorted(["lm_head", UP, GATE])
        assert (facts["quantized"], facts["defects"]) == (len(shape.linears) - 2, [])


def test_scales_too_small_for_float16_keep_a_layer(tiny: Tiny, tmp_path: Path) -> None:
    def faint(found: dict[str, Any]) -> None:
        found[f"{DOWN}.weight"] = found[f"{DOWN}.weight"] * 1e-5

    source = changed(tiny("float16"), tmp_path / "base", faint)
    outcome = apply(step("w8a8", "W8A8"), source, tmp_path / "made")
    assert kept(outcome) == {DOWN: "its scales leave their dtype, or all its weights round to zero"}
    assert formats.non_finite(tmp_path / "made") == ()


@pytest.mark.parametrize("scheme", ["W8A8", "NVFP4"])
def test_inputs_that_overflow_keep_a_layer(tiny: Tiny, tmp_path: Path, scheme: str) -> None:
    def loud(found: dict[str, Any]) -> None:
        found[f"{UP}.weight"] = found[f"{UP}.weight"] * 2e5
        found[f"{GATE}.weight"] = found[f"{GATE}.weight"] * 1e3

    source = changed(tiny("float16"), tmp_path / "base", loud)
    asked = step("w8a8", "W8A8", activations="static") if scheme == "W8A8" else step("fp4", scheme)
    outcome = apply(asked, source, tmp_path / "made")
    assert kept(outcome) == {DOWN: "its inputs on the calibration text hold NaN or infinity, or leave float16"}


def test_a_base_without_a_sound_layer_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    def broken(found: dict[str, Any]) -> None:
        for name, tensor in found.items():
            if "proj" in name:
                tensor[0, 0] = float("nan")

    source = changed(tiny("bfloat16"), tmp_path / "base", broken)
    with pytest.raises(Unstable, match="Not one linear of base can be quantized: its weights hold NaN"):
        apply(step("w8a8", "W8A8"), source, tmp_path / "made")


@pytest.mark.parametrize("scheme", [("rtn", "W4A16"), ("w8a8", "W8A8"), ("fp8", "FP8_DYNAMIC"), ("fp4", "MXFP4A16")])
def test_rows_and_blocks_of_zeros_stay_zeros(tiny: Tiny, tmp_path: Path, scheme: tuple[str, str]) -> None:
    from transformers import AutoModelForCausalLM

    def pruned(found: dict[str, Any]) -> None:
        found[f"{UP}.weight"][:8] = 0
        found[f"{UP}.weight"][:, :64] = 0

    source = changed(tiny("bfloat16"), tmp_path / "base", pruned)
    outcome = apply(step(*scheme, **({"group_size": 32} if scheme[0] == "rtn" else {})), source, tmp_path / "made")
    assert kept(outcome) == {}
    from transformers import CompressedTensorsConfig

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made", quantization_config=CompressedTensorsConfig(dequantize=True))
    weight = model.get_submodule(UP).weight
    assert (weight[:8] == 0).all()
    assert (weight[:, :64] == 0).all()
    assert weight.isfinite().all()
    assert weight.any()


# --- memory ---

MEASURED = """
import sys
from pathlib import Path
import psutil
from hub.domain import Step
from runners import methods
def press(source):
    target = Path(f"{source}-made")
    target.mkdir()
    step = Step(method="rtn", scheme="W4A16", params={"group_size": 64})
    methods.get("rtn").apply(step, Path(source), target, None)
press(sys.argv[1])  # what the libraries take is no part of the model
for source in sys.argv[2:]:
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    press(source)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024 - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of memory is read from Linux's /proc")
def test_a_checkpoint_is_rounded_with_less_memory_than_it_takes(tiny: Tiny, tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.copytree(tiny("bfloat16"), tmp_path / "warm")
    config = LlamaConfig(
        hidden_size=512, intermediate_size=1408, num_hidden_layers=14, num_attention_heads=8, num_key_value_heads=8, vocab_size=8192
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.uniform_(-0.05, 0.05)
    folders = tmp_path / "sharded", tmp_path / "whole"
    for folder, size in zip(folders, ("25MB", "1GB"), strict=True):
        model.save_pretrained(folder, max_shard_size=size)
    bytes_of = sum(stored.tensor.bytes for stored in stored_tensors(folders[0]).values())
    assert bytes_of > 100e6
    command = [sys.executable, "-c", MEASURED, *map(str, (tmp_path / "warm", *folders))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    ratios = [int(line) / bytes_of for line in done.stdout.splitlines()[-2:]]
    print(f"memory for {bytes_of / 1e6:.0f} MB: in shards {ratios[0]:.2f} times that, in one file {ratios[1]:.2f} times")
    assert max(ratios) < 1
    for folder in folders:
        made = folder.with_name(f"{folder.name}-made")
        assert sorted(path.name for path in made.glob("*.safetensors*")) == sorted(path.name for path in folder.glob("*.safetensors*"))
        promise = methods.get("rtn").promise(step("rtn", "W4A16", group_size=64), checkpoint.shape(folder))
        assert {name: stored.tensor for name, stored in stored_tensors(made).items()} == promise.tensors


# --- what is refused ---


@pytest.mark.parametrize(
    "asked",
    [
        step("rtn", "W4A16", strategy="row"),
        step("rtn", "W4A16", strategy="channel", group_size=64),
        step("rtn", "W4A16", group_size=0),
        step("rtn", "W4A16", symmetric=1),
        step("w8a8", "W8A8", group_size=64),
        step("w8a8", "W8A8", activations="fixed"),
        step("w8a8", "W4A8", activations="static"),
        step("smoothquant", "W8A8", strength=1.0),
        replace(step("smoothquant", "W8A8"), calibration=None),
        replace(step("w8a8", "W8A8", activations="static"), calibration=None),
        replace(step("fp8", "FP8"), calibration=None),
        replace(step("fp4", "NVFP4"), calibration=None),
    ],
)
def test_senseless_values_are_refused(samples: Path, asked: Step) -> None:
    with pytest.raises(UsageError) as caught:
        methods.get(asked.method).check(asked, checkpoint.shape(samples / "sample-llama"))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("asked", "base", "says"),
    [
        (step("fp8", "FP8_BLOCK"), "sample-qwen3-chat", "FP8_BLOCK needs inputs divisible by 128; .* has 192"),
        (step("w8a8", "W4A8", group_size=128), "sample-qwen3-chat", "group size of 128; .* has 192"),
        *((step(name, methods.get(name).SCHEMES[0]), "sample-gpt2", "Conv1D") for name in OURS),
    ],
)
def test_models_that_do_not_fit_are_refused(samples: Path, asked: Step, base: str, says: str) -> None:
    with pytest.raises(UnfitModel, match=says) as caught:
        methods.get(asked.method).check(asked, checkpoint.shape(samples / base))
    assert caught.value.hint
