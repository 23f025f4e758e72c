"""One row of the leaderboard: a base model or a variant under one protocol, its numbers as text beside their base's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hub.codec import content_id
from hub.domain import Environment, Measurement, ModelRef, Recipe
from hub.history import BaseRecord, Release, VariantRecord, Verdict
from hub.names import DEVICES
from leaderboard.families import families, family
from leaderboard.looks import Look, failures
from leaderboard.stats import Comparison, Estimate, compare, find, other_engine, ranks
from leaderboard.text import percent_change, quantity, size, uncertain
from leaderboard.words import as_large, same_work

StateCode = Literal["base", "verified", "published", "held", "passed", "measured", "pressed", "failed", "waiting"]
Tone = Literal["", "better", "worse"]
_UNIT_IN_HEADING = ("bits_per_weight", "kl_divergence", "decode_tokens_per_second", "prefill_tokens_per_second", "load_time")
_SPEED_AND_MEMORY = ("decode_tokens_per_second", "prefill_tokens_per_second", "peak_memory")
EXACT_ONE = Estimate(value=1, low=1, high=1)


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the table: the metric, its heading, unit and direction, and what it means in words."""

    key: str
    heading: str
    unit: str
    higher_is_better: bool
    words: str
    on_front_page: bool = True


COLUMNS = (
    Column(
        key="disk_size", heading="Size on disk", unit="MB, GB", higher_is_better=False,
        words="Weights, configuration and tokenizer in decimal megabytes; documentation, licences and the manifest are not counted.",
    ),
    Column(
        key="bits_per_weight", heading="Bits per weight", unit="bit", higher_is_better=False,
        words="Bits of all stored tensors divided by the weights they stand for; scales and unpacked layers are counted.",
    ),
    Column(
        key="perplexity_ratio", heading="Perplexity against base", unit="% change", higher_is_better=False,
        words="The variant's perplexity divided by its base's on the same windows, as a change in per cent. The interval is paired: "
        "both models saw the same windows, so it is far narrower than the two perplexities' own intervals.",
    ),
    Column(
        key="perplexity", heading="Perplexity", unit="", higher_is_better=False, on_front_page=False,
        words="exp of the mean negative log-likelihood per token. Comparable only under one protocol and one tokenizer.",
    ),
    Column(
        key="kl_divergence", heading="KL divergence", unit="nats/token", higher_is_better=False,
        words="KL(base || variant) of the next-token distribution over the whole vocabulary, averaged over the tokens of the text.",
    ),
    Column(
        key="same_top_token", heading="Same top token", unit="%", higher_is_better=True,
        words="How often variant and base find the same token the likeliest.",
    ),
    Column(
        key="decode_tokens_per_second", heading="Decode", unit="tokens/s", higher_is_better=True,
        words="New tokens divided by the median time of greedy decoding after the prompt, batch 1, with a key-value cache. "
        "The factor is the median ratio of runs in which variant and base took turns.",
    ),
    Column(
        key="prefill_tokens_per_second", heading="Prefill", unit="tokens/s", higher_is_better=True,
        words="Speed of reading the prompt, batch 1. The factor is found as for decoding.",
    ),
    Column(
        key="peak_memory", heading="Peak memory", unit="MB, GB", higher_is_better=False,
        words="By how much memory grows at most, from before loading to the end of a prompt and its decoding: allocated on a CUDA device, "
        "resident on a CPU.",
    ),
    Column(
        key="load_time", heading="Load time", unit="s", higher_is_better=False, on_front_page=False,
        words="To load tokenizer and weights, with the libraries imported and the files in the system's cache.",
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number as people read it: `text` with unit, `spread` its uncertainty, `note` beside the base, `origin` how it was taken."""

    text: str
    sort: float = 0.0
    spread: str = ""
    unit: str = ""
    note: str = ""
    tone: Tone = ""
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a row has come, in one word, and why."""

    code: StateCode
    word: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A base model or variant under one protocol; `rank` is by perplexity against the base, shared where intervals overlap.

    `engine` is what ran it where the base ran in another one, and empty otherwise.
    """

    anchor: str
    slug: str
    base: ModelRef
    variant_id: str | None
    name: str
    title: str
    recipe: Recipe | None
    protocol: str | None
    state: State
    cells: Mapping[str, Cell]
    bytes: float | None
    loss: Estimate | None
    decode_ratio: Estimate | None
    size_ratio: Estimate | None
    release: Release | None
    environment: Environment | None
    verdicts: tuple[Verdict, ...] = ()
    engine: str = ""
    rank: int | None = None
    tied: bool = False
    on_front: bool = False

    @property
    def is_base(self) -> bool:
        """Whether this is the base model itself."""
        return self.recipe is None

    @property
    def family(self) -> str:
        """The family that its recipe is listed under; empty for the base."""
        return family(self.recipe) if self.recipe else ""

    @property
    def published(self) -> bool:
        """Whether the variant can be downloaded and nothing speaks against it."""
        return self.state.code in ("verified", "published")

    @property
    def same_work(self) -> bool:
        """Whether it does the base's own work, so that its speed says nothing about the recipe."""
        return self.recipe is not None and same_work(self.recipe, self.size_ratio)

    @property
    def percent(self) -> Estimate | None:
        """The perplexity lost against the base, in per cent."""
        if self.loss is None:
            return None
        return Estimate(value=(self.loss.value - 1) * 100, low=(self.loss.low - 1) * 100, high=(self.loss.high - 1) * 100)

    @property
    def words(self) -> str:
        """What the filter looks through."""
        recipe = self.recipe
        parts = [self.base.repo_id, self.name, self.title, self.state.word]
        parts += [recipe.method, recipe.scheme, recipe.format, recipe.track, *families(recipe)] if recipe else ["base dense"]
        return " ".join(parts).lower()


def base_row(base: BaseRecord, protocol: str | None, slug: str) -> Row:
    """Return the row of a base model whose measurements are those of one protocol."""
    perplexity = find(base.measurements, "perplexity")
    disk = find(base.measurements, "disk_size")
    decode = find(base.measurements, "decode_tokens_per_second")
    return Row(
        anchor=_anchor("base", protocol),
        slug=slug,
        base=base.candidate.ref,
        variant_id=None,
        name="base",
        title="as published by its authors",
        recipe=None,
        protocol=protocol,
        state=State(code="base", word="Base model") if base.measurements else State(code="waiting", word="Not measured yet"),
        cells=_cells(base.measurements, None, base.candidate.ref.sha, base.environment),
        bytes=disk.value if disk else None,
        loss=EXACT_ONE if perplexity else None,
        decode_ratio=replace(EXACT_ONE, higher_is_better=True) if decode else None,
        size_ratio=EXACT_ONE if disk else None,
        release=None,
        environment=base.environment,
    )


def variant_row(variant: VariantRecord, base: BaseRecord, protocol: str | None, slug: str, look: Look | None = None) -> Row:
    """Return the row of a variant, `look` being the last at its release; both records hold the measurements of one protocol only."""
    beside = compare(variant, base)
    disk = find(variant.measurements, "disk_size")
    size_on_disk = disk.value if disk else float(variant.artifact.bytes) if variant.artifact else None
    cells = _cells(variant.measurements, beside, variant.base.sha, variant.environment, variant.recipe)
    engines = other_engine(variant.measurements, base.measurements)
    if engines:
        for key in {*_SPEED_AND_MEMORY} & {*cells}:
            if cells[key].note:
                cells[key] = replace(cells[key], note=f"{cells[key].note}, other engine")
    if disk is None and size_on_disk is not None:
        cells["disk_size"] = replace(_split(size(size_on_disk)), sort=size_on_disk, origin="sum of the artifact's files")
    return Row(
        anchor=_anchor(variant.variant_id, protocol),
        slug=slug,
        base=variant.base,
        variant_id=variant.variant_id,
        name=variant.recipe.name,
        title=variant.recipe.title,
        recipe=variant.recipe,
        protocol=protocol,
        state=state_of(variant, look),
        cells=cells,
        bytes=size_on_disk,
        loss=beside.perplexity_ratio,
        decode_ratio=beside.decode,
        size_ratio=beside.size,
        release=variant.release,
        environment=variant.environment,
        verdicts=variant.verdicts,
        engine=engines[0] if engines else "",
    )


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Rank rows of one base and protocol by perplexity, ties sharing a rank; the base first, then by rank, then by size."""
    measured = [row for row in rows if row.loss]
    places = dict(zip((row.anchor for row in measured), ranks([row.loss for row in measured if row.loss]), strict=True))
    shared = {rank for rank in places.values() if list(places.values()).count(rank) > 1}
    placed = [replace(row, rank=places.get(row.anchor), tied=places.get(row.anchor) in shared) for row in rows]
    return sorted(placed, key=lambda row: (not row.is_base, row.rank or len(rows) + 1, row.bytes or float("inf"), row.name))


def state_of(variant: VariantRecord, look: Look | None = None) -> State:
    """Say how far a variant has come: of a release the last look at it decides, else the newest verdict on the artifact."""
    judged = max((one for one in variant.verdicts if one.stage == "artifact"), key=lambda one: one.judged_at, default=None)
    if variant.release and look and not look.passed:
        return State(code="held", word="Held back", detail=look.broke)
    if look is None and judged and not judged.passed:
        return State(code="held", word="Held back", detail=f"the artifact: {failures(judged)}")
    if variant.release and variant.release.verified_at:
        return State(code="verified", word="Verified", detail=f"published bytes checked {variant.release.verified_at[:10]}")
    if variant.release:
        return State(code="published", word="Published", detail="published bytes not checked yet")
    if variant.failure:
        return State(code="failed", word="Failed", detail=f"{variant.failure.error}: {variant.failure.reason}")
    if judged:
        return State(code="passed", word="Passed the gate", detail="not published yet")
    if variant.measurements:
        return State(code="measured", word="Measured", detail="not through the gate yet")
    if variant.artifact:
        return State(code="pressed", word="Pressed", detail="not measured yet")
    return State(code="waiting", word="Planned")


def _anchor(name: str, protocol: str | None) -> str:
    return safe_name(f"{name}-{protocol}".replace("@", "-") if protocol else name)


def safe_name(text: str) -> str:
    """Return text as a file name or fragment: ASCII letters, digits, `.`, `_`, `-`, no device; a hash is added when that changed it."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", text).lstrip(".") or "_"
    if safe.partition(".")[0].lower() in DEVICES:
        safe = f"_{safe}"
    return safe if safe == text and len(safe) <= 150 else f"{safe[:150]}-{content_id(text)[:8]}"


def _cells(
    measurements: Sequence[Measurement],
    beside: Comparison | None,
    sha: str,
    environment: Environment | None,
    recipe: Recipe | None = None,
) -> dict[str, Cell]:
    neutral = beside is not None and recipe is not None and same_work(recipe, beside.size)
    cells: dict[str, Cell] = {}
    for column in COLUMNS:
        measurement = find(measurements, column.key)
        if measurement:
            note, tone = _note(column.key, beside, neutral=neutral)
            origin = _origin(measurement, sha, environment)
            cells[column.key] = replace(_text(column.key, measurement), sort=measurement.value, note=note, tone=tone, origin=origin)
    return cells


def _text(key: str, measurement: Measurement) -> Cell:
    estimate = Estimate.of(measurement)
    if key == "perplexity_ratio":
        return _split(percent_change(estimate))
    if key == "same_top_token":
        return _split(f"{uncertain(estimate, scale=100)} %")
    if key in _UNIT_IN_HEADING:
        return _split(uncertain(estimate))
    return _split(quantity(estimate, measurement.unit))


def _split(text: str) -> Cell:
    """Split `8.12 ± 0.04 MB` into value, spread and unit, so that each can be set in its own weight."""
    has_unit = text.endswith("%") or text[-1:].isalpha()
    body, _, unit = text.rpartition(" ") if has_unit else (text, "", "")
    if " ± " in body:
        value, _, spread = body.partition(" ± ")
        return Cell(text=value, spread=f"± {spread}", unit=unit)
    value, _, spread = body.partition(" (")
    return Cell(text=value, spread=f"({spread}" if spread else "", unit=unit)


def _note(key: str, beside: Comparison | None, *, neutral: bool) -> tuple[str, Tone]:
    """Return how a number stands beside the base's, in words, and whether that is better or worse.

    `neutral`: the variant does the base's own work, so its speed and memory are neither.
    """
    if beside is None:
        return "", ""
    if key == "disk_size" and beside.size:
        factor = beside.size.value
        if as_large(beside.size):
            return "as large", ""
        return (f"{_times(1 / factor)} smaller", "better") if factor < 1 else (f"{_times(factor)} the base", "worse")
    speed = {"decode_tokens_per_second": beside.decode, "prefill_tokens_per_second": beside.prefill}.get(key)
    if speed:
        if neutral:
            return "same work", ""
        if speed.low > 1:
            return f"{_times(speed.value)}, faster", "better"
        return (f"{_times(speed.value)}, slower", "worse") if speed.high < 1 else (f"{_times(speed.value)}, unclear", "")
    if key == "peak_memory" and beside.memory:
        if neutral:
            return "same work", ""
        return _times(beside.memory.value), "better" if beside.memory.high < 1 else "worse" if beside.memory.low > 1 else ""
    return "", ""


def _times(factor: float) -> str:
    return f"{factor:.2f}×" if factor < 10 else f"{factor:.0f}×"


def _origin(measurement: Measurement, sha: str, environment: Environment | None) -> str:
    where = f" on {environment.hardware}" if environment else ""
    return (
        f"{measurement.protocol}, {measurement.engine}{where}; {measurement.samples} samples, interval: {measurement.interval}; "
        f"base commit {sha[:8]}; {measurement.measured_at[:10]}"
    )
