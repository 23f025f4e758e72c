"""Published releases looked at again: downloaded, judged, measured on a sample, used as their cards say; each finding recorded at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hub.domain import Failure, Job
from hub.errors import GateRefusal, HubConflict, JobDied, ModelPressError, StoreError, Unavailable
from hub.history import Audit, BaseRecord, Check, Release, VariantRecord
from modelpress.pipeline import Refused, now

if TYPE_CHECKING:
    from hub.client import HubClient
    from hub.domain import JobResult, Measurement
    from leaderboard.verify import Served
    from modelpress.session import Session
    from runners.card_commands import TrustedCard
    from runners.reproduction import Repeat

_MOST_WORDS = 1000
PATIENCE_S = 30.0
_SUBJECT = "audit"


@dataclass(frozen=True, kw_only=True)
class Audited:
    """What was found, and what could not be judged and why; `ended` is the error for which the rest was not tried."""

    audits: Sequence[Audit]
    left: Sequence[Refused]
    ended: ModelPressError | None = None


def audit(session: Session, *, most: int | None, retired: bool = False) -> Audited:
    """Audit the releases whose turn it is, `most` of them (None: all), and record what is found of each as soon as it is found.

    One that cannot be judged is left for another time, and the next one takes its place; where the hub is away the rest is not tried.
    """
    from leaderboard.audit import due
    from leaderboard.faults import IN_A_ROW, ending
    from leaderboard.succession import on_the_hub

    published = session.store.published
    records = due(on_the_hub(session.store), published.audits(), retired=retired)
    bases = {base.candidate.ref: base for base in session.store.bases()}
    wanted = len(records) if most is None else min(most, len(records))
    audits: list[Audit] = []
    left: list[Refused] = []
    row: list[ModelPressError] = []
    with session.report.phase("audit", wanted) as phase:
        for record in records:
            if len(audits) == wanted or len(row) == IN_A_ROW:
                break
            label = f"audit {record.release.repo_id if record.release else record.variant_id}"
            phase.begin(label)
            try:
                found = _Examination(session, record, bases.get(record.base)).find()
            except ModelPressError as error:
                left.append(Refused(variant=record.variant_id, error=error.name, reason=error.message))
                row = ending(row, error)
                phase.leave(label, f"not judged: {error.message}")
                continue
            published.record_audit(found)
            audits.append(found)
            row = []
            phase.end(label) if found.passed else phase.fail(label, found.reason)
    return Audited(audits=audits, left=left, ended=row[-1] if len(row) == IN_A_ROW else None)


class _Examination:
    """One release under examination: what is found of it is kept here until it is known whether it can be judged."""

    def __init__(self, session: Session, record: VariantRecord, base: BaseRecord | None) -> None:
        if base is None or record.artifact is None or record.release is None:
            raise StoreError(
                f"the database holds no base or no artifact of the released variant {record.variant_id}", hint="run modelpress discover"
            )
        self.session, self.record, self.base = session, record, base
        self.release: Release = record.release
        self.scratch: Path = session.folder / "scratch" / record.variant_id
        self.sha = self.release.sha
        self.libraries: dict[str, str] = {}
        self.measurements: tuple[Measurement, ...] = ()

    def find(self) -> Audit:
        """Return what was found; raise what keeps the release from being judged."""
        from runners import environment

        reason = ""
        try:
            self._examine()
        except GateRefusal as error:
            reason = error.message[:_MOST_WORDS]
        finally:
            with suppress(OSError):
                self.scratch.parent.rmdir()
        return Audit(
            variant_id=self.record.variant_id,
            repo_id=self.release.repo_id,
            sha=self.sha,
            at=now(),
            passed=not reason,
            reason=reason,
            libraries=self.libraries or environment.libraries(),
            measurements=self.measurements,
        )

    def _examine(self) -> None:
        """Raise `GateRefusal` with what broke, at the first stage at which something did."""
        from leaderboard.audit import at_head, ours
        from runners import card_commands

        if self.session.store.published.begun(self.release.repo_id):
            raise HubConflict(f"a change of {self.release.repo_id} was begun and never settled", hint="run modelpress publish, which does")
        with at_head(self.release, self._stranger, self.scratch, gated=bool(self.base.candidate.gated)) as there:
            self.sha = there.sha
            self._demand(ours(self.record, self.release, self._stranger, there))
            card = self._card(there)
            if card and (missing := card_commands.missing(card)):
                raise Unavailable(f"its card asks for what is not installed here: {', '.join(missing)}", hint=f"pip install {missing[0]}")
            self._judge(there)
            self._measure(there)
        if card:
            self._use(card)

    @cached_property
    def _stranger(self) -> HubClient:
        """A client that has a token only where a gate asks for one, since those who download have none of ours."""
        from hub.client import HubClient

        if self.base.candidate.gated:
            return self.session.client
        return HubClient(endpoint=self.session.endpoint, token=None, cache_dir=self.scratch / "cache", patience_s=PATIENCE_S)

    def _card(self, there: Served) -> TrustedCard | None:
        """Return the card that is served; None where an older program published it, which did not note its SHA-256."""
        from runners.card_commands import TrustedCard

        content, expected = there.card, self.release.card_sha256
        return TrustedCard(content=content, expected_sha256=expected) if content is not None and expected is not None else None

    @staticmethod
    def _demand(checks: Sequence[Check]) -> None:
        """Raise `GateRefusal` with the failed checks."""
        if failed := [f"{check.name}: {check.detail.removesuffix('.')}" for check in checks if not check.passed]:
            raise GateRefusal("; ".join(failed))

    def _judge(self, there: Served) -> None:
        """Put the gate on what is served, its card among it."""
        from leaderboard.audit import judge
        from leaderboard.faults import lacking

        job = Job(kind="inspect", base=self.record.base, recipe=self.record.recipe, subject=there.sha)
        facts = self._job(job, there, "inspecting it").facts
        if facts is None:
            raise JobDied("the inspection gave no facts", hint="run modelpress audit again")
        if missing := lacking(facts):
            raise Unavailable(f"it cannot be loaded here: {missing}", hint="install what is missing; modelpress doctor")
        self._demand(judge(self.record, facts, base=self.base, there=there, at=now()))

    def _measure(self, there: Served) -> None:
        """Measure a sample of what is on record again; numbers that do not agree are what broke."""
        from leaderboard.notices import RECORDED
        from runners.reproduction import repeats
        from runners.spot_check import spot_check

        store = self.session.store
        checks = [spot_check(done, store.scores(done.id)) for done in store.measured(self.record.variant_id)]
        spot = min((one for one in checks if one), key=lambda one: one.windows, default=None)
        if spot is None:
            return
        job = Job(kind="measure", base=self.record.base, recipe=self.record.recipe, protocol=spot.protocol, subject=_SUBJECT)
        result = self._job(job, there, "measuring a sample of it")
        metrics = {one.metric for one in spot.expected}
        again = tuple(one for one in result.measurements if one.metric in metrics and not one.conditions)
        self.measurements = (*again, *(replace(one, conditions=RECORDED) for one in spot.expected))
        wrong = [one for one in repeats(spot.expected, result.measurements) if not one.agrees]
        if wrong:
            told = "; ".join(_told(one) for one in wrong)
            raise GateRefusal(f"{len(wrong)} of {len(spot.expected)} numbers do not agree with those on record: {told}")

    def _use(self, card: TrustedCard) -> None:
        """Run what the card prints. What fails is run once more, if the hub is there at all: then it was not the network."""
        from modelpress.verifying import commands

        run = commands(self.session, self.record)
        if run is None:
            return
        for _ in range(2):
            check = run(card.content, card.expected_sha256)
            if check.passed:
                return
            self._stranger.head(self.release.repo_id)
        self._demand([check])

    def _job(self, job: Job, there: Served, doing: str) -> JobResult:
        from leaderboard.faults import broke

        outcome = self.session.farm.run(job, folder=there.folder)
        if isinstance(outcome, Failure):
            raise broke(outcome, doing)
        self.libraries = dict(outcome.environment.libraries)
        return outcome


def _told(one: Repeat) -> str:
    now = f", is {one.now.value:.5g}" if one.now else ""
    return f"{one.then.metric} was {one.then.value:.5g}{now} ({one.reason})"
