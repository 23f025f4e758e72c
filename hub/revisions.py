"""Whether a new commit of a base model is a new model: a hash of the files that make it what it is. Pure.

A commit that changes a README, a licence's text or pictures leaves the model as it was: it stays the one that was recorded first, so
that nothing is pressed twice. One that changes weights, configuration, tokenizer or templates is a new revision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hub import names
from hub.codec import content_id
from hub.domain import Candidate, HubFile, ModelRef
from hub.licences import POLICIES, TEXTS
from hub.policy import PULL

MODEL = tuple(pattern for pattern in PULL if pattern not in (*TEXTS, *POLICIES))
"""What makes a model: all that is pulled, less the texts of licences."""
_MAX_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Revision:
    """A model that changed since `since`, the commit that was recorded last; `changed` are the files, `reason` is one sentence."""

    ref: ModelRef
    since: str
    changed: tuple[str, ...]
    reason: str


def fingerprint(candidate: Candidate) -> str:
    """Return a hash of what would be pulled: paths with their checksums; files without one count by size."""
    return content_id(sorted(_sums(candidate).items()))


def settle(candidate: Candidate, known: Sequence[Candidate]) -> tuple[Candidate, Revision | None]:
    """Return the candidate at the commit at which it is pressed, and the revision where it is a new one of a known model.

    `known` are the recorded commits of this repository, latest seen first. What is the same model as one of them keeps its commit and
    files, with what the Hub says of it today; of several the one recorded first, since the work was done on that.
    """
    if not known or candidate.ref in (one.ref for one in known):
        return candidate, None
    print_ = fingerprint(candidate)
    same = next((one for one in reversed(known) if fingerprint(one) == print_), None)
    if same:
        return replace(candidate, ref=same.ref, files=same.files), None
    return candidate, _revision(candidate, known[0])


def _revision(candidate: Candidate, before: Candidate) -> Revision:
    old, new = _sums(before), _sums(candidate)
    changed = tuple(sorted((path for path in {*old, *new} if old.get(path) != new.get(path)), key=_weight))
    words = [f"{names.shown(path)[1:-1]} {_verb(path in old, path in new)}" for path in changed[:_MAX_NAMED]]
    more = f" and {len(changed) - _MAX_NAMED} more files" if len(changed) > _MAX_NAMED else ""
    reason = f"{', '.join(words)}{more} since {before.ref.sha[:8]}"
    return Revision(ref=candidate.ref, since=before.ref.sha, changed=changed, reason=reason)


def _verb(was: bool, is_: bool) -> str:
    return "changed" if was and is_ else "is new" if is_ else "is gone"


def _weight(path: str) -> tuple[int, str]:
    """Order files by what matters most to a reader: weights, then the configuration, then the rest."""
    return (0 if path.endswith(".safetensors") else 1 if path == "config.json" else 2, path)


def _sums(candidate: Candidate) -> dict[str, str]:
    files: dict[str, HubFile] = {file.path: file for file in candidate.files}
    return {path: files[path].sha256 or files[path].blob_id or f"{files[path].size} bytes" for path in names.fitting(files, MODEL)}
