"""The model card, written from the record alone: the same record gives the same bytes.

`templates/card.md.j2` lays it out. Every expression in it is escaped for Markdown unless it is `text.Markdown` already.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from hub import names, policy
from hub.domain import Artifact, Step
from hub.errors import PolicyRefusal
from hub.history import Audit, BaseRecord, VariantRecord
from hub.protocol import Protocol
from leaderboard import card_chart, card_tables, frontmatter, notices, points, stats, steps, text, words
from leaderboard import siblings as kin
from leaderboard.card_tables import Row
from leaderboard.gate import artifact_verdict, least_same_top_token
from leaderboard.stats import Comparison
from leaderboard.text import Markdown, code, link, markdown

if TYPE_CHECKING:
    from jinja2 import Template

PUBLIC_HUB = "https://huggingface.co"
_ALWAYS = ("modelpress", "torch", "transformers")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A line of the changelog: the day (ISO-8601) and what changed."""

    day: str
    what: str


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What is known at publishing beside the record.

    `protocol` is the card's own in full, `further` are the others under which the variant was measured; `changes` the changelog, newest
    first; `sibling_repos` where each variant (by its id) is or will be; `audit` the newest look at the release; `recommended` are the
    variants (by id) that can be downloaded and are not known to be broken, None where that is not asked.
    """

    protocol: Protocol | None = None
    further: tuple[Protocol, ...] = ()
    changes: tuple[Change, ...] = ()
    sibling_repos: tuple[tuple[str, str], ...] = ()
    audit: Audit | None = None
    recommended: frozenset[str] | None = None

    @property
    def protocols(self) -> dict[str, Protocol]:
        """All protocols that are known in full, by name."""
        return {one.name: one for one in (*self.further, self.protocol) if one}


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
    check(record, repo_id)
    return _template().render(_view(record, base, siblings, repo_id, hub_url.rstrip("/"), extras))


def check(record: VariantRecord, repo_id: str) -> None:
    """Raise `PolicyRefusal` for what no card can be written of: names that no hub allows, a variant without an artifact."""
    for name in (repo_id, record.base.repo_id):
        if fault := names.repo_id_fault(name):
            raise PolicyRefusal(f"no card can be written: {fault}", hint="choose a namespace of letters, digits, _ . and -")
    if not re.fullmatch(r"\w[\w.-]{0,63}", record.base.sha, re.ASCII):
        raise PolicyRefusal(f"no card can be written: the base's commit {names.shown(record.base.sha)} is none")
    if record.artifact is None:
        raise PolicyRefusal(f"variant {record.variant_id} of {record.base.repo_id} has no artifact, so no card", hint="press it first")


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
    record: VariantRecord, base: BaseRecord, others: Sequence[VariantRecord], repo_id: str, hub_url: str, extras: Extras
) -> dict[str, object]:
    artifact = record.artifact
    assert artifact is not None
    beside = stats.compare(record, base)
    record = replace(record, environment=record.environment_under(beside.protocol))
    base = replace(base, environment=base.environment_under(beside.protocol))
    demanded = policy.demands(base.candidate.license, base.candidate.license_name)
    copied = "A copy of the licence lies beside the files." if demanded.agreement else ""
    benches = card_tables.benches(record, base, beside.protocol, extras.protocols)
    return {
        **_family(record, base, others, beside.protocol, hub_url, extras),
        **_quality(record, base, beside, extras),
        **_made(record, artifact),
        "front_matter": Markdown(frontmatter.front_matter(record, base, repo_id=repo_id, hub_url=hub_url, protocols=extras.protocols)),
        "name": repo_id.split("/")[-1],
        "notices": notices.on_top(record, extras.audit, hub_url),
        "recipe": record.recipe,
        "base_link": link(record.base.repo_id, f"{hub_url}/{record.base.repo_id}"),
        "base": record.base,
        "badge": demanded.badge,
        "verdict_line": words.verdict_line(record, base, beside),
        "research": record.recipe.track == "research",
        "chart": card_chart.title(record, base) if card_chart.draw(record, base, others) else "",
        "benches": benches,
        "engines": [benches[0].engine] if benches[0].engine else [],
        "coded": words.coded_words(record, base, beside.protocol),
        "endpoint": None if hub_url == PUBLIC_HUB else Markdown(text.safe_link(hub_url) or "THE_HUB"),
        "requirements": words.requirements(record),
        "usage": [f"use/{words.usage(record.recipe.format)}.md.j2", "use/other.md.j2"],
        "weights": _weights(artifact),
        "repo_id": Markdown(repo_id),
        "chat": _is_chat(record, base),
        "audit": notices.audit_words(record, extras.audit),
        "limits": words.limits(record, beside),
        "license": _licence_words(record, base, hub_url),
        "owner": record.base.repo_id.split("/")[0],
        "demands": [words for words in (demanded.notice, copied, demanded.restrictions) if words],
        "changes": (*extras.changes, Change(day=artifact.made_at[:10], what=f"artifact {artifact.digest} made")),
    }


def _family(
    record: VariantRecord, base: BaseRecord, others: Sequence[VariantRecord], protocol: str | None, hub_url: str, extras: Extras
) -> dict[str, object]:
    """What the card says of the variants of the same base."""
    members = kin.family(record, others)
    offered = kin.offered(members, extras.recommended)
    shown = kin.shortlist(record, base, members, protocol)
    address = kin.addresses(base, members, dict(extras.sibling_repos), hub_url)
    return {
        "siblings": kin.table(record, base, shown, protocol, address),
        "family_size": len(members),
        "shortened": len(shown) < len(members),
        "advice": words.advice(base, offered, protocol),
        "ladder": kin.ladder_rows(record, base, offered, protocol, address),
    }


def _quality(record: VariantRecord, base: BaseRecord, beside: Comparison, extras: Extras) -> dict[str, object]:
    """What the card says of the variant's quality, and how it was measured."""
    with_tasks = {one.protocol for one in record.measurements if "task" in one.conditions}
    divergence = stats.find(record.measurements, "kl_divergence", beside.protocol)
    known = extras.protocols
    return {
        "quality": card_tables.rows(record, base, beside, card_tables.QUALITY),
        "spread": points.percentile_words(record.measurements, "kl_divergence", beside.protocol),
        "tasks": points.task_rows(record.measurements, base.measurements),
        "task_protocols": [
            (name, words.protocol_words(known[name], name)) for name in sorted(with_tasks & known.keys()) if name != beside.protocol
        ],
        "protocol": beside.protocol,
        "protocol_words": words.protocol_words(extras.protocol, beside.protocol),
        "samples": divergence.samples if divergence else None,
        "least_same_top": f"{100 * least:.3g} %" if (least := least_same_top_token(record.recipe.thresholds)) else "",
        "layers": steps.error_words(record.layers),
        "intervals": card_tables.intervals(record, beside.protocol),
    }


def _made(record: VariantRecord, artifact: Artifact) -> dict[str, object]:
    """What the card says of how the variant was made and checked, and of its files."""
    verdict = artifact_verdict(record)
    named = [name for name in dict.fromkeys((*_ALWAYS, *words.needed(record))) if name in artifact.libraries]
    return {
        "checks": [(check.name, check.detail) for check in verdict.checks] if verdict and verdict.passed else [],
        "steps": [_step_row(step) for step in record.recipe.steps],
        "told": _told(artifact),
        "press": words.press_words(record),
        "libraries": [f"{name} {artifact.libraries[name]}" for name in named],
        "shortened_libraries": len(named) < len(artifact.libraries),
        "files": [(code(file.path), text.size(file.size), code(file.sha256)) for file in sorted(artifact.files, key=lambda f: f.path)],
        "digest": artifact.digest,
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
    return name if re.fullmatch(r"\w[\w.:-]{0,95}", name, re.ASCII) else "RECIPE"


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
