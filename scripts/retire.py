"""`modelpress retire`: a release is deprecated with a reason, or deleted where that is asked for twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelpress.options import AsJson, echo, emit

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hub.history import VariantRecord
    from modelpress.session import Session


def retire(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="REPO|VARIANT", help="A released repository, or the id of its variant.")],
    because: Annotated[str | None, typer.Option(metavar="TEXT", help="Why, as the card is to say it.")] = None,
    new_version: Annotated[str | None, typer.Option(metavar="REPO", help="The repository to take in its place.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take a retirement back; what was deleted may be published again.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Show what would be deleted on the Hub; with --yes, delete it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --delete: do it. It cannot be undone.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deprecate a release with a note on its card, and take it out of its collection; its files stay, unless --delete --yes."""
    from hub.errors import Incomplete, UsageError
    from leaderboard import retirement
    from modelpress.session import Session

    if undo and (because is not None or new_version or delete):
        raise UsageError("--undo takes back what was said; it goes with no other option", hint="give --undo alone")
    if yes and not delete:
        raise UsageError("--yes is for --delete: a release is deprecated without it", hint="leave --yes out")
    if delete and new_version:
        raise UsageError("a repository that is deleted names no other one", hint="leave --delete or --new-version out")
    why = retirement.reason(because) if because is not None else None
    with Session(ctx.obj.settings(), exclusive=True) as session:
        family = retirement.named(session.store.variants(), name)
        if undo:
            found = taken_back(session, family)
        elif delete:
            found = deleted(session, family, why, yes=yes)
        else:
            found = deprecated(session, family[0], why, new_version)
    if as_json:
        emit(found)
    else:
        show(found)
    if problems := found["problems"]:
        raise Incomplete(f"the database knows it, the Hub not in all: {problems[0]}", hint="modelpress publish does what is left")


def deprecated(session: Session, record: VariantRecord, why: str | None, new_version: str | None) -> dict[str, Any]:
    """Deprecate what a repository holds; what is said of it already stays where nothing else is said."""
    from hub.errors import StoreError
    from modelpress.pipeline import now

    release, published = record.release, session.store.published
    if release is None:
        raise StoreError("it was deleted already", hint="--undo lets it be published again")
    if new_version:
        check_successor(session, release.repo_id, new_version)
    words = why or release.retired_why or (f"{new_version} takes its place" if new_version else "it is not recommended any more")
    if (release.retired_at is None) or words != release.retired_why:
        published.retire(record.variant_id, at=release.retired_at or now(), why=words)
    if new_version:
        published.supersede(record.variant_id, new_version)
    return told(session, release.repo_id, record, f"deprecated: {words}")


def check_successor(session: Session, repo_id: str, new_version: str) -> None:
    """Refuse what cannot take a release's place: no repository, itself, one that is retired, research, or not on the Hub."""
    from hub import names
    from hub.errors import HubNotFound, UsageError
    from leaderboard.succession import on_the_hub

    if fault := names.repo_id_fault(new_version):
        raise UsageError(fault, hint="name a repository as owner/name")
    ours = {one.release.repo_id: one for one in on_the_hub(session.store) if one.release}.get(new_version)
    reason = ""
    if new_version == repo_id:
        reason = "it cannot take its own place"
    elif ours and ours.release and ours.release.retired_at is not None:
        reason = f"{new_version} is retired itself"
    elif ours and ours.recipe.track != "serving":
        reason = f"{new_version} is a research variant, which is not for use"
    if reason:
        raise UsageError(reason, hint="name another repository, or leave --new-version out")
    if not session.client.exists(new_version):
        raise HubNotFound(f"there is no {new_version} on the Hub", hint="name a repository that is there")


def taken_back(session: Session, family: Sequence[VariantRecord]) -> dict[str, Any]:
    """Take a deprecation back, or let what was deleted be published again."""
    from leaderboard import retirement

    record, published = family[0], session.store.published
    repo_id = record.release.repo_id if record.release else retirement.withdrawn_as(record)
    admitted = retirement.admit(session.store, family)
    if record.release is None or admitted:
        return outcome(repo_id, record, "may be published again: modelpress publish does, modelpress run where its files are gone")
    if record.release.retired_at is None:
        return told(session, repo_id, record, "not deprecated, so nothing was to be taken back")
    published.retire(record.variant_id, at="", why="")
    published.supersede(record.variant_id, None)
    return told(session, repo_id, record, "not deprecated any more")


def deleted(session: Session, family: Sequence[VariantRecord], why: str | None, *, yes: bool) -> dict[str, Any]:
    """Delete a repository on the Hub with `yes`, else say what would be deleted.

    What is to be remembered is noted before, what is to be forgotten after: killed in between, the same command goes on. Refused where
    somebody put files beside ours.
    """
    from hub.errors import StoreError
    from leaderboard import retirement
    from leaderboard.proposal import look
    from modelpress.pipeline import now

    record, store = family[0], session.store
    release = record.release
    if release is None:
        raise StoreError(f"{retirement.withdrawn_as(record)} was deleted already", hint="--undo lets it be published again")
    head = look(session.client, release.repo_id, record.base.repo_id)
    head.require_ours(release.repo_id)
    size = sum(max(0, file.size) for file in head.files)
    what = {"head": head.sha, "files": len(head.files), "bytes": size}
    if not yes:
        return {**outcome(release.repo_id, record, ""), **what}
    publisher = session.publisher
    retirement.withdraw(store, family, release.repo_id, at=now(), why=why or release.retired_why or "it is not offered any more")
    publisher.delete(release.repo_id)
    retirement.note_deleted(store, family, at=now())
    return {**told(session, release.repo_id, record, "deleted on the Hub"), **what}


def told(session: Session, repo_id: str, record: VariantRecord, done: str) -> dict[str, Any]:
    """Let cards and collection of the base model say what the database says, and return what came of it."""
    from leaderboard.succession import mark, on_the_hub
    from modelpress import collecting, publishing

    mark(session.store)
    siblings = [one for one in on_the_hub(session.store) if one.base.repo_id == record.base.repo_id]
    family = [one.release.repo_id for one in siblings if one.release]
    published = publishing.refresh(session, *family) if family else publishing.Publication()
    collected = collecting.collect(session, record.base.repo_id)
    after = session.store.variant(record.variant_id)
    return {
        **outcome(repo_id, record, done),
        "release": after.release if after else None,
        "cards": [*published.cards, *collected.cards],
        "collections": collected.collections,
        "problems": [*(one.reason for one in (*published.refused, *published.left)), *collected.problems],
    }


def outcome(repo_id: str, record: VariantRecord, done: str) -> dict[str, Any]:
    """Return what `--json` prints, of a command that wrote nothing to the Hub; `done` is empty where nothing was changed at all."""
    nothing: dict[str, Any] = {"cards": [], "collections": [], "problems": []}
    return {"repo_id": repo_id, "variant": record.variant_id, "done": done, "release": record.release, **nothing}


def show(found: dict[str, Any]) -> None:
    """Print what became of a release."""
    from leaderboard.text import size

    repo_id = found["repo_id"]
    if not found["done"]:
        there = f"{found['files']} files, {size(found['bytes'])}, commit {found['head'][:8]}" if found["head"] else "gone already"
        echo(f"{repo_id} ({there}) would be deleted on the Hub, for ever; nothing was changed. --delete --yes does it")
        return
    echo(f"{repo_id}: {found['done']}")
    if found["release"] and found["release"].new_version:
        echo(f"  in its place: {found['release'].new_version}")
    for card in found["cards"]:
        echo(f"  card of {card.repo_id} in commit {card.sha[:8]}")
    for one in found["collections"]:
        echo(f"  collection {one.url}" + (f", {one.writes} changes" if one.writes else " is as it should be"))
