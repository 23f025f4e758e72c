"""What stands on top of a card where it must not be overlooked, and when the release was last looked at."""

from __future__ import annotations

from collections.abc import Sequence

from hub import names
from hub.domain import Measurement
from hub.errors import PolicyRefusal
from hub.history import Audit, Release, ReleaseChange, VariantRecord
from leaderboard import stats, text, words
from leaderboard.card_tables import NAMES, value
from leaderboard.looks import put_there
from leaderboard.text import Markdown, code, link, markdown

RECORDED = {"of": "record"}
"""Condition of a number that an audit did not take but found on record, for the very sample that it measured again."""

_AGAIN = ("perplexity_ratio", "kl_divergence", "same_top_token")


def standing(record: VariantRecord) -> Release | None:
    """Return the record's release where it is of the record's own artifact: a new one is neither retired nor superseded by what was."""
    release = record.release
    return release if release and record.artifact and release.artifact_digest == record.artifact.digest else None


def newest(record: VariantRecord, audits: Sequence[Audit], changes: Sequence[ReleaseChange]) -> Audit | None:
    """Return the last audit of what is released now; one of an artifact that another has replaced since says nothing of this one."""
    if standing(record) is None:
        return None
    since = put_there(changes)
    return max((audit for audit in audits if audit.at >= since), key=lambda audit: audit.at, default=None)


def successor(record: VariantRecord) -> str | None:
    """Return the repository to take in this one's place, None where there is none; raise `PolicyRefusal` for an impossible name."""
    release = standing(record)
    if release is None or not release.new_version:
        return None
    if fault := names.repo_id_fault(release.new_version):
        raise PolicyRefusal(
            f"no card can be written: its new version cannot be a repository: {fault}", hint="retire it again with a right name"
        )
    return release.new_version


def on_top(record: VariantRecord, audit: Audit | None, hub_url: str) -> list[Markdown]:
    """Return the sentences that warn: retired and why, what to take instead, what the last audit found broken."""
    release, newer = standing(record), successor(record)
    told = []
    instead = f" Take {link(newer, f'{hub_url}/{newer}')} in its place." if newer else ""
    if release and (release.retired_at or release.retired_why):
        day = f" on {markdown(release.retired_at[:10])}" if release.retired_at else ""
        why = f": {_ended(release.retired_why)}" if release.retired_why else "."
        told.append(Markdown(f"**Deprecated{day}**{why}{instead} The files stay for those who use them."))
    elif newer:
        told.append(Markdown(f"**There is a newer version.**{instead}"))
    if audit and not audit.passed:
        told.append(Markdown(f"**The audit of {markdown(audit.at[:10])} found this release broken**: {_ended(audit.reason)}"))
    return told


def audit_words(record: VariantRecord, audit: Audit | None) -> list[Markdown]:
    """Return when the release was last downloaded and looked at again, with which libraries, and which numbers were taken again."""
    if audit is None:
        return []
    libraries = ", ".join(f"{name} {audit.libraries[name]}" for name in words.needed(record) if name in audit.libraries)
    loaded = f" with {markdown(libraries)}" if libraries else ""
    day = f"{markdown(audit.at[:10])}, commit {code(audit.sha)}"
    if not audit.passed:
        return [Markdown(f"Audited on {day}: {_ended(audit.reason)}")]
    told = [f"Last verified on {day}: it was downloaded, loaded{loaded}, and passed."]
    for one in audit.measurements:
        if one.metric in _AGAIN and not one.conditions:
            then = _on_record(record, audit, one)
            before = f" (before: {markdown(value(then))})" if then else ""
            told.append(f"Measured again under {code(one.protocol)}, {NAMES[one.metric]}: {markdown(value(one))}{before}.")
    return [Markdown(sentence) for sentence in told]


def _on_record(record: VariantRecord, audit: Audit, now: Measurement) -> Measurement | None:
    """Return what was on record for a number that an audit took again; for a sample the audit itself holds it."""
    for one in audit.measurements:
        if one.metric == now.metric and one.conditions == RECORDED:
            return one
    return stats.find(record.measurements, now.metric, now.protocol)


def _ended(sentence: str) -> Markdown:
    plain = text.plain(sentence)
    return markdown(plain if plain.endswith((".", "!", "?")) else f"{plain}.")
