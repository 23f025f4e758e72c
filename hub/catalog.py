"""The popular models of a Hub: listed, with details, ranked by one stated formula."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime

from hub.client import HubClient
from hub.domain import Candidate
from hub.errors import HubError, HubUnreachable
from hub.listing import unreadable
from hub.settings import Settings

_WINDOW_DAYS = 30.0
_YOUNGEST_DAYS = 3.0


def discover(client: HubClient, settings: Settings, *, now: datetime | None = None) -> tuple[Candidate, ...]:
    """Return the models that the settings ask for, the pinned ones too, best first; nothing is screened yet.

    Models that cannot be read stay in the list, for `policy.screen` to say so. Equal scores are ordered by name.
    """
    found: dict[str, Candidate] = {}
    for tag in settings.policy.pipeline_tags or (None,):
        for candidate in client.popular(limit=settings.hub.limit, sort=settings.hub.sort, pipeline_tag=tag):
            found.setdefault(candidate.ref.repo_id, candidate)
    for pin in settings.policy.pinned:
        candidate = _pinned(client, pin)
        if "@" in pin or candidate.ref.repo_id not in found:  # a pinned commit counts, even where it turns out not to exist
            found[candidate.ref.repo_id] = candidate
    return rank(found.values(), now or datetime.now(UTC))


def rank(candidates: Iterable[Candidate], now: datetime) -> tuple[Candidate, ...]:
    """Return candidates by falling `score`; equal ones by name, so that the order never depends on the Hub's."""
    return tuple(sorted(candidates, key=lambda candidate: (-score(candidate, now), candidate.ref.repo_id.lower(), candidate.ref.repo_id)))


def score(candidate: Candidate, now: datetime) -> float:
    """Return how popular a model is: log10(1 + v) + 0.5 · log10(1 + likes) + 0.25 · log10(1 + trending score).

    v is its velocity: downloads per 30 days. The Hub counts the downloads of the last 30 days, of a younger model those since it was
    made, so v = downloads · 30 / min(30, max(3, age in days)). Ten times the downloads count as much as a hundred times the likes;
    logarithms keep one giant from hiding everything else. Never negative; 0 for a model that nobody has touched.
    """
    velocity = candidate.downloads * _WINDOW_DAYS / min(_WINDOW_DAYS, max(_YOUNGEST_DAYS, _age_days(candidate.created_at, now)))
    trend = max(candidate.trending_score, 0.0)
    return math.log10(1 + velocity) + 0.5 * math.log10(1 + candidate.likes) + 0.25 * math.log10(1 + trend)


def _age_days(created_at: str, now: datetime) -> float:
    try:
        made = datetime.fromisoformat(created_at)
    except ValueError:
        return _WINDOW_DAYS  # unknown: taken as old, so that it gains nothing
    return (now - (made if made.tzinfo else made.replace(tzinfo=UTC))).total_seconds() / 86_400


def _pinned(client: HubClient, pin: str) -> Candidate:
    repo_id, _, revision = pin.partition("@")
    try:
        return client.candidate(repo_id, revision or None)
    except HubUnreachable:
        raise
    except HubError:
        return unreadable(repo_id)
