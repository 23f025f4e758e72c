"""The popular models of a Hub: listed, ranked by `hub.popularity`, completed where the listing says too little, and judged by policy."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hub import policy, revisions
from hub.client import HubClient
from hub.domain import Candidate, Refusal
from hub.errors import HubError, HubUnreachable, PolicyRefusal
from hub.history import Listing
from hub.listing import unreadable
from hub.popularity import WINDOW_DAYS, Score, Sighting, score
from hub.revisions import Revision
from hub.settings import Settings

History = Mapping[str, Sequence[Listing]]
Known = Callable[[str], Sequence[Candidate]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """A model with its score."""

    candidate: Candidate
    score: Score


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """What a discovery found, best first: models to press, models that policy refused with their reasons, and new revisions of known ones.

    `turned_away` are the refused ones as they were listed; `scores` holds both sides', by `owner/name`.
    """

    accepted: tuple[Candidate, ...] = ()
    refused: tuple[Refusal, ...] = ()
    revisions: tuple[Revision, ...] = ()
    turned_away: tuple[Candidate, ...] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)


def since(now: datetime) -> str:
    """Return from when on history counts, as ISO-8601."""
    return (now - timedelta(days=WINDOW_DAYS)).isoformat(timespec="seconds")


def moment(now: datetime, history: History) -> datetime:
    """Return the time of a discovery: now, or just after the newest snapshot where the clock was set back, so that it stays the newest."""
    newest = max((datetime.fromisoformat(seen[-1].at) for seen in history.values() if seen), default=now)
    return now if newest <= now else newest + timedelta(seconds=1)


def discover(client: HubClient, settings: Settings, *, history: History | None = None, now: datetime | None = None) -> tuple[Ranked, ...]:
    """Return the models that the settings ask for, the pinned ones too, best first; nothing is judged yet.

    Models that cannot be read stay in the list, for policy to say so. Equal scores are ordered by name.
    """
    found: dict[str, Candidate] = {}
    for tag in settings.policy.pipeline_tags or (None,):
        for candidate in client.popular(limit=settings.hub.limit, sort=settings.hub.sort, pipeline_tag=tag):
            found.setdefault(candidate.ref.repo_id, candidate)
    for pin in settings.policy.pinned:
        candidate = _pinned(client, pin)
        if "@" in pin or candidate.ref.repo_id not in found:  # a pinned commit counts, even where it turns out not to exist
            found[candidate.ref.repo_id] = candidate
    return rank(found.values(), now or datetime.now(UTC), history or {})


def rank(candidates: Iterable[Candidate], now: datetime, history: History | None = None) -> tuple[Ranked, ...]:
    """Return candidates by falling score; equal ones by name, so that the order never depends on the Hub's."""
    past = history or {}
    ranked = [Ranked(candidate=one, score=_score(one, past.get(one.ref.repo_id, ()), now)) for one in candidates]
    return tuple(sorted(ranked, key=_order))


def judge(found: Iterable[Ranked], client: HubClient, settings: Settings, *, known: Known, free_bytes: int) -> Discovery:
    """Return what policy says of ranked models; what a listing leaves out is asked of the Hub where the rest passes.

    `known(owner/name)` gives the recorded commits, latest seen first: a model that is one of them is not examined again. `free_bytes` is
    the room for a new one's weights. Raises `HubUnreachable`; any other trouble is about one model and refuses that.
    """
    accepted: list[Candidate] = []
    turned_away: list[Candidate] = []
    refused: list[Refusal] = []
    news: list[Revision] = []
    scores: dict[str, Score] = {}
    for one in found:
        scores[one.candidate.ref.repo_id] = one.score
        candidate = _with_parameters(client, one.candidate, settings)
        refusal = policy.screen(candidate, settings)
        if refusal is None:
            past = known(candidate.ref.repo_id)
            settled, revision = _settled(candidate, settings, past)
            refusal = None if settled.ref in (one.ref for one in past) else _examined(client, settled, free_bytes)
        if refusal:
            refused.append(refusal)
            turned_away.append(candidate)
            continue
        accepted.append(settled)
        if revision:
            news.append(revision)
    return Discovery(accepted=tuple(accepted), refused=tuple(refused), revisions=tuple(news), turned_away=tuple(turned_away), scores=scores)


def _order(one: Ranked) -> tuple[float, str, str]:
    repo_id = one.candidate.ref.repo_id
    return (-one.score.value, repo_id.lower(), repo_id)


def _score(candidate: Candidate, past: Sequence[Listing], now: datetime) -> Score:
    latest = Sighting(at=now, downloads=candidate.downloads, likes=candidate.likes, trending_score=candidate.trending_score)
    earlier = (
        Sighting(at=datetime.fromisoformat(seen.at), downloads=seen.downloads, likes=seen.likes, trending_score=seen.trending_score)
        for seen in past
    )
    return score(latest, earlier, created_at=candidate.created_at)


def _settled(candidate: Candidate, settings: Settings, known: Sequence[Candidate]) -> tuple[Candidate, Revision | None]:
    """Return a candidate at the commit that counts; one that the settings pin is taken at its word."""
    ref = candidate.ref
    if f"{ref.repo_id}@{ref.sha}" in settings.policy.pinned:
        return candidate, None
    return revisions.settle(candidate, known)


def _examined(client: HubClient, candidate: Candidate, free_bytes: int) -> Refusal | None:
    """Return why a model seen for the first time at this commit is not pressed: its config, or no room for its weights."""
    ref = candidate.ref
    try:
        fault = policy.config_fault(client.read_text(ref.repo_id, ref.sha, "config.json") or "")
    except HubUnreachable:
        raise
    except (HubError, PolicyRefusal) as error:
        fault = f"its config.json cannot be read: {error.message}"
    if fault:
        return Refusal(repo_id=ref.repo_id, sha=ref.sha, code="config", reason=fault)
    return policy.too_big_for_disk(candidate, free_bytes)


def _with_parameters(client: HubClient, candidate: Candidate, settings: Settings) -> Candidate:
    """Return the candidate with its parameters counted from the headers of its weights, where the Hub does not and nothing else is wrong.

    Only the headers are fetched, by range requests. What cannot be counted stays unknown, for policy to refuse.
    """
    if candidate.parameters is not None or policy.screen(candidate, settings, unknown=("size",)):
        return candidate
    try:
        tensors = client.tensors(candidate.ref)
    except HubUnreachable:
        raise
    except (HubError, PolicyRefusal) as error:
        _log.warning("%s", error.message)
        return candidate
    count = sum(math.prod(shape) for _, shape in tensors.values() if min(shape, default=1) > 0)
    return replace(candidate, parameters=count or None)


def _pinned(client: HubClient, pin: str) -> Candidate:
    repo_id, _, revision = pin.partition("@")
    try:
        return client.candidate(repo_id, revision or None)
    except HubUnreachable:
        raise
    except HubError:
        return unreadable(repo_id)
