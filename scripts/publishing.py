"""The stage that writes to the Hub: new artifacts first, then cards that are out of date, as far as the Hub's limits allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hub.errors import HubUnreachable, ModelPressError, OverBudget
from hub.history import HubWrite, Release, VariantRecord
from leaderboard import succession
from leaderboard.gate import let_through
from modelpress import lost
from modelpress.pipeline import Refused, released

if TYPE_CHECKING:
    from leaderboard.proposal import Proposal
    from leaderboard.publish import Publisher
    from modelpress.progress import Phase
    from modelpress.session import Session


@dataclass
class Publication:
    """What came of publishing: artifacts released, cards brought up to date, what was refused and why, and what is left for a later run."""

    released: list[Release] = field(default_factory=list)
    cards: list[Release] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    left: list[Refused] = field(default_factory=list)


@dataclass
class Rehearsal:
    """What publishing would do now: what it would send, refuse and leave for a later run, and how many releases it would not touch."""

    proposals: list[Proposal] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    left: list[Refused] = field(default_factory=list)
    as_they_should_be: int = 0


def publish(session: Session) -> Publication:
    """Publish every artifact that passed the gate and is not released yet, then bring cards up to date that say what is no more so.

    Each release gets one commit at most for its artifact and one for its card. Where the Hub asks to wait for longer than we do, the
    rest is left for a later run. Without a write token all that waits is refused.
    """
    done = Publication()
    publisher = _publisher(session, done, lambda record: let_through(record) and not released(record))
    if publisher is None:
        return done
    ready = publisher.ready()
    with session.report.phase("publish", len(ready)) as phase:
        for record in ready:
            release = _one(session, _bringing(session, publisher), record, done, phase)
            done.released += [release] if release else []
    return _cards(session, publisher, done)


def refresh(session: Session, *repo_ids: str) -> Publication:
    """Bring the cards of releases up to date, of all where none are named; only those whose bytes would differ make a commit.

    Without a write token all of them are refused.
    """
    done = Publication()
    publisher = _publisher(session, done, lambda record: _among(record, repo_ids))
    return _cards(session, publisher, done, only=repo_ids) if publisher else done


def rehearse(session: Session) -> Rehearsal:
    """Return what `publish` would do now, beside what is up; nothing is written to Hub or database, no write token asked for.

    As `publish` does, it fetches what lies in the depot alone.
    """
    found = Rehearsal()
    if not anything(session):
        return found
    from leaderboard.publish import Publisher

    publisher = Publisher(store=session.store, client=session.client, settings=session.settings, artifacts_dir=session.artifacts)
    publisher.suppose({record.variant_id: one.repo_id if one else None for record, one in succession.due(session.store)})
    ready = publisher.ready()
    names = {publisher.names.of(record) for record in ready}
    known = [record for record in publisher.released() if record.release and record.release.repo_id not in names]
    stale = [record for record in known if publisher.is_stale(record, coming=True)]
    found.as_they_should_be = len(known) - len(stale)
    coming: list[HubWrite] = []
    for place, record in enumerate([*ready, *stale]):
        try:
            if place < len(ready):
                lost.bring(session, record)
            _rehearse_one(publisher, publisher.preview(record), coming, found)
        except ModelPressError as error:
            found.refused.append(Refused(variant=record.variant_id, error=error.name, reason=error.message))
    return found


def _rehearse_one(publisher: Publisher, proposal: Proposal, coming: list[HubWrite], found: Rehearsal) -> None:
    """Sort a proposal in by the limits that hold once what comes before it was sent."""
    new, repo_id = proposal.head.sha is None, proposal.order.repo_id
    if proposal.empty:
        found.as_they_should_be += 1
    elif over := publisher.limit(size=proposal.artifact_bytes, repository=new, coming=coming):
        found.left.append(_later(proposal.order.record, over))
    else:
        found.proposals.append(proposal)
        actions = {**({"repo": 0} if new else {}), "commit": proposal.artifact_bytes}
        coming += [HubWrite(at=0.0, action=action, repo_id=repo_id, bytes=size) for action, size in actions.items()]


def anything(session: Session) -> bool:
    """Whether there is anything that could be published, so that no token is asked for where there is nothing."""
    return any(record.release or let_through(record) for record in session.store.variants())


def _publisher(session: Session, done: Publication, waits: Callable[[VariantRecord], bool]) -> Publisher | None:
    """Return who publishes; None where there is nothing to publish, or nobody may: then all that waits is refused."""
    if not anything(session):
        return None
    from leaderboard.publish import Publisher

    try:
        return Publisher(store=session.store, client=session.publisher, settings=session.settings, artifacts_dir=session.artifacts)
    except ModelPressError as error:
        waiting = [record.variant_id for record in session.store.variants() if waits(record)]
        done.refused += [Refused(variant=variant, error=error.name, reason=error.message) for variant in waiting]
        return None


def _bringing(session: Session, publisher: Publisher) -> Callable[[VariantRecord], Release]:
    def action(record: VariantRecord) -> Release:
        lost.bring(session, record)
        return publisher.publish(record)

    return action


def _cards(session: Session, publisher: Publisher, done: Publication, *, only: Sequence[str] = ()) -> Publication:
    succession.mark(session.store)
    publisher.look_again()
    stale = [record for record in publisher.released() if _among(record, only) and publisher.is_stale(record)]
    with session.report.phase("card", len(stale)) as phase:
        for record in stale:
            release = _one(session, publisher.refresh, record, done, phase)
            done.cards += [release] if release else []
    return done


def _among(record: VariantRecord, repo_ids: Sequence[str]) -> bool:
    return record.release is not None and (not repo_ids or record.release.repo_id in repo_ids)


def _one(
    session: Session, action: Callable[[VariantRecord], Release | None], record: VariantRecord, done: Publication, phase: Phase
) -> Release | None:
    """Send one release and return it; None where it was refused or left for a later run, which is noted, or nothing was to be done."""
    label = f"{phase.title} {record.base.name} {record.recipe.name}"
    phase.begin(label)
    try:
        if session.hub_busy:
            raise OverBudget(session.hub_busy)
        release = action(record)
    except ModelPressError as error:
        if isinstance(error, HubUnreachable) and error.retry_after:
            session.hub_busy = error.message
        if session.hub_busy or isinstance(error, OverBudget):
            done.left.append(_later(record, error.message))
            phase.leave(label, done.left[-1].reason)
        else:
            done.refused.append(Refused(variant=record.variant_id, error=error.name, reason=error.message))
            phase.fail(label, error.message)
        return None
    phase.end(label, release.repo_id if release else "")
    return release


def _later(record: VariantRecord, why: str) -> Refused:
    return Refused(variant=record.variant_id, error=OverBudget.__name__, reason=f"it is left for a later run: {why}")
