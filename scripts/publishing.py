"""The stage that writes to the Hub: new artifacts first, then cards that are out of date, as far as the Hub's limits allow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hub.errors import HubUnreachable, ModelPressError
from hub.history import Release, VariantRecord
from leaderboard import succession
from leaderboard.gate import let_through
from modelpress import lost
from modelpress.pipeline import Refused, released

if TYPE_CHECKING:
    from leaderboard.proposal import Proposal
    from leaderboard.publish import Publisher
    from modelpress.progress import Phase
    from modelpress.session import Session

OVER_BUDGET = "OverBudget"


@dataclass
class Publication:
    """What came of publishing: artifacts released, cards brought up to date, what was refused and why, and what is left for a later run.

    `stopped` says why the Hub is not asked any more in this run.
    """

    released: list[Release] = field(default_factory=list)
    cards: list[Release] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    left: list[Refused] = field(default_factory=list)
    stopped: str = ""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What one release wants of the Hub beside a commit: room for bytes, and a repository where there is none."""

    bytes: int = 0
    repository: bool = False


def publish(session: Session) -> Publication:
    """Publish every artifact that passed the gate and is not released yet, then bring cards up to date that say what is no more so.

    Each release gets one commit at most for its artifact and one for its card. Where the Hub asks to wait for longer than we do, the
    rest is left for a later run. Without a write token all that waits is refused.
    """
    done = Publication()
    if not anything(session):
        return done
    try:
        publisher = _publisher(session)
    except ModelPressError as error:
        waiting = [record for record in session.store.variants() if let_through(record) and not released(record)]
        done.refused += [Refused(variant=record.variant_id, error=error.name, reason=error.message) for record in waiting]
        return done
    ready = publisher.ready()
    with session.report.phase("publish", len(ready)) as phase:
        for record in ready:
            wants = Wanted(
                bytes=record.artifact.bytes if record.artifact else 0,
                repository=session.store.published.at(publisher.names.of(record)) is None,
            )
            release = _one(session, _bringing(session, publisher), record, done, phase, wants)
            done.released += [release] if release else []
    return _cards(session, publisher, done)


def refresh(session: Session, *repo_ids: str) -> Publication:
    """Bring the cards of releases up to date, of all where none are named; only those whose bytes would differ make a commit."""
    done = Publication()
    return _cards(session, _publisher(session), done, only=set(repo_ids)) if anything(session) else done


def proposals(session: Session) -> tuple[list[Proposal], list[Refused]]:
    """Return what `publish` would send now, beside what is up, and what it would refuse; nothing is written, no write token asked for."""
    if not anything(session):
        return [], []
    from leaderboard.publish import Publisher

    publisher = Publisher(store=session.store, client=session.client, settings=session.settings, artifacts_dir=session.artifacts)
    ready = publisher.ready()
    names = {publisher.names.of(record) for record in ready}
    released = [record for record in publisher.released() if record.release and record.release.repo_id not in names]
    found: list[Proposal] = []
    refused: list[Refused] = []
    for record in [*ready, *released]:
        try:
            found.append(publisher.preview(record))
        except ModelPressError as error:
            refused.append(Refused(variant=record.variant_id, error=error.name, reason=error.message))
    return found, refused


def anything(session: Session) -> bool:
    """Whether there is anything that could be published, so that no token is asked for where there is nothing."""
    return any(record.release or let_through(record) for record in session.store.variants())


def _publisher(session: Session) -> Publisher:
    from leaderboard.publish import Publisher

    return Publisher(store=session.store, client=session.publisher, settings=session.settings, artifacts_dir=session.artifacts)


def _bringing(session: Session, publisher: Publisher) -> Callable[[VariantRecord], Release]:
    def action(record: VariantRecord) -> Release:
        lost.bring(session, record)
        return publisher.publish(record)

    return action


def _cards(session: Session, publisher: Publisher, done: Publication, *, only: set[str] | None = None) -> Publication:
    succession.mark(session.store)
    publisher.look_again()
    stale = [record for record in publisher.released() if record.release and (not only or record.release.repo_id in only)]
    stale = [record for record in stale if publisher.is_stale(record)]
    with session.report.phase("card", len(stale)) as phase:
        for record in stale:
            release = _one(session, publisher.refresh, record, done, phase, Wanted())
            done.cards += [release] if release else []
    return done


def _one(
    session: Session,
    action: Callable[[VariantRecord], Release | None],
    record: VariantRecord,
    done: Publication,
    phase: Phase,
    wants: Wanted,
) -> Release | None:
    """Send one release and return it; None where it was refused or left for a later run, which is noted, or nothing was to be done."""
    label = f"{phase.title} {record.base.name} {record.recipe.name}"
    phase.begin(label)
    over = done.stopped or hub_limit(session, wants)
    try:
        release = None if over else action(record)
    except ModelPressError as error:
        if not (isinstance(error, HubUnreachable) and error.retry_after):
            done.refused.append(Refused(variant=record.variant_id, error=error.name, reason=error.message))
            phase.fail(label, error.message)
            return None
        over = done.stopped = error.message
    if over:
        done.left.append(Refused(variant=record.variant_id, error=OVER_BUDGET, reason=f"it is left for a later run: {over}"))
        phase.leave(label, done.left[-1].reason)
        return None
    phase.end(label, release.repo_id if release else "")
    return release


def hub_limit(session: Session, wants: Wanted) -> str:
    """Return why so much may not go to the Hub now; empty where it may. A card takes no room worth counting."""
    from hub.budget import DAY, hub_refusal

    settings, stored = session.settings.budget, 0
    if not wants.repository:
        settings = settings.model_copy(update={"repos_per_day": 0})
    if not wants.bytes:
        settings = settings.model_copy(update={"storage_gib": 0.0})
    if settings.storage_gib:
        stored = sum(other.artifact.bytes for other in session.store.variants() if other.release and other.artifact)
    return hub_refusal(settings, session.store.hub_writes(time.time() - DAY), stored_bytes=stored, wanted_bytes=wants.bytes)
