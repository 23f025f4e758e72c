"""A made-up family of base models and variants, written to a real store through its own writes, for the tests of the site."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from hub.domain import (
    Artifact,
    ArtifactFile,
    Calibration,
    Candidate,
    Environment,
    Failure,
    HubFile,
    Job,
    JobResult,
    LayerError,
    Measurement,
    ModelRef,
    Recipe,
    Refusal,
    Step,
    StepRecord,
    Thresholds,
    variant_id,
)
from hub.history import Check, Release, Verdict
from hub.protocol import Memory, Protocol, Quality, Speed, Text
from hub.scheduling import Plan
from hub.store import Store
from leaderboard.exports import copy_sqlite

from ..conftest import UNITS  # noqa: TID252

AT = "2026-11-20T10:{:02d}:00+00:00"
HUB = "http://127.0.0.1:8757"
PROTOCOL = Protocol(
    name="stdlib-heldout@512",
    text=Text(name="stdlib-heldout", sha256="5e" * 32),
    quality=Quality(sequence_length=512, windows=64),
    speed=Speed(batches=(1,), contexts=(256,), modes=("eager",), new_tokens=32, repeats=9, seconds=0.0, warmup=2),
    memory=Memory(contexts=(), loads=3),
)
MACHINE = Environment(
    hardware="Example CPU 2000",
    device="cpu",
    cores=2,
    memory_bytes=8_000_000_000,
    system="Linux 6.1",
    python="3.11.9",
    libraries={"torch": "2.13.0", "transformers": "5.17.0", "gptqmodel": "7.6.0", "compressed-tensors": "0.19.0"},
)


def recipe(name: str, title: str, summary: str, checkpoint_format: str, *steps: tuple[str, str], track: str = "serving") -> Recipe:
    """A recipe of uncomplicated steps, all calibrated alike."""
    shown = Calibration(text="stdlib-calibration", samples=64, sequence_length=512)
    return Recipe(
        name=name,
        title=title,
        summary=summary,
        format=checkpoint_format,
        track="research" if track == "research" else "serving",
        steps=tuple(Step(method=method, scheme=scheme, params={"group_size": 128}, calibration=shown) for method, scheme in steps),
        thresholds=Thresholds(kl_divergence=0.2, perplexity_ratio=1.25),
    )


RECIPES = {
    r.name: r
    for r in (
        recipe(
            "gptq-w4a16-g128", "GPTQ, 4-bit weights in groups of 128", "Weights in 4 bits, activations in 16.", "gptq", ("gptq", "W4A16")
        ),
        recipe("gptq-w3a16-g64", "GPTQ, 3-bit weights in groups of 64", "Weights in 3 bits, activations in 16.", "gptq", ("gptq", "W3A16")),
        recipe(
            "int8-w8a8",
            "8-bit weights and activations",
            "Per channel, activations per token.",
            "compressed-tensors",
            ("smoothquant", "W8A8"),
        ),
        recipe("bnb-nf4", "bitsandbytes NF4", "4-bit normal float in blocks of 64, no calibration.", "bitsandbytes", ("bnb", "NF4")),
        recipe("wanda-50", "Wanda, half of the weights", "Unstructured sparsity.", "dense", ("wanda", "50 %"), track="research"),
        recipe(
            "depth-distil",
            "A quarter of the layers less, distilled",
            "Layers dropped, then taught by the base.",
            "dense",
            ("depth", "-25 %"),
            ("distil", "KL"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one variant: size in MB, perplexity ratio ± half, KL, decode speed, and how far it came."""

    size: float
    ratio: float
    half: float
    kl: float
    decode: float
    bits: float
    end: str = "verified"
    layers: tuple[LayerError, ...] = ()
    steps: tuple[StepRecord, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base model with the outcomes of its recipes; a recipe without one is only planned."""

    repo_id: str
    architecture: str
    parameters: int
    size: float
    perplexity: float
    decode: float
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    licence: str = "apache-2.0"

    @property
    def ref(self) -> ModelRef:
        return ModelRef(repo_id=self.repo_id, sha=(self.repo_id.encode().hex() * 3)[:40])


def measured(metric: str, value: float, half: float = 0.0) -> Measurement:
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
        samples=64 if quality else 9,
        protocol=PROTOCOL.name,
        engine="transformers",
        measured_at=AT.format(20),
    )


def speeds(size: float, decode: float) -> list[Measurement]:
    """Speed, memory and size of a model of so many megabytes; points of curves lie far off and come last, so that one mistaken is seen."""
    numbers = [
        measured("decode_tokens_per_second", decode, decode * 0.02),
        measured("prefill_tokens_per_second", decode * 21.3, decode * 0.4),
        measured("load_time", 0.2 + size / 30, 0.03),
        measured("peak_memory", 390e6 + size * 1.2e6, 3e6),
        measured("disk_size", size * 1e6),
    ]
    points = [{"mode": "eager", "batch": batch, "context": 64} for batch in (8, 64)]
    later = AT.format(59)
    return [
        *numbers,
        *(replace(numbers[0], value=decode * 1e3, conditions=point, samples=9999, measured_at=later) for point in points),
        replace(numbers[3], value=9e12, conditions={"context": 32768}, basis="estimated", samples=9999, measured_at=later),
        replace(numbers[0], metric="accuracy", value=0.5, conditions={"task": "boolq"}, protocol="tasks", engine="other 1.0"),
    ]


class World:
    """Writes families to a store the way a run does."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def write(
        self, families: Sequence[Family], *, refusals: Sequence[Refusal] = (), recipes: Sequence[Recipe] = tuple(RECIPES.values())
    ) -> None:
        self.store.record_models([self.candidate(family) for family in families], AT.format(0))
        self.store.record_refusals(list(refusals))
        jobs: list[Job] = []
        for family in families:
            jobs.append(Job(kind="measure", base=family.ref, protocol=PROTOCOL))
            for r in recipes:
                jobs += [Job(kind="press", base=family.ref, recipe=r), Job(kind="measure", base=family.ref, recipe=r, protocol=PROTOCOL)]
        self.store.record_plan(Plan(jobs=tuple(jobs), refusals=tuple(r for r in refusals if r.recipe), done=0))
        for family in families:
            if family.outcomes:
                self.finish(
                    Job(kind="measure", base=family.ref, protocol=PROTOCOL),
                    measurements=(
                        measured("perplexity", family.perplexity, family.perplexity * 0.022),
                        measured("bits_per_weight", 16.0),
                        *speeds(family.size, family.decode),
                    ),
                )
            for r in recipes:
                if outcome := family.outcomes.get(r.name):
                    self.make(family, r, outcome)

    def candidate(self, family: Family) -> Candidate:
        return Candidate(
            ref=family.ref,
            downloads=48_210,
            likes=131,
            trending_score=4.0,
            created_at=AT.format(0),
            last_modified=AT.format(0),
            license=family.licence,
            license_name=None,
            license_link=None,
            gated=None,
            private=False,
            library_name="transformers",
            pipeline_tag="text-generation",
            architecture=family.architecture,
            base_models=(),
            tags=(),
            languages=("en",),
            parameters=family.parameters,
            files=(HubFile(path="model.safetensors", size=int(family.size * 1e6), blob_id="a" * 40, sha256="a" * 64),),
        )

    def finish(self, job: Job, **result: object) -> None:
        self.store.start(job)
        done = JobResult(
            job_id=job.id,
            environment=MACHINE,
            started_at=AT.format(10),
            seconds=21.4,
            stages={"load": 1.2},
            peak_memory_bytes=1_400_000_000,
        )
        self.store.finish(job, replace(done, **result))  # type: ignore[arg-type]

    def fail(self, job: Job, error: str, reason: str, hint: str) -> None:
        self.store.start(job)
        self.store.fail(
            job, Failure(job_id=job.id, error=error, reason=reason, hint=hint, log_tail="secret path", seconds=3.2, retryable=False)
        )

    def make(self, family: Family, r: Recipe, outcome: Outcome) -> None:
        press, measure = Job(kind="press", base=family.ref, recipe=r), Job(kind="measure", base=family.ref, recipe=r, protocol=PROTOCOL)
        if outcome.end == "failed":
            reason = "the layer model.layers.0.self_attn.q_proj has 192 inputs, which do not divide by the group size 128"
            self.fail(press, "UnfitModel", reason, "take a recipe with groups of 64")
            return
        identity = variant_id(family.ref, r)
        files = (ArtifactFile(path="model.safetensors", size=int(outcome.size * 1e6), sha256="d" * 64),)
        artifact = Artifact(
            variant_id=identity,
            base=family.ref,
            recipe=r,
            files=files,
            parameters=family.parameters,
            made_at=AT.format(15),
            libraries={"torch": "2.13.0"},
            steps=outcome.steps,
        )
        self.finish(press, artifact=artifact)
        if outcome.end == "pressed":
            return
        self.finish(
            measure,
            layers=outcome.layers,
            measurements=(
                measured("perplexity", family.perplexity * outcome.ratio, family.perplexity * 0.023),
                measured("perplexity_ratio", outcome.ratio, outcome.half),
                measured("kl_divergence", outcome.kl, outcome.kl * 0.04),
                measured("same_top_token", max(0.3, 0.985 - math.sqrt(outcome.kl) * 0.4), 0.003),
                measured("bits_per_weight", outcome.bits),
                *speeds(outcome.size, outcome.decode),
                measured("decode_speedup", outcome.decode / family.decode, 0.03 * outcome.decode / family.decode),
                measured("prefill_speedup", outcome.decode / family.decode, 0.03 * outcome.decode / family.decode),
            ),
        )
        held = outcome.end == "held"
        checks = (
            Check(name="loads", passed=True, detail="78 tensors, no error"),
            Check(name="finite", passed=True, detail="no NaN and no infinity in any tensor"),
            Check(name="divergence", passed=not held, detail=f"KL divergence {outcome.kl} nats/token, at most 0.2 allowed"),
        )
        verdict = Verdict(variant_id=identity, stage="artifact", subject=artifact.digest, checks=checks, judged_at=AT.format(30))
        self.store.record_verdict(verdict)
        if held:
            return
        repo = f"modelpress/{family.ref.name}-{r.name}"
        release = Release(
            variant_id=identity, repo_id=repo, sha="b" * 40, artifact_digest=artifact.digest, url=f"{HUB}/{repo}", released_at=AT.format(40)
        )
        self.store.published.settle(release)
        if outcome.end == "verified":
            self.store.record_verdict(replace(verdict, stage="release", subject=release.sha, judged_at=AT.format(45)))
            self.store.mark_verified(identity, AT.format(45))


LLAMA = Family(
    repo_id="modelpress-samples/sample-llama",
    architecture="LlamaForCausalLM",
    parameters=3_737_856,
    size=7.62,
    perplexity=14.13,
    decode=212,
    outcomes={
        "gptq-w4a16-g128": Outcome(size=2.91, ratio=1.0212, half=0.0031, kl=0.0261, decode=96, bits=4.94),
        "gptq-w3a16-g64": Outcome(size=2.58, ratio=1.094, half=0.0068, kl=0.0932, decode=81, bits=4.21),
        "int8-w8a8": Outcome(size=4.42, ratio=1.0009, half=0.0012, kl=0.0014, decode=188, bits=9.1),
        "bnb-nf4": Outcome(size=3.05, ratio=1.0251, half=0.0040, kl=0.0307, decode=143, bits=5.2),
        "wanda-50": Outcome(size=7.62, ratio=1.482, half=0.0210, kl=0.412, decode=211, bits=16.0, end="held"),
        "depth-distil": Outcome(size=6.1, ratio=1.172, half=0.0150, kl=0.181, decode=279, bits=16.0),
    },
)
QWEN = Family(
    repo_id="modelpress-samples/sample-qwen3-chat",
    architecture="Qwen3ForCausalLM",
    parameters=2_950_000,
    size=6.11,
    perplexity=18.7,
    decode=164,
    outcomes={
        "gptq-w4a16-g128": Outcome(size=0, ratio=1, half=0, kl=0, decode=1, bits=0, end="failed"),
        "int8-w8a8": Outcome(size=3.72, ratio=1.0131, half=0.0015, kl=0.0091, decode=131, bits=9.2, end="published"),
        "bnb-nf4": Outcome(size=2.71, ratio=1.0402, half=0.0052, kl=0.0481, decode=102, bits=5.4),
        "wanda-50": Outcome(size=6.11, ratio=1.233, half=0.011, kl=0.19, decode=165, bits=16.0),
        "depth-distil": Outcome(size=4.9, ratio=1.31, half=0.02, kl=0.27, decode=208, bits=16.0, end="held"),
    },
)
GPT2 = Family(
    repo_id="modelpress-samples/sample-gpt2",
    architecture="GPT2LMHeadModel",
    parameters=3_810_000,
    size=7.9,
    perplexity=15.2,
    decode=251,
    licence="psf-2.0",
)
REFUSALS = (
    Refusal(repo_id="someone/pickled", sha="c" * 40, code="no-safetensors", reason="the repository holds no safetensors"),
    Refusal(
        repo_id=GPT2.repo_id, sha=GPT2.ref.sha, code="unfit", reason="its Conv1D layers are not changed by this recipe", recipe="bnb-nf4"
    ),
)


@pytest.fixture
def store(tmp_path: Path, new_database: Path) -> Iterator[Store]:
    """An empty store in a file, or that of `full` where a test asks for both."""
    file = tmp_path / "modelpress.db"
    with Store(file if file.exists() else shutil.copyfile(new_database, file)) as opened:
        yield opened


@pytest.fixture
def family() -> Family:
    """A base model with one variant in every state but planned."""
    return LLAMA


@pytest.fixture
def world(store: Store) -> World:
    """Writes families to the store."""
    return World(store)


@pytest.fixture(scope="session")
def full_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database of `full`, written once."""
    file = tmp_path_factory.mktemp("full") / "modelpress.db"
    with Store(f"sqlite:///{file}") as written:
        write_full(World(written))
    return file


@pytest.fixture
def full(full_file: Path, tmp_path: Path) -> Iterator[Store]:
    """A store with three base models: measured, partly failed, and only planned; one refused model."""
    copy_sqlite(full_file, tmp_path / "modelpress.db")
    with Store(f"sqlite:///{tmp_path / 'modelpress.db'}") as opened:
        yield opened


def write_full(world: World) -> None:
    """Write the three families."""
    world.write([LLAMA, QWEN, GPT2], refusals=REFUSALS)
    world.store.start(Job(kind="measure", base=GPT2.ref, protocol=PROTOCOL))


@pytest.fixture(scope="session")
def crowd_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of one base model with ninety variants of all families."""
    file = tmp_path_factory.mktemp("crowd") / "modelpress.db"
    kinds = (
        ("gptq", "W4A16", "gptq"), ("rtn", "W8A16", "compressed-tensors"), ("wanda", "2:4", "dense"), ("gguf", "Q4_K_M", "gguf"),
        ("low_rank", "svd", "low-rank"), ("distil", "logits", "dense"),
    )  # fmt: skip
    recipes, outcomes = [], {}
    for index in range(90):
        method, scheme, form = kinds[index % len(kinds)]
        r = recipe(f"{method}-{index}", f"{method}, try {index}", "One of many.", form, (method, scheme))
        recipes.append(replace(r, steps=(replace(r.steps[0], params={"seed": index}),)))
        loss = 0.002 * 1.12**index
        layers = (LayerError(layer="model.layers.0.mlp.up_proj", error=loss, tokens=1024, protocol="text@256"),)
        steps = (StepRecord(method=method, layers={"model.layers.1.mlp.up_proj": {"kept": "not finite"}}),)
        outcomes[r.name] = Outcome(
            size=7.0 - (index * 37 % 90) / 20, ratio=1 + loss, half=loss / 20, kl=loss, decode=60 + index * 53 % 90, bits=8.0,
            layers=layers, steps=steps, end="verified" if loss < 0.2 else "held",
        )  # fmt: skip
    with Store(f"sqlite:///{file}") as written:
        World(written).write([replace(LLAMA, outcomes=outcomes)], recipes=recipes)
    return file


@pytest.fixture
def hub_url() -> str:
    return HUB


@pytest.fixture
def hostile() -> Callable[[str], Family]:
    """Make a family whose names are made of a hostile text."""
    return lambda text: replace(LLAMA, repo_id=text, architecture=text, licence=text)
