"""The words of the project as frozen types (what came of the work is in `hub.history`); JSON for them goes through `hub.codec` alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from hub.codec import content_id
from hub.facts import Facts as Facts
from hub.protocol import Protocol

Scalar = str | int | float | bool
JobKind = Literal["press", "measure", "inspect"]
Track = Literal["serving", "research"]
Basis = Literal["measured", "estimated"]
FailureClass = Literal[
    "out_of_memory", "timed_out", "unsupported", "unstable", "calibration", "gated", "licence", "hub", "disk", "killed", "bug"
]


@dataclass(frozen=True, kw_only=True)
class ModelRef:
    """A base model pinned by commit: `repo_id` is `owner/name`, `sha` the 40-digit commit (or `local-<hash>` for a folder)."""

    repo_id: str
    sha: str

    @property
    def name(self) -> str:
        """The part after the owner."""
        return self.repo_id.rsplit("/", 1)[-1]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a method is shown: `samples` windows of `sequence_length` tokens of a named text, drawn with `seed`."""

    text: str
    samples: int
    sequence_length: int
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """One method with its scheme (W4A16, 2:4, …), parameters and calibration."""

    method: str
    scheme: str
    params: Mapping[str, Scalar] = field(default_factory=dict)
    calibration: Calibration | None = None


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """The most a variant may lose against its base: KL divergence in nats per token, perplexity as a ratio."""

    kl_divergence: float
    perplexity_ratio: float


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One or more steps in order, the format they leave on disk, and what the result must still reach."""

    name: str
    title: str
    summary: str
    format: str
    steps: tuple[Step, ...]
    thresholds: Thresholds
    track: Track = "serving"

    @property
    def method(self) -> str:
        """The methods of all steps, joined by `+`."""
        return "+".join(step.method for step in self.steps)

    @property
    def scheme(self) -> str:
        """The schemes of all steps, joined by `+`."""
        return "+".join(step.scheme for step in self.steps)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One piece of work for the farm.

    `press` makes a variant; `measure` takes a protocol's numbers of a base (`recipe` None) or of a variant;
    `inspect` collects the gate's facts on the bytes named by `subject` (an artifact's digest or a release's commit).
    """

    kind: JobKind
    base: ModelRef
    recipe: Recipe | None = None
    protocol: Protocol | None = None
    subject: str = ""

    @cached_property
    def id(self) -> str:
        """A hash of what the job does; titles, thresholds and other words that change nothing on disk are left out."""
        steps = (self.recipe.format, self.recipe.steps) if self.recipe else None
        return content_id((self.kind, self.base, steps, self.protocol, self.subject))

    @cached_property
    def variant_id(self) -> str | None:
        """The variant that the job makes or looks at; None for a base model."""
        return variant_id(self.base, self.recipe) if self.recipe else None

    @property
    def label(self) -> str:
        """A short name for people: `measure sample-llama gptq-w4a16-g128`."""
        return f"{self.kind} {self.base.name} {self.recipe.name if self.recipe else 'base'}"

    @property
    def title(self) -> str:
        """The label and, of a measuring job, its protocol, which tells it from the others of the same model."""
        return f"{self.label}, {self.protocol.name}" if self.protocol else self.label


def variant_id(base: ModelRef, recipe: Recipe) -> str:
    """Return the id of base model + recipe: 16 hexadecimal digits."""
    return content_id((base, recipe.format, recipe.steps))


@dataclass(frozen=True, kw_only=True)
class ArtifactFile:
    """A file of a checkpoint: POSIX path inside it, size in bytes, SHA-256 in hexadecimal."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step of a press was shown and what it did.

    `text_sha256` is of the calibration text's bytes, `samples_sha256` of the token ids shown; empty for a step without calibration.
    `layers` holds by linear layer what the method decided or found there (`bits`, `rank`, `damp`, …); a layer with the key `kept` stayed
    in the base's precision, for the reason that is the key's value. `notes` are sentences on the step as a whole.
    """

    method: str
    text_sha256: str = ""
    samples_sha256: str = ""
    layers: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> dict[str, str]:
        """The layers that stayed in the base's precision, each with its reason."""
        return {name: str(facts["kept"]) for name, facts in self.layers.items() if "kept" in facts}


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A variant's checkpoint with its manifest; `parameters` counts the weights it stands for, not the packed words."""

    variant_id: str
    base: ModelRef
    recipe: Recipe
    files: tuple[ArtifactFile, ...]
    parameters: int
    made_at: str
    libraries: Mapping[str, str]
    steps: tuple[StepRecord, ...] = ()

    @property
    def digest(self) -> str:
        """A hash of all files' paths, sizes and checksums."""
        return content_id(tuple(sorted(self.files, key=lambda file: file.path)))

    @property
    def bytes(self) -> int:
        """Size on disk of all files, in bytes."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A number with all that makes it one. `interval` says how the interval was found, and its level where that is not 95 %.

    `conditions` say at which point of a curve it was taken (`batch`, `context`, `mode`, `task`, `percentile`, …); a headline number has
    none. `percentiles` tell how single runs spread (`p5`, `p50`, `p95`, `p99`). An `estimated` number comes from a formula.
    """

    metric: str
    value: float
    unit: str
    higher_is_better: bool
    ci_low: float
    ci_high: float
    interval: str
    samples: int
    protocol: str
    engine: str
    measured_at: str
    conditions: Mapping[str, Scalar] = field(default_factory=dict)
    percentiles: Mapping[str, float] = field(default_factory=dict)
    basis: Basis = "measured"


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model scored on each window (or each document of a task), kept so that any two models can be compared as pairs.

    `source` is `windows` or the task's name. `fingerprint` is a hash of what was scored: pairs are made only where it is the same.
    `values` holds by metric one mean per window or document; `sizes` the scored tokens (`tokens`) and UTF-8 bytes (`bytes`) of each.
    """

    source: str
    fingerprint: str
    tokenizer_sha256: str
    values: Mapping[str, tuple[float, ...]]
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many windows or documents were scored."""
        return len(next(iter(self.values.values()), ()))


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far a layer of a variant is from the base's: ||y - y_base|| / ||y_base|| over `tokens` tokens, both given the base's own input.

    A decoder layer's error is relative to what it adds to its input. `protocol` says on which text, in which windows.
    """

    layer: str
    error: float
    tokens: int
    protocol: str


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Hardware, drivers, settings and library versions under which a result was made; what changes by the second is in `JobResult.state`.

    `hardware` names what computed (the GPU, else the CPU), `cpu` the processor beside it; `driver` and `clocks` are those of `hardware`:
    the GPU's driver, the scaling governor or the clock limits. `threads`: of torch; 0 where it was not asked.
    """

    hardware: str
    device: Literal["cpu", "cuda"]
    cores: int
    memory_bytes: int
    system: str
    python: str
    libraries: Mapping[str, str]
    cpu: str = ""
    driver: str = ""
    clocks: str = ""
    threads: int = 0

    @cached_property
    def id(self) -> str:
        """A hash of all fields."""
        return content_id(self)


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What a job gave: an artifact, measurements or facts; `stages` holds seconds by stage, `peak_memory_bytes` of the whole process.

    `notes` are sentences on what was not measured and why. `state` is what the machine was doing: clock rates in MHz, load average,
    temperature, before and after.
    """

    job_id: str
    environment: Environment
    started_at: str
    seconds: float
    stages: Mapping[str, float]
    peak_memory_bytes: int
    artifact: Artifact | None = None
    measurements: tuple[Measurement, ...] = ()
    facts: Facts | None = None
    layers: tuple[LayerError, ...] = ()
    scores: tuple[Scores, ...] = ()
    notes: tuple[str, ...] = ()
    state: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a job did not succeed: the error and its class (`category`), one sentence, what to do, and the end of its log.

    `retry_after_s`: for so many seconds the Hub asks to be left alone.
    """

    job_id: str
    error: str
    reason: str
    hint: str
    log_tail: str
    seconds: float
    retryable: bool
    category: FailureClass = "bug"
    retry_after_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """Where a job finds and leaves things, and what it may use. Not part of what the job does, so not of its id.

    `data_dir` holds local copies of texts and tasks, looked at before the Hub; empty: there are none.
    """

    endpoint: str
    cache_dir: str
    artifacts_dir: str
    threads: int
    timeout_s: float
    memory_bytes: int
    data_dir: str = ""


@dataclass(frozen=True, kw_only=True)
class JobOrder:
    """What a runner reads: the job, its workspace, and the folder to look at where it is not the workspace's artifact.

    `folder` is the artifact to inspect or to measure; where the base's commit begins with `local-`, the base itself.
    `economy` 0 is the usual way; each step up takes less memory and more time for the same result (smaller batches, layer by layer).
    """

    job: Job
    workspace: Workspace
    folder: str | None = None
    economy: int = 0


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file as the Hub lists it; `sha256` is None for files kept in git itself, whose `blob_id` is a git SHA-1."""

    path: str
    size: int
    blob_id: str
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A model as the Hub lists it, before policy: popularity, metadata and files at one commit."""

    ref: ModelRef
    downloads: int
    likes: int
    trending_score: float
    created_at: str
    last_modified: str
    license: str | None
    license_name: str | None
    license_link: str | None
    gated: str | None
    private: bool
    library_name: str | None
    pipeline_tag: str | None
    architecture: str | None
    base_models: tuple[str, ...]
    tags: tuple[str, ...]
    languages: tuple[str, ...]
    parameters: int | None
    files: tuple[HubFile, ...]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Why a model, or a recipe on a model, is not pressed: a short code, one sentence, and the recipe if it is about one."""

    repo_id: str
    sha: str
    code: str
    reason: str
    recipe: str | None = None
