"""The stage that keeps the catalogue: which release takes another's place, and one collection per base model on the Hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hub.errors import HubRefused, HubUnreachable, ModelPressError
from leaderboard import catalogue, looks, succession

if TYPE_CHECKING:
    from hub.history import Release
    from leaderboard.catalogue import Synced
    from modelpress.session import Session


@dataclass
class Collected:
    """The collections as they are now, the cards that were renewed for it, and in sentences what did not go through."""

    collections: list[Synced] = field(default_factory=list)
    cards: list[Release] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def collect(session: Session, *bases: str) -> Collected:
    """Note which releases are outdated or worse, on their cards too, and bring the collections up to date: of these bases, or of all.

    What fails is said and left for the next run; it never makes releases fail. Where nothing was released, the Hub is not asked.
    """
    done = Collected()
    store = session.store
    if not store.releases():
        return done
    _mark(session, done)
    records = succession.on_the_hub(store)
    shelves = catalogue.shelves(records, store.bases(), looks.broken(store, records))
    wanted = [shelf for shelf in shelves if not bases or shelf.base in bases]
    if session.hub_busy:
        done.problems.append(f"{len(wanted)} collections are left for the next run: {session.hub_busy}")
        return done
    with session.report.phase("collection", len(wanted)) as phase:
        for shelf in wanted:
            label = f"collection of {shelf.base}"
            phase.begin(label)
            try:
                synced = catalogue.sync(shelf, session.publisher, store)
            except ModelPressError as error:
                done.problems.append(f"the collection of {shelf.base} is left for the next run: {error.message}")
                phase.leave(label, error.message)
                if isinstance(error, HubUnreachable) and error.retry_after:
                    session.hub_busy = error.message
                if isinstance(error, HubUnreachable | HubRefused):
                    break  # what keeps one from being written keeps all
                continue
            done.collections += [synced] if synced else []
            phase.end(label, f"{synced.writes} changes" if synced and synced.writes else "")
            if synced and synced.missing:
                done.problems.append(f"{', '.join(synced.missing)}: released by the database, but not on the Hub any more")
    return done


def _mark(session: Session, done: Collected) -> None:
    from modelpress import publishing

    changed = succession.mark(session.store)
    for record, successor in changed:
        if record.release and successor:
            session.report.say(f"{record.release.repo_id}: {successor.repo_id} takes its place; {successor.why}")
    if names := [record.release.repo_id for record, _ in changed if record.release]:
        published = publishing.refresh(session, *names)
        done.cards += published.cards
        done.problems += [refused.reason for refused in (*published.refused, *published.left)]
