"""The gate again, after publishing: on the bytes that the Hub serves, in an empty cache and a clean process."""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hub.domain import ArtifactFile, Failure, Job, ModelRef
from hub.errors import GateRefusal, StoreError
from hub.history import Release, VariantRecord, Verdict
from hub.transfer import sums
from leaderboard import gate

if TYPE_CHECKING:
    from hub.client import HubClient
    from hub.dispatch import Farm
    from hub.store import Store


def verify(release: Release, record: VariantRecord, *, store: Store, client: HubClient, farm: Farm, scratch: Path) -> Verdict:
    """Judge the bytes that the Hub serves for a release: downloaded to an empty cache, compared, inspected in a clean process.

    The verdict is recorded, and the release marked as verified when it passed. `scratch` is emptied before and removed after.
    Raises `GateRefusal` when the inspection could not be made.
    """
    base = next((base for base in store.bases() if base.candidate.ref == record.base), None)
    if base is None or record.artifact is None:
        raise StoreError(
            f"the database holds no base or no artifact of the released variant {record.variant_id}", hint="run modelpress discover"
        )
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        reader = copy.copy(client)
        reader.cache_dir = scratch / "cache"
        folder = reader.download(ModelRef(repo_id=release.repo_id, sha=release.sha), into=scratch / "checkpoint")
        wrong = [file.path for file in record.artifact.files if not _is_file(folder / file.path, file)]
        outcome = farm.run(Job(kind="inspect", base=record.base, recipe=record.recipe, subject=release.sha), folder=folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if isinstance(outcome, Failure) or outcome.facts is None:
        reason, hint = (outcome.reason, outcome.hint) if isinstance(outcome, Failure) else ("the inspection gave no facts", "")
        raise GateRefusal(
            f"{release.repo_id} at {release.sha[:8]} could not be inspected: {reason}", hint=hint or "run modelpress verify again"
        )
    facts = replace(outcome.facts, checksum_errors=tuple(dict.fromkeys((*wrong, *outcome.facts.checksum_errors))))
    at = datetime.now(UTC).isoformat(timespec="seconds")
    verdict = gate.judge(record, facts, base=base, stage="release", subject=release.sha, at=at)
    store.record_verdict(verdict)
    if verdict.passed:
        store.mark_verified(record.variant_id, verdict.judged_at)
    return verdict


def _is_file(path: Path, file: ArtifactFile) -> bool:
    """Whether a path is a file itself, no link to one, with the recorded size and checksum."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.size:
        return False
    return sums(path).sha256 == file.sha256
