"""GPTQ, AWQ, AutoRound, bitsandbytes, torchao, HQQ: what they leave, who else reads it, what it costs, and what they do with bad layers."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Artifact, Calibration, ModelRef, Recipe, Step
from hub.errors import UnfitModel, Unstable, UsageError
from runners import checkpoint, dense, formats, methods, press, recipes, texts
from runners.checkpoint import ModelShape
from runners.engines import transformers as engine
from runners.headers import Tensor
from runners.methods import awq

BASE = ModelRef(repo_id="modelpress-samples/sample-llama", sha="0" * 40)
SHOWN = Calibration(text="stdlib-calibration", samples=8, sequence_length=128)

pytestmark = pytest.mark.integration


def recipe(method: str, scheme: str, shown: Calibration | None = SHOWN, **params: str | int | float | bool) -> Recipe:
    """Return a recipe of one step."""
    step = Step(method=method, scheme=scheme, params=params, calibration=shown)
    return replace(recipes.load("gptq-w4a16-g64"), format=methods.get(method).FORMAT, steps=(step,))


def small(width: int = 256, mlp: int = 768) -> ModelShape:
    tensors = {"model.embed_tokens.weight": (64, width)}
    root = "model.layers.0"
    tensors |= {f"{root}.self_attn.{name}_proj.weight": (width, width) for name in "qkvo"}
    tensors |= {f"{root}.mlp.{name}_proj.weight": (mlp, width) for name in ("gate", "up")} | {f"{root}.mlp.down_proj.weight": (width, mlp)}
    return ModelShape(
        architecture="LlamaForCausalLM",
        layers=1,
        hidden_size=width,
        intermediate_size=mlp,
        vocab_size=64,
        context=512,
        dtype="BF16",
        tensors={name: Tensor(dtype="BF16", shape=shape) for name, shape in tensors.items()},
    )


@pytest.mark.parametrize(
    ("asked", "shape", "error", "says"),
    [
        (recipe("gptq", "W4A16", group_size=-1), small(), UnfitModel, "4 bits on a CPU in groups of 32, 64, 128, 256"),
        (recipe("gptq", "W4A16", group_size=64), small(64, 172), UnfitModel, "172 inputs"),
        (recipe("awq", "W4A16", group_size=32), small(64, 172), UnfitModel, "172 inputs"),
        (recipe("awq", "W4A16", group_size=48), small(), UsageError, "32, 64 or 128"),
        (recipe("autoround", "W4A16", iters=0), small(), UsageError, "at least 1"),
        (recipe("torchao", "W4A8", None, group_size=64), small(64, 172), UnfitModel, "172 inputs"),
        (recipe("torchao", "W8A8", None, group_size=64), small(), UsageError, "left out for 8 bits"),
        (recipe("hqq", "W4A16", None, group_size=2), small(), UsageError, "at least 4"),
        (recipe("bitsandbytes", "INT8", None, double_quant=True), small(), UsageError, "false for INT8"),
    ],
)
def test_what_cannot_be_is_said_before_anything_runs(asked: Recipe, shape: ModelShape, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        press.check(asked, shape)


def test_awq_rounds_as_the_formula_says_and_another_library_unpacks_it() -> None:
    import torch
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    torch.manual_seed(0)
    weight = torch.randn(16, 128) * torch.logspace(-3, 1, 16)[:, None]
    weight[2, :64], weight[3, 64:] = weight[2, :64].abs(), 0.0
    levels, scales, zeros = awq.rounded(weight, 64)
    expected = torch.empty(16, 128, dtype=torch.float64)
    for row in range(16):
        for start in (0, 64):
            group = weight[row, start : start + 64].double()
            low, high = min(float(group.min()), 0.0), max(float(group.max()), 0.0)
            scale = float(torch.tensor((high - low) / 15).half()) or 1.0
            zero = min(max(round(-low / scale), 0), 15)
            level = ((group / scale).round() + zero).clamp(0, 15)
            expected[row, start : start + 64] = (level - zero) * scale
    assert torch.allclose(awq.restored(levels, scales, zeros).double(), expected, rtol=1e-6, atol=0)
    stored = awq.packed(levels, scales, zeros)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()} == {
        "qweight": (torch.int32, (128, 2)), "qzeros": (torch.int32, (2, 2)), "scales": (torch.float16, (2, 16)),
    }  # fmt: skip
    theirs = dequantize_gemm(stored["qweight"], stored["qzeros"], stored["scales"].float(), bits=4, group_size=64)
    assert torch.equal(theirs.t(), awq.restored(levels, scales, zeros))


def test_awq_scales_and_clips_where_that_lessens_the_error() -> None:
    import torch

    torch.manual_seed(0)
    weight, inputs = torch.randn(32, 128), torch.randn(512, 128)
    inputs[:, :4] *= 50
    gram = inputs.t() @ inputs / 512

    def lost(new: torch.Tensor) -> float:
        return float(((new - weight) @ inputs.t()).square().mean())

    plain = lost(awq.restored(*awq.rounded(weight, 64)))
    exponent, scale = awq.best_scale([weight], gram, 64)
    scaled = lost(awq.restored(*awq.rounded(weight * scale, 64)) / scale)
    clipped = lost(awq.restored(*awq.rounded(weight, 64, awq.clipping(weight, gram, 64))))
    assert exponent > 0
    assert scaled < 0.5 * plain
    assert clipped < plain


@pytest.fixture(scope="module")
def made(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sample Llama by a few recipes, shown little text."""
    folder = tmp_path_factory.mktemp("made")
    wanted = {
        "awq": recipe("awq", "W4A16", group_size=64),
        "gptq": recipe("gptq", "W4A16", group_size=64, desc_act=True),
        "gptq3": recipe("gptq", "W3A16", group_size=64),
        "autoround": recipe("autoround", "W2A16", group_size=32, iters=2),
    }
    for name, asked in wanted.items():
        press.press(BASE, samples / "sample-llama", asked, folder / name)
    return {name: folder / name for name in wanted}


LOADERS = """
import json, os, sys
os.environ["GPTQMODEL_CPU_WORKERS"] = "2"
import torch
from gptqmodel import GPTQModel
from transformers import AutoModelForCausalLM
found = {}
for folder in sys.argv[1:]:
    ids = torch.arange(40, 104)[None]
    with torch.inference_mode():
        loaded = GPTQModel.load(folder, device="cpu", dtype=torch.bfloat16).model.eval()
        theirs = loaded(ids).logits.float()
        dense = [name for name, module in loaded.named_modules() if type(module) is torch.nn.Linear]
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
        ours = model.eval()(ids).logits.float()
        kept = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    found[folder] = {"apart": float((theirs - ours).abs().max() / ours.std()), "dense": dense, "kept": kept,
                     "missing": sorted(map(str, info["missing_keys"])), "kernel": loaded.model.layers[0].mlp.up_proj.QUANT_TYPE}
print("FOUND " + json.dumps(found))
"""


def loaded_elsewhere(folder: Path, *folders: Path) -> dict[str, dict[str, Any]]:
    """Return what gptqmodel's loader and transformers make of checkpoints in a clean process."""
    names = [str(path) for path in folders]
    done = subprocess.run([sys.executable, "-c", LOADERS, *names], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return {Path(name).name: facts for name, facts in json.loads(line.removeprefix("FOUND ")).items()}


def test_gptqmodel_s_own_loader_and_transformers_agree(made: dict[str, Path], tmp_path: Path) -> None:
    found = loaded_elsewhere(tmp_path, *made.values())
    print({name: (facts["apart"], facts["kernel"]) for name, facts in found.items()})
    for facts in found.values():
        assert facts["missing"] == []
        assert facts["dense"] == facts["kept"] == ["lm_head"]
        assert facts["apart"] < 0.05
    assert "awq" in found["awq"]["kernel"]


def test_the_manifest_says_what_each_layer_took(made: dict[str, Path]) -> None:
    def layers(name: str) -> dict[str, Any]:
        manifest = checkpoint.read_manifest(made[name])
        assert manifest is not None
        return {layer: dict(facts) for layer, facts in manifest.steps[0].layers.items()}

    gptq = layers("gptq")
    assert len(gptq) == 28
    assert all(facts["damp"] == 0.05 and facts["loss"] > 0 for facts in gptq.values())
    assert all(0 <= facts["exponent"] < 1 and 0 < facts["weight_error"] < 0.2 for facts in layers("awq").values())


def spoilt(samples: Path, folder: Path) -> Path:
    """Copy the sample Llama: layer 1's MLP multiplies its inputs to 1e10 twice, so that squares overflow; one weight of layer 3 is NaN."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(samples / "sample-llama", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.post_attention_layernorm.weight"] *= 1e10
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1e-18
    tensors["model.layers.3.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


OVERFLOW, NAN = "model.layers.1.mlp.down_proj", "model.layers.3.mlp.down_proj"


def check_kept(base: Path, folder: Path, asked: Recipe, artifact: Artifact) -> None:
    """The layers named as kept have the base's very bytes, and all others are packed."""
    import torch
    from safetensors.torch import load_file

    packing = formats.packed(folder, asked, checkpoint.shape(base), artifact.steps)
    kept = artifact.steps[0].kept
    assert packing.expected == packing.found == 28 - len(kept)
    assert packing.extra == packing.not_packed == ()
    assert packing.bytes_found == pytest.approx(packing.bytes_expected, rel=0.01)
    before, after = load_file(base / "model.safetensors"), load_file(folder / "model.safetensors")
    for name in kept:
        assert torch.equal(before[f"{name}.weight"].nan_to_num(7), after[f"{name}.weight"].nan_to_num(7))


def test_layers_that_fail_are_kept_and_named(samples: Path, tmp_path: Path) -> None:
    base = spoilt(samples, tmp_path / "base")
    asked = {
        "gptq": recipe("gptq", "W4A16", group_size=64),
        "awq": recipe("awq", "W4A16", group_size=64),
        "autoround": recipe("autoround", "W4A16", group_size=64, iters=1),
    }
    for name, wanted in asked.items():
        artifact = press.press(BASE, base, wanted, tmp_path / name)
        kept = artifact.steps[0].kept
        assert set(kept) == {OVERFLOW, NAN}, name
        assert kept[NAN] == "its weights hold NaN or infinity"
        assert "inputs on the calibration text" in kept[OVERFLOW]
        check_kept(base, tmp_path / name, wanted, artifact)
    for name, facts in loaded_elsewhere(tmp_path, *(tmp_path / name for name in asked)).items():
        assert facts["missing"] == [], name
        assert set(facts["dense"]) == set(facts["kept"]) == {OVERFLOW, NAN, "lm_head"}, name


@pytest.mark.parametrize(
    ("method", "scheme"), [("bitsandbytes", "NF4"), ("bitsandbytes", "INT8"), ("torchao", "W8A16"), ("torchao", "W8A8"), ("hqq", "W4A16")]
)
def test_a_layer_with_nan_is_kept_where_no_text_is_read(samples: Path, tmp_path: Path, method: str, scheme: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = spoilt(samples, tmp_path / "base")
    asked = recipe(method, scheme, None)
    artifact = press.press(BASE, base, asked, tmp_path / "made")
    assert artifact.steps[0].kept == {NAN: "its weights hold NaN or infinity"}
    check_kept(base, tmp_path / "made", asked, artifact)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "made")
    assert type(model.get_submodule(NAN)) is torch.nn.Linear


@pytest.mark.parametrize("method", ["gptq", "awq", "autoround", "bitsandbytes", "torchao"])
def test_a_model_of_nan_alone_is_refused(samples: Path, tmp_path: Path, method: str) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(samples / "sample-llama", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    spoilt = {name: tensor * float("nan") if "_proj" in name else tensor for name, tensor in tensors.items()}
    save_file(spoilt, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unstable, match="Not one linear can be quantized"):
        press.press(BASE, tmp_path / "base", recipe(method, methods.get(method).SCHEMES[-1], SHOWN), tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_gptq_takes_more_damping_where_a_matrix_has_no_factor(samples: Path, tmp_path: Path) -> None:
    few = replace(SHOWN, samples=1, sequence_length=64)  # fewer tokens than columns: the matrix is singular
    artifact = press.press(
        BASE, samples / "sample-llama", recipe("gptq", "W4A16", few, group_size=64, damp_percent=1e-9), tmp_path / "made"
    )
    damps = {float(facts["damp"]) for facts in artifact.steps[0].layers.values()}
    assert not artifact.steps[0].kept
    assert max(damps) >= 0.01


def test_scales_beyond_half_precision_keep_a_layer(samples: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    name = "model.layers.0.mlp.up_proj"
    shutil.copytree(samples / "sample-llama", tmp_path / "base")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors[f"{name}.weight"] *= 1e8
    tensors["model.layers.0.mlp.down_proj.weight"] *= 1e-8
    save_file(tensors, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    asked = recipe("gptq", "W8A16", group_size=-1)
    artifact = press.press(BASE, tmp_path / "base", asked, tmp_path / "made")
    assert artifact.steps[0].kept[name] == "its scales leave float16"
    check_kept(tmp_path / "base", tmp_path / "made", asked, artifact)


def test_torchao_s_files_are_the_same_every_time(samples: Path, tmp_path: Path) -> None:
    asked = recipe("hqq", "W4A16", None)
    first = press.press(BASE, samples / "sample-llama", asked, tmp_path / "first")
    assert press.press(BASE, samples / "sample-llama", asked, tmp_path / "second").digest == first.digest


class Judge:
    """Perplexity, and divergence from the base, on the same held-out windows."""

    def __init__(self, base: Path, windows: list[Any]) -> None:
        self.windows = windows
        self.base = [scores.log_softmax(-1) for scores in self._scores(base)]

    def _scores(self, folder: Path) -> list[Any]:
        loaded = engine.load(folder)
        assert loaded.defects == ()
        return [loaded.logits(window.tolist()).float() for window in self.windows]

    def __call__(self, folder: Path) -> tuple[float, float]:
        """Return perplexity and mean KL divergence."""
        import torch

        found = [scores.log_softmax(-1) for scores in self._scores(folder)]
        lost = [torch.nn.functional.nll_loss(scores[:-1], window[1:]) for scores, window in zip(found, self.windows, strict=True)]
        divergence = [(base.exp() * (base - scores)).sum(-1).mean() for base, scores in zip(self.base, found, strict=True)]
        return math.exp(float(torch.stack(lost).mean())), float(torch.stack(divergence).mean())


def test_each_beats_rounding_to_nearest_on_the_sample(samples: Path, tmp_path: Path) -> None:
    import torch

    source = samples / "sample-llama"
    ids = torch.tensor(texts.tokens("stdlib-heldout", dense.tokenizer(source)))
    judge = Judge(source, list(ids[: len(ids) // 512 * 512].view(-1, 512)[::10]))
    shown = replace(SHOWN, samples=16, sequence_length=512)
    found = {}
    for bits in (3, 4):
        found[f"rtn {bits}"] = recipe("rtn", f"W{bits}A16", None, group_size=64)
        found[f"gptq {bits}"] = recipe("gptq", f"W{bits}A16", shown, group_size=64)
        found[f"act-order {bits}"] = recipe("gptq", f"W{bits}A16", shown, group_size=64, desc_act=True)
        found[f"hqq {bits}"] = recipe("hqq", f"W{bits}A16", None, group_size=64)
    for group in (64, 128):
        found[f"rtn asym {group}"] = recipe("rtn", "W4A16", None, group_size=group, symmetric=False)
        found[f"awq {group}"] = recipe("awq", "W4A16", shown, group_size=group)
    found["autoround 3"] = recipe("autoround", "W3A16", replace(shown, samples=8, sequence_length=256), group_size=64, iters=10)
    values = {}
    for name, asked in found.items():
        press.press(BASE, source, asked, tmp_path / name)
        values[name] = judge(tmp_path / name)
    print({name: (round(perplexity, 3), round(kl, 4)) for name, (perplexity, kl) in values.items()})
    for bits in (3, 4):
        for name in ("gptq", "act-order", "hqq"):
            assert values[f"{name} {bits}"] < values[f"rtn {bits}"]
        assert values[f"act-order {bits}"][1] < 0.5 * values[f"rtn {bits}"][1]
    for group in (64, 128):
        assert values[f"awq {group}"][0] < values[f"rtn asym {group}"][0]
        assert values[f"awq {group}"][1] < 0.95 * values[f"rtn asym {group}"][1]
    assert values["autoround 3"] < values["rtn 3"]


def widened(source: Path, folder: Path) -> Path:
    """Copy the stories model with 20 MLP neurons of zeros in each layer: the same function, in widths that words of 32 bits divide."""
    from safetensors.torch import load_file, save_file
    from torch.nn.functional import pad

    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if ".mlp." in name:
            tensors[name] = pad(tensor, (0, 20) if "down" in name else (0, 0, 0, 20))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    dense.edit_config(folder, intermediate_size=192)
    return folder


@pytest.mark.shared
def test_each_beats_rounding_to_nearest_on_a_real_model(shared: Path, tmp_path: Path) -> None:
    import torch

    source = shared / "models" / "stories260K"
    stories = json.loads((shared / "data" / "tinystories-sample" / "tinystories_1000.json").read_text(encoding="utf-8"))
    tokenizer = dense.tokenizer(source)
    text = tmp_path / "stories.txt"
    text.write_text("\n".join(stories[100:400]), encoding="utf-8")
    judge = Judge(source, [torch.tensor([1, *tokenizer(story, add_special_tokens=False)["input_ids"]][:512]) for story in stories[:40]])
    wide = widened(source, tmp_path / "wide")
    assert judge(wide)[1] < 1e-3
    shown = Calibration(text=str(text), samples=64, sequence_length=256)
    wanted = {
        "rtn asym 4": (wide, recipe("rtn", "W4A16", None, group_size=32, symmetric=False)),
        "awq 4": (wide, recipe("awq", "W4A16", shown, group_size=32)),
        "rtn row 4": (source, recipe("rtn", "W4A16", None, strategy="channel")),
        "hqq row 4": (source, recipe("hqq", "W4A16", None, group_size=-1)),
        "hqq fours 4": (source, recipe("hqq", "W4A16", None, group_size=4)),
        "int8": (source, recipe("bitsandbytes", "INT8", None)),
        "torchao": (source, recipe("torchao", "W8A16", None)),
    }
    for bits in (3, 4):
        wanted[f"rtn {bits}"] = (wide, recipe("rtn", f"W{bits}A16", None, group_size=32))
        wanted[f"gptq {bits}"] = (wide, recipe("gptq", f"W{bits}A16", shown, group_size=32))
        wanted[f"act-order {bits}"] = (wide, recipe("gptq", f"W{bits}A16", shown, group_size=32, desc_act=True))
    values = {"base": judge(source)[0]}
    for name, (base, asked) in wanted.items():
        press.press(BASE, base, asked, tmp_path / name)
        values[name] = judge(tmp_path / name)[0]
    print({name: round(value, 3) for name, value in values.items()})
    lost = {name: value - values["base"] for name, value in values.items()}
    for bits in (3, 4):
        assert lost[f"gptq {bits}"] < 0.75 * lost[f"rtn {bits}"]
        assert lost[f"act-order {bits}"] < 0.75 * lost[f"rtn {bits}"]
    assert lost["awq 4"] < lost["rtn asym 4"]
    assert lost["hqq fours 4"] < lost["hqq row 4"] < lost["rtn row 4"]
    assert lost["int8"] < 0.02
    assert lost["torchao"] < 0.02
