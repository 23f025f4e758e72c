"""The stages of the press over one open work folder; the commands call them, `run` calls them all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hub.domain import Failure, Job, Recipe
from hub.errors import ModelPressError, UsageError
from hub.history import BaseRecord, VariantRecord, Verdict
from hub.scheduling import Plan
from leaderboard.looks import failures
from modelpress.progress import JobLines

if TYPE_CHECKING:
    from hub.catalog import Discovery
    from hub.dispatch import Counts
    from modelpress.session import Session

ALL = "all"
QUICK_MODELS = 1
QUICK_RECIPES = ("gptq-w4a16-g64", "bnb-nf4")
QUICK_PROTOCOL = "stdlib-heldout@512-quick"


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which part of the work is asked for; empty means all that the settings name."""

    models: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    quick: bool = False
    retry_failed: bool = False


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A stage that did not go through for one variant, and why."""

    variant: str
    error: str
    reason: str


def now() -> str:
    """Return the present as an ISO-8601 string in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def discover(session: Session) -> Discovery:
    """List the hub's popular models, rank them by the dated history, judge each by policy, and record both sides with a snapshot.

    What this work folder published itself is passed over in silence: it is listed, but nobody would ask why it is not pressed.
    """
    from hub import catalog

    with session.report.phase("discover", 0):
        own = {release.repo_id for release in session.store.releases()}
        past = session.store.popularity(since=catalog.since(datetime.now(UTC)))
        at = catalog.moment(datetime.now(UTC), past)
        known = session.store.candidates()
        ranked = catalog.discover(session.client, session.settings, history=past, now=at)
        found = catalog.judge(
            [one for one in ranked if one.candidate.ref.repo_id not in own],
            session.client,
            session.settings,
            known=lambda repo_id: known.get(repo_id, ()),
            free_bytes=shutil.disk_usage(session.folder).free,
        )
        scores = {repo_id: score.value for repo_id, score in found.scores.items()}
        session.store.record_models(found.accepted, at.isoformat(timespec="seconds"), scores=scores, refused=found.turned_away)
        session.store.record_refusals(found.refused)
    return found


def chosen_recipes(session: Session, selection: Selection) -> tuple[Recipe, ...]:
    """Return the recipes asked for: by name or file (`all`: every shipped one), by --quick, by the settings, or the shipped defaults."""
    from runners import recipes

    asked: Sequence[str] = selection.recipes or (
        QUICK_RECIPES if selection.quick else session.settings.press.recipes or recipes.default_names()
    )
    names = [name for word in asked for name in (recipes.names() if word == ALL else [word])]
    return tuple(recipes.load(name) for name in dict.fromkeys(names))


def chosen_bases(session: Session, selection: Selection) -> tuple[BaseRecord, ...]:
    """Return the recorded base models asked for, most popular first; raise UsageError for a name that is not among them."""
    bases = session.store.bases(current=True)
    if selection.models:
        known = {base.candidate.ref.repo_id: base for base in bases}
        for name in selection.models:
            if name not in known:
                raise UsageError(
                    f"{name} is not among the accepted models: {', '.join(known) or 'none are recorded yet'}",
                    hint="see modelpress discover for what was refused and why",
                )
        bases = [known[name] for name in selection.models]
    return tuple(bases[:QUICK_MODELS] if selection.quick and not selection.models else bases)


def plan(session: Session, selection: Selection) -> Plan:
    """Plan jobs for the recorded models, by what they bring and take: base model x recipe, less what is done."""
    from hub import planner
    from leaderboard.retirement import held_back
    from modelpress import lost
    from modelpress.expectations import Estimates, worth
    from runners import protocols

    with session.report.phase("plan", 0):
        recipes = chosen_recipes(session, selection)
        bases = chosen_bases(session, selection)
        protocol = protocols.load(QUICK_PROTOCOL if selection.quick else session.settings.press.protocol)
        further = () if selection.quick else session.settings.press.further_protocols
        session.store.recover()
        gone = lost.forget(session)
        estimates, back = Estimates(session), held_back(session.store.variants())
        plan = planner.plan(
            [base.candidate.ref for base in bases],
            recipes,
            protocol,
            done=session.store.done(),
            further=[protocols.load(name) for name in further],
            failed=session.store.failed_attempts(),
            retry_failed=selection.retry_failed,
            max_attempts=session.settings.farm.max_attempts,
            fits=lambda model, recipe: back(model, recipe) or estimates.misfit(model, recipe),
            worth=worth(session, bases, estimates),
        )
        plan = lost.without(plan, gone)
        session.store.record_plan(plan)
    return plan


def work(session: Session) -> Counts:
    """Run what is planned on the farm until nothing is left that could still be done; a signal ends it in order, and is then raised."""
    from hub.dispatch import Counts, dispatch
    from hub.spool import Spool
    from modelpress.expectations import budget

    counts = session.store.queue.counts()
    total = counts.get("planned", 0) + counts.get("running", 0)
    spool = Spool(session.folder / "spool")
    if not total:
        return Counts()
    farm = session.settings.farm
    with session.report.phase("press and measure", total) as phase, session.stopping.orderly() as stop:
        return dispatch(
            session.farm,
            session.store,
            JobLines(phase),
            budget=budget(session),
            lease_s=farm.lease_s,
            max_attempts=farm.max_attempts,
            stop=stop,
            spool=spool,
            pause_s=farm.pause_hours * 3600,
        )


def gate(session: Session) -> tuple[list[VariantRecord], list[Refused]]:
    """Inspect every measured artifact that has no verdict yet in a clean process, and judge it.

    Return those that were refused, and those that could not be judged, because the inspection ended without facts.
    """
    from leaderboard.gate import artifact_verdict, judge

    waiting = [record for record in session.store.variants() if record.artifact and record.measurements and not artifact_verdict(record)]
    bases = {base.candidate.ref: base for base in session.store.bases()}
    refused: list[VariantRecord] = []
    not_judged: list[Refused] = []
    with session.report.phase("gate", len(waiting)) as phase:
        for record in waiting:
            assert record.artifact is not None
            label = f"gate {record.base.name} {record.recipe.name}"
            phase.begin(label)
            digest = record.artifact.digest
            job = Job(kind="inspect", base=record.base, recipe=record.recipe, subject=digest)
            outcome = session.farm.run(job, folder=session.artifacts / record.variant_id)
            if isinstance(outcome, Failure) or outcome.facts is None:
                nothing = ("GateRefusal", "the inspection gave no facts")
                error, reason = (outcome.error, outcome.reason) if isinstance(outcome, Failure) else nothing
                not_judged.append(Refused(variant=record.variant_id, error=error, reason=reason))
                phase.fail(label, reason)
                continue
            verdict = judge(record, outcome.facts, base=bases[record.base], stage="artifact", subject=digest, at=now())
            session.store.record_verdict(verdict)
            if verdict.passed:
                phase.end(label)
            else:
                refused.append(record)
                phase.fail(label, failures(verdict))
    return refused, not_judged


def verify(session: Session, *, again: bool = False) -> tuple[list[Verdict], list[Refused]]:
    """Download each release to an empty cache and put the gate on those bytes; `again` also those verified before.

    Return the verdicts, and what did not pass or could not be judged; where hub or disk keep all from being judged the rest is not tried.
    """
    from leaderboard.faults import IN_A_ROW, OF_RELEASES, ending
    from leaderboard.succession import on_the_hub
    from leaderboard.verify import Verifier
    from modelpress.verifying import commands

    records = [record for record in on_the_hub(session.store) if record.release and (again or record.release.verified_at is None)]
    if records and session.hub_busy:
        session.report.say(f"{len(records)} releases are verified by a later run: {session.hub_busy}")
        return [], []
    verifier = Verifier(store=session.store, client=session.client, farm=session.farm)
    verdicts: list[Verdict] = []
    refused: list[Refused] = []
    row: list[ModelPressError] = []
    with session.report.phase("verify", len(records)) as phase:
        for record in records:
            if len(row) == IN_A_ROW:
                break
            assert record.release is not None
            label = f"verify {record.release.repo_id}"
            phase.begin(label)
            try:
                scratch = session.folder / "scratch" / record.variant_id
                verdict = verifier.verify(record, scratch=scratch, commands=commands(session, record))
            except ModelPressError as error:
                refused.append(Refused(variant=record.variant_id, error=error.name, reason=error.message))
                if isinstance(error, OF_RELEASES):
                    phase.fail(label, error.message)
                else:
                    phase.leave(label, f"not judged: {error.message}")
                row = ending(row, error)
                continue
            row = []
            verdicts.append(verdict)
            if verdict.passed:
                phase.end(label)
            else:
                refused.append(Refused(variant=record.variant_id, error="GateRefusal", reason=failures(verdict)))
                phase.fail(label, failures(verdict))
    shutil.rmtree(session.folder / "scratch", ignore_errors=True)
    return verdicts, refused


def released(record: VariantRecord) -> bool:
    """Whether exactly these bytes are published."""
    return record.release is not None and record.artifact is not None and record.release.artifact_digest == record.artifact.digest


def site(session: Session) -> tuple[Path, int]:
    """Build the site from the database; return its folder and the number of pages."""
    from leaderboard.site import build

    with session.report.phase("site", 0):
        pages = build(session.store, session.site, hub_url=session.page_url)
    return session.site, pages
