"""`modelpress publish`: put what passed the gate on the hub."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leaderboard.text import size
from modelpress.options import AsJson, echo, emit

if TYPE_CHECKING:
    from leaderboard.proposal import Proposal
    from modelpress.collecting import Collected
    from modelpress.pipeline import Refused
    from modelpress.publishing import Publication
    from modelpress.session import Session

_SHOWN = 40


def publish(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would go up beside what is there; write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Publish every artifact that passed the gate and is not on the hub yet, with its card, and renew cards that are out of date."""
    from hub.errors import Incomplete
    from modelpress import collecting, publishing
    from modelpress.session import Session

    with Session(ctx.obj.settings(), exclusive=True) as session:
        if dry_run:
            refused = preview(session, as_json=as_json)
        else:
            done = publishing.publish(session)
            refused = done.refused
            show(done, collecting.collect(session), as_json=as_json)
    if refused:
        raise Incomplete(
            f"{len(refused)} artifacts or cards were not published; first: {refused[0].reason}", hint="modelpress publish tries them again"
        )


def show(done: Publication, collected: Collected, *, as_json: bool) -> None:
    """Print what was published."""
    cards = [*done.cards, *collected.cards]
    if as_json:
        sent = {"released": done.released, "cards_renewed": cards, "refused": done.refused, "left_for_later": done.left}
        emit({**sent, "collections": collected.collections, "not_collected": collected.problems})
        return
    for release in (*done.released, *cards):
        typer.echo(f"{release.repo_id}@{release.sha[:8]}  {release.url}")
    typer.echo(f"{len(done.released)} published, {len(cards)} cards renewed, {len(done.refused)} not, {len(done.left)} left for later")
    if done.left:
        echo(done.left[0].reason)
    for line in (*(f"collection {one.url}, {one.writes} changes" for one in collected.collections if one.writes), *collected.problems):
        echo(line)


def preview(session: Session, *, as_json: bool) -> list[Refused]:
    """Print what would be published, and return what would be refused."""
    from modelpress import publishing

    found = publishing.rehearse(session)
    if as_json:
        proposals = [document(one, session) for one in found.proposals]
        emit({"proposals": proposals, "refused": found.refused, "left_for_later": found.left, "as_they_should_be": found.as_they_should_be})
        return found.refused
    for one in found.proposals:
        for line in described(one, session):
            echo(line)
    for no in (*found.refused, *found.left):
        echo()
        echo(f"{no.variant}: {no.reason}" if no in found.left else f"{no.variant} would be refused: {no.reason}")
    counts = f"{found.as_they_should_be} are as they should be, {len(found.refused)} would be refused, {len(found.left)} left for later"
    typer.echo(f"\ndry run: {len(found.proposals)} releases would be sent, {counts}")
    return found.refused


def document(proposal: Proposal, session: Session) -> dict[str, Any]:
    """Return all that a proposal holds, the card whole."""
    from hub.local.cards import parse

    order, head = proposal.order, proposal.head
    return {
        "repo_id": order.repo_id,
        "variant": order.record.variant_id,
        "kind": proposal.change.kind,
        "message": proposal.message,
        "changelog": proposal.change.what,
        "head": head.sha,
        "gated": order.gated,
        "bytes_sent": proposal.size,
        "files": proposal.states,
        "metadata": parse(proposal.card),
        "card": proposal.card,
        "card_diff": list(card_diff(proposal, session)),
    }


def described(proposal: Proposal, session: Session) -> list[str]:
    """Return a proposal in lines: where to, what for, the files, the metadata, and how the card changes."""
    from hub.local.cards import parse

    order = proposal.order
    gated = ", access gated" if order.gated else ""
    lines = ["", f"{order.repo_id}  ({'new' if proposal.head.sha is None else proposal.head.sha[:8]}{gated})", f"  {proposal.message}"]
    lines += [f"  {state.state:8} {state.path}  {size(state.size)}" for state in proposal.states]
    data = parse(proposal.card)
    lines += [f"  {key}: {data[key]}" for key in data if key != "model-index"]
    diff = list(card_diff(proposal, session))
    lines += [f"  {line}" for line in diff[:_SHOWN]]
    return [*lines, f"  … {len(diff) - _SHOWN} lines more, which --json has"] if len(diff) > _SHOWN else lines


def card_diff(proposal: Proposal, session: Session) -> list[str]:
    """Return how the card differs from the one that is up, as a unified diff; every line of it is new where there is none."""
    from leaderboard.proposal import CARD

    head, order = proposal.head, proposal.order
    before = session.client.read_text(order.repo_id, head.sha, CARD, listed=head.files) if head.sha else None
    there = f"{order.repo_id}@{head.sha[:8]}" if head.sha else "nothing"
    return list(difflib.unified_diff((before or "").splitlines(), proposal.card.splitlines(), there, "this run", lineterm="", n=1))
