"""The model card, written from the record alone: the same record gives the same bytes.

`templates/card.md.j2` lays it out. Every expression in it is escaped for Markdown unless it is `text.Markdown` already.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from hub import names, policy
from hub.domain import Artifact, Measurement, Step
from hub.errors import PolicyRefusal
from hub.history import BaseRecord, VariantRecord
from hub.protocol import Protocol
from leaderboard import frontmatter, points, stats, steps, text, words
from leaderboard.gate import artifact_verdict, let_through
from leaderboard.stats import Comparison, Estimate
from leaderboard.text import Markdown, code, link, markdown

if TYPE_CHECKING:
    from jinja2 import Template

PUBLIC_HUB = "https://huggingface.co"
_NAMES = {
    "perplexity": "Perplexity",
    "perplexity_ratio": "Perplexity ratio to the base",
    "delta_perplexity": "Perplexity less the base's",
    "kl_divergence": "KL divergence from the base",
    "same_top_token": "Same most likely token as the base",
    "rms_delta_probability": "Change of the true token's probability (RMS)",
    "bits_per_byte": "Bits per byte of text",
    "prefill_tokens_per_second": "Prefill",
    "decode_tokens_per_second": "Decode",
    "load_time": "Load time",
    "prefill_speedup": "Prefill, variant / base",
    "decode_speedup": "Decode, variant / base",
    "weight_memory": "Weights in memory",
    "peak_memory": "Peak memory above that before loading",
    "disk_size": "Size on disk",
    "bits_per_weight": "Bits per weight",
}
_QUALITY = ("perplexity", "delta_perplexity", "kl_divergence", "same_top_token", "rms_delta_probability", "bits_per_byte")
_MOST_SIBLINGS = 12
Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A line of the changelog: the day (ISO-8601) and what changed."""

    day: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is known at publishing beside the record: protocols in full, changes, the licence's notice, siblings' repositories."""

    protocol: Protocol | None = None
    task_protocols: tuple[Protocol, ...] = ()
    changes: tuple[Change, ...] = ()
    notices: tuple[str, ...] = ()
    sibling_repos: tuple[tuple[str, str], ...] = ()


NOTHING_MORE = Extras()


def render(
    record: VariantRecord,
    base: BaseRecord,
    siblings: Sequence[VariantRecord],
    *,
    repo_id: str,
    hub_url: str,
    extras: Extras = NOTHING_MORE,
) -> str:
    """Return the card (README.md) of a variant that is to be published as `repo_id`; `siblings` are the base's variants.

    Raises `PolicyRefusal` when a repository's name is not one that the Hub allows, because names stand in commands.
    """
    for name in (repo_id, record.base.repo_id):
        if fault := names.repo_id_fault(name):
            raise PolicyRefusal(f"no card can be written: {fault}", hint="choose a namespace of letters, digits, _ . and -")
    if record.artifact is None:
        raise PolicyRefusal(f"variant {record.variant_id} of {record.base.repo_id} has no artifact, so no card", hint="press it first")
    return _template().render(_view(record, base, siblings, repo_id, hub_url.rstrip("/"), extras))


@cache
def _template() -> Template:
    from jinja2 import Environment as Jinja
    from jinja2 import PackageLoader, StrictUndefined

    jinja = Jinja(
        loader=PackageLoader("leaderboard.templates", ""),
        autoescape=False,  # noqa: S701 - Markdown, not HTML: `finalize` escapes every expression
        finalize=text.finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters.update(code=code, cells=_cells)
    return jinja.get_template("card.md.j2")


def _cells(row: Row) -> Markdown:
    return Markdown("| " + " | ".join(markdown(cell) for cell in row) + " |")


def _view(
    record: VariantRecord, base: BaseRecord, siblings: Sequence[VariantRecord], repo_id: str, hub_url: str, extras: Extras
) -> dict[str, object]:
    artifact = record.artifact
    assert artifact is not None
    beside = stats.compare(record, base)
    record = replace(record, environment=record.environment_under(beside.protocol))
    base = replace(base, environment=base.environment_under(beside.protocol))
    base_link = link(record.base.repo_id, f"{hub_url}/{record.base.repo_id}")
    family = _family(record, siblings)
    shown = _shortlist(record, base, family)
    verdict = artifact_verdict(record)
    own, theirs = ({m.engine for m in stats.headlines(found)} for found in (record.measurements, base.measurements))
    return {
        "front_matter": Markdown(frontmatter.front_matter(record, base, repo_id=repo_id, hub_url=hub_url)),
        "name": repo_id.split("/")[-1],
        "recipe": record.recipe,
        "base_link": base_link,
        "base": record.base,
        "verdict_line": words.verdict_line(record, base, beside),
        "research": record.recipe.track == "research",
        "siblings": _sibling_rows(record, base, shown, dict(extras.sibling_repos), hub_url),
        "family_size": len(family),
        "shortened": len(shown) < len(family),
        "advice": words.advice(base, family),
        "quality": _rows(record, base, beside, _QUALITY),
        "spread": points.percentile_words(record.measurements, "kl_divergence", beside.protocol),
        "tasks": points.task_rows(record.measurements, base.measurements),
        "task_protocols": [(one.name, words.protocol_words(one, one.name)) for one in extras.task_protocols],
        "protocol": beside.protocol,
        "protocol_words": words.protocol_words(extras.protocol, beside.protocol),
        "samples": _samples(record, beside.protocol),
        "engines": sorted(own),
        "base_engines": sorted(theirs) if stats.other_engine(record.measurements, base.measurements) else [],
        "layers": steps.error_words(record.layers),
        "intervals": _intervals(record, beside.protocol),
        "in_turns": beside.decode is not None or beside.prefill is not None,
        "speed": _rows(record, base, beside, ("prefill_tokens_per_second", "decode_tokens_per_second", "load_time")),
        "speed_points": points.speed_rows(record.measurements, beside.protocol),
        "memory": _rows(record, base, beside, ("disk_size", "weight_memory", "peak_memory", "bits_per_weight")),
        "memory_points": points.memory_rows(record.measurements, beside.protocol),
        "coded": words.coded_words(record, base, beside.protocol),
        "hardware": words.hardware(record.environment),
        "base_hardware": words.hardware(base.environment) if record.environment != base.environment else None,
        "endpoint": None if hub_url == PUBLIC_HUB else Markdown(text.safe_link(hub_url) or "THE_HUB"),
        "requirements": words.requirements(record),
        "usage": [f"use/{words.usage(record.recipe.format)}.md.j2", "use/other.md.j2"],
        "weights": _weights(artifact),
        "repo_id": Markdown(repo_id),
        "chat": _is_chat(record, base),
        "checks": [(check.name, check.detail) for check in verdict.checks] if verdict and verdict.passed else [],
        "steps": [_step_row(step) for step in record.recipe.steps],
        "told": _told(artifact),
        "press": words.press_words(record),
        "libraries": [f"{name} {version}" for name, version in sorted(artifact.libraries.items())],
        "files": [(code(file.path), text.size(file.size), code(file.sha256)) for file in sorted(artifact.files, key=lambda f: f.path)],
        "digest": artifact.digest,
        "limits": words.limits(record, beside),
        "license": _licence_words(record, base, hub_url),
        "owner": record.base.repo_id.split("/")[0],
        "notices": extras.notices,
        "changes": (*extras.changes, Change(day=artifact.made_at[:10], what=f"artifact {artifact.digest} made")),
        "reproduce": Markdown(
            f"modelpress compress {record.base.repo_id}@{record.base.sha} --recipe {_argument(record.recipe.name)} --out DIR"
        ),
    }


def _weights(artifact: Artifact) -> Markdown:
    """The name of the largest file, where it is one that can stand in a command."""
    largest = max(artifact.files, key=lambda file: file.size, default=None)
    plain = largest is not None and re.fullmatch(r"[\w][\w.-]*", largest.path, re.ASCII)
    return Markdown(largest.path if largest and plain else "FILE")


def _told(artifact: Artifact) -> list[Markdown]:
    """What the steps told of themselves, each sentence once: their samples, decisions by layer, notes."""
    told = []
    for step in artifact.steps:
        told += [steps.shown_words(step), steps.decided_words(step), *(markdown(note) for note in step.notes)]
    return [sentence for sentence in dict.fromkeys(told) if sentence]


def _argument(name: str) -> str:
    return name if re.fullmatch(r"[\w.:-]+", name, re.ASCII) else "RECIPE"


def _family(record: VariantRecord, siblings: Sequence[VariantRecord]) -> list[VariantRecord]:
    """The variants of the same base that passed the gate, this one among them, in a fixed order."""
    others = {other.variant_id: other for other in siblings if other.base == record.base and let_through(other)}
    return sorted({**others, record.variant_id: record}.values(), key=lambda item: (item.recipe.name, item.variant_id))


def _shortlist(record: VariantRecord, base: BaseRecord, family: Sequence[VariantRecord]) -> list[VariantRecord]:
    """Of a large family, return what no other beats on both size and divergence, spread over the sizes, and the record itself."""
    if len(family) <= _MOST_SIBLINGS:
        return list(family)
    found = [(item, stats.compare(item, base)) for item in family if item.recipe.track == "serving"]
    measured = [(beside.size.value, beside.kl_divergence.value, item) for item, beside in found if beside.size and beside.kl_divergence]
    front: list[VariantRecord] = []
    least = math.inf
    for _, divergence, item in sorted(measured, key=lambda entry: entry[:2]):
        if divergence < least:
            least = divergence
            front.append(item)
    step = max(1.0, len(front) / (_MOST_SIBLINGS - 1))
    chosen = {item.variant_id: item for item in (front[int(place * step)] for place in range(min(len(front), _MOST_SIBLINGS - 1)))}
    return sorted({**chosen, record.variant_id: record}.values(), key=lambda item: (item.recipe.name, item.variant_id))


def _sibling_rows(
    record: VariantRecord, base: BaseRecord, family: Sequence[VariantRecord], repos: dict[str, str], hub_url: str
) -> list[Row]:
    rows: list[Row] = [(link(f"{base.candidate.ref.name} (base)", f"{hub_url}/{record.base.repo_id}"), "–", "1 ×", "±0", "0", "1 ×", "1 ×")]
    for item in family:
        beside = stats.compare(item, base)
        repo = item.release.repo_id if item.release else repos.get(item.variant_id)
        label = Markdown(f"**{markdown(item.recipe.name)}** (this one)") if item.variant_id == record.variant_id else None
        rows.append(
            (
                label or link(item.recipe.name, f"{hub_url}/{repo}" if repo else None),
                " → ".join(f"{step.method} {step.scheme}" for step in item.recipe.steps),
                _shown(beside.size, text.times),
                _shown(beside.perplexity_ratio, text.percent_change),
                _shown(beside.kl_divergence, text.uncertain),
                _shown(beside.decode, text.times),
                _shown(beside.memory, text.times),
            )
        )
    return rows


def _shown(estimate: Estimate | None, say: Callable[[Estimate], str], missing: str = "not measured") -> str:
    return say(estimate) if estimate else missing


def _rows(record: VariantRecord, base: BaseRecord, beside: Comparison, metrics: Sequence[str]) -> list[Row]:
    ratios = {
        "perplexity": beside.perplexity_ratio,
        "disk_size": beside.size,
        "decode_tokens_per_second": beside.decode,
        "prefill_tokens_per_second": beside.prefill,
        "peak_memory": beside.memory,
        "load_time": beside.load,
    }
    rows: list[Row] = []
    for metric in metrics:
        if mine := stats.find(record.measurements, metric, beside.protocol):
            theirs = stats.find(base.measurements, metric, beside.protocol)
            against = _shown(ratios[metric], text.times, "not compared") if metric in ratios else "–"
            rows.append((_NAMES[metric], _value(mine), _value(theirs) if theirs else "–", against))
    return rows


def _value(measurement: Measurement) -> str:
    if measurement.metric == "same_top_token":
        return f"{text.uncertain(Estimate.of(measurement), scale=100)} %"
    return text.quantity(Estimate.of(measurement), measurement.unit)


def _samples(record: VariantRecord, protocol: str | None) -> int | None:
    found = stats.find(record.measurements, "kl_divergence", protocol)
    return found.samples if found else None


def _intervals(record: VariantRecord, protocol: str | None) -> list[str]:
    """How the intervals were found and their level, each way once with the metrics that it holds for."""
    ways: dict[str, list[str]] = {}
    for metric, name in _NAMES.items():
        found = stats.find(record.measurements, metric, protocol)
        if found and found.ci_low != found.ci_high:
            ways.setdefault(found.interval, []).append(name)
    for one in record.measurements:
        if one.metric in points.TASKS and "task" in one.conditions:
            way = one.interval.partition(";")[0]  # lm-eval's own standard error, one for each number, stands in the data
            ways.setdefault(way, []).append(f"{one.conditions['task']}, {points.TASKS[one.metric]}")
    return [f"{way}: {'; '.join(dict.fromkeys(held))}" for way, held in ways.items()]


def _is_chat(record: VariantRecord, base: BaseRecord) -> bool:
    paths = {file.path for file in record.artifact.files} if record.artifact else set()
    return "chat_template.jinja" in paths or "conversational" in base.candidate.tags


def _step_row(step: Step) -> Row:
    params = ", ".join(f"{key} = {value}" for key, value in sorted(step.params.items())) or "–"
    shown = step.calibration
    calibration = f"{shown.samples} windows of {shown.sequence_length} tokens of {shown.text}, seed {shown.seed}" if shown else "none"
    return (step.method, step.scheme, params, calibration)


def _licence_words(record: VariantRecord, base: BaseRecord, hub_url: str) -> Markdown:
    candidate = base.candidate
    named = candidate.license or "not stated by the base"
    if candidate.license == "other" and candidate.license_name:
        named = candidate.license_name
    known = policy.demands(candidate.license, candidate.license_name).link
    return link(named, frontmatter.license_link(record, base, hub_url) or known)
