"""Records of a small made-up family for the tests of gate, statistics, cards and publishing."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from hub.domain import (
    Artifact,
    ArtifactFile,
    Calibration,
    Candidate,
    Environment,
    Facts,
    HubFile,
    LayerError,
    Measurement,
    ModelRef,
    Recipe,
    Step,
    StepRecord,
    Thresholds,
    variant_id,
)
from hub.history import BaseRecord, Check, VariantRecord, Verdict

PROTOCOL = "stdlib-heldout@512"
AT = "2026-11-20T10:00:00+00:00"
BASE = ModelRef(repo_id="sample-org/tiny-llama", sha="0123456789abcdef0123456789abcdef01234567")
MACHINE = Environment(
    hardware="Example CPU 2000",
    device="cpu",
    cores=2,
    memory_bytes=8_000_000_000,
    system="Linux 6.1",
    python="3.11.9",
    libraries={"torch": "2.13.0", "transformers": "5.17.0", "gptqmodel": "7.6.0", "optimum": "2.3.0"},
)
UNITS = {
    "perplexity": ("1", False),
    "perplexity_ratio": ("1", False),
    "kl_divergence": ("nat/token", False),
    "same_top_token": ("1", True),
    "prefill_tokens_per_second": ("token/s", True),
    "decode_tokens_per_second": ("token/s", True),
    "prefill_speedup": ("1", True),
    "decode_speedup": ("1", True),
    "load_time": ("s", False),
    "peak_memory": ("B", False),
    "disk_size": ("B", False),
    "bits_per_weight": ("bit", False),
    "delta_perplexity": ("1", False),
    "rms_delta_probability": ("1", False),
    "time_to_first_token": ("s", False),
    "time_per_output_token": ("s", False),
    "weight_memory": ("B", False),
    "kv_cache_memory": ("B", False),
    "activation_memory": ("B", False),
    "accuracy": ("1", True),
}


def measured(
    metric: str, value: float, half: float = 0.0, *, protocol: str = PROTOCOL, engine: str = "transformers 5.17.0 bfloat16"
) -> Measurement:
    """A measurement with a symmetric interval."""
    unit, higher = UNITS[metric]
    quality = metric in ("perplexity", "perplexity_ratio", "kl_divergence", "same_top_token")
    return Measurement(
        metric=metric,
        value=value,
        unit=unit,
        higher_is_better=higher,
        ci_low=value - half,
        ci_high=value + half,
        interval="bootstrap over windows, 1000 draws" if quality else "Student's t over repeats",
        samples=96 if quality else 5,
        protocol=protocol,
        engine=engine,
        measured_at=AT,
    )


def make_recipe(name: str = "gptq-w4a16-g128", **changes: object) -> Recipe:
    """A GPTQ recipe, or another made from it."""
    recipe = Recipe(
        name=name,
        title="GPTQ, 4-bit weights in groups of 128",
        summary="Weights in 4 bits, activations in 16.",
        format="gptq",
        steps=(
            Step(
                method="gptq",
                scheme="W4A16",
                params={"group_size": 128, "desc_act": False},
                calibration=Calibration(text="stdlib-calibration", samples=64, sequence_length=512),
            ),
        ),
        thresholds=Thresholds(kl_divergence=0.1, perplexity_ratio=1.1),
    )
    return replace(recipe, **changes)  # type: ignore[arg-type]


def make_base(**changes: object) -> BaseRecord:
    """The base model with its own numbers; changes go to its candidate."""
    candidate = Candidate(
        ref=BASE,
        downloads=1000,
        likes=10,
        trending_score=1.0,
        created_at="2026-01-01T00:00:00+00:00",
        last_modified="2026-02-01T00:00:00+00:00",
        license="apache-2.0",
        license_name=None,
        license_link=None,
        gated=None,
        private=False,
        library_name="transformers",
        pipeline_tag="text-generation",
        architecture="LlamaForCausalLM",
        base_models=(),
        tags=("llama",),
        languages=("en",),
        parameters=4_200_000,
        files=(HubFile(path="model.safetensors", size=8_400_000, blob_id="a" * 40, sha256="a" * 64),),
    )
    measurements = (
        measured("perplexity", 14.20, 0.31),
        measured("prefill_tokens_per_second", 5200.0, 90.0),
        measured("decode_tokens_per_second", 210.0, 6.0),
        measured("load_time", 0.41, 0.03),
        measured("peak_memory", 412_000_000.0, 4_000_000.0),
        measured("disk_size", 8_612_345.0),
        measured("bits_per_weight", 16.0),
    )
    return BaseRecord(candidate=replace(candidate, **changes), rank=1, measurements=measurements, environment=MACHINE)  # type: ignore[arg-type]


def make_facts(**changes: object) -> Facts:
    """What an inspection of a sound artifact finds."""
    facts = Facts(
        loads=True,
        load_error="",
        tensors=120,
        packed_expected=28,
        packed_found=28,
        not_packed=(),
        non_finite=(),
        tensor_bytes_expected=2_600_000,
        tensor_bytes_found=2_610_000,
        missing_files=(),
        unexpected_files=(),
        checksum_errors=(),
        prompt="def main(",
        generated_ids=(12, 44, 7, 301),
        generated_text="def main(self):",
        engine="transformers 5.17.0 bfloat16",
    )
    return replace(facts, **changes)  # type: ignore[arg-type]


def make_layers(**errors: float) -> tuple[LayerError, ...]:
    """Errors of a decoder layer with its linear layers; double underscores stand for dots."""
    protocol = "stdlib-calibration@256, 4 windows, seed 0"
    return tuple(
        LayerError(layer=f"model.layers.{name.replace('__', '.')}", error=error, tokens=1024, protocol=protocol)
        for name, error in errors.items()
    )


def make_variant(
    recipe: Recipe | None = None,
    *,
    kl: float = 0.0123,
    ratio: float = 1.021,
    decode: float = 95.0,
    size: int = 2_712_345,
    file: str = "model.safetensors",
    steps: tuple[StepRecord, ...] = (),
    layers: tuple[LayerError, ...] = (),
    engine: str = "transformers 5.17.0 bfloat16",
) -> VariantRecord:
    """A pressed and measured variant that has no verdict yet."""
    recipe = recipe or make_recipe()
    identity = variant_id(BASE, recipe)
    artifact = Artifact(
        variant_id=identity,
        base=BASE,
        recipe=recipe,
        files=(
            ArtifactFile(path="config.json", size=1_204, sha256="c" * 64),
            ArtifactFile(path=file, size=size - 1_204, sha256="d" * 64),
        ),
        parameters=4_200_000,
        made_at=AT,
        libraries={"gptqmodel": "7.6.0", "torch": "2.13.0", "transformers": "5.17.0"},
        steps=steps,
    )
    measurements = (
        measured("perplexity", 14.20 * ratio, 0.32),
        measured("perplexity_ratio", ratio, 0.004),
        measured("kl_divergence", kl, 0.0008),
        measured("same_top_token", 0.934, 0.003),
        measured("prefill_tokens_per_second", 3100.0, 70.0),
        measured("decode_tokens_per_second", decode, 2.0),
        measured("prefill_speedup", 3100.0 / 5200.0, 0.02),
        measured("decode_speedup", decode / 210.0, 0.04),
        measured("load_time", 1.9, 0.1),
        measured("peak_memory", 380_000_000.0, 5_000_000.0),
        measured("disk_size", float(size)),
        measured("bits_per_weight", 4.97),
    )
    return VariantRecord(
        variant_id=identity,
        base=BASE,
        recipe=recipe,
        artifact=artifact,
        press_seconds=31.4,
        press_peak_memory_bytes=1_400_000_000,
        measurements=tuple(replace(number, engine=engine) for number in measurements),
        environment=MACHINE,
        verdicts=(),
        release=None,
        failure=None,
        layers=layers,
    )


def with_verdict(record: VariantRecord, facts: Facts | None = None) -> VariantRecord:
    """The record after the gate judged its artifact."""
    from leaderboard.gate import judge

    assert record.artifact is not None
    verdict = judge(record, facts or make_facts(), base=make_base(), stage="artifact", subject=record.artifact.digest, at=AT)
    return replace(record, verdicts=(*record.verdicts, verdict))


@pytest.fixture
def make() -> SimpleNamespace:
    """Makers of records: base, recipe, variant, facts, measured; `judged` adds the gate's verdict; PROTOCOL, BASE, MACHINE, AT."""
    return SimpleNamespace(
        base=make_base,
        recipe=make_recipe,
        variant=make_variant,
        facts=make_facts,
        layers=make_layers,
        measured=measured,
        judged=with_verdict,
        verdict=Verdict,
        check=Check,
        protocol=PROTOCOL,
        ref=BASE,
        machine=MACHINE,
        at=AT,
    )
