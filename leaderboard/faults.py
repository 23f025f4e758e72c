"""Whose fault it is that a look at a release came to nothing: the release's own, or that of hub, network and machine.

Only what is the release's fault is recorded against it, by verification and audits alike: it is not verified any more.
"""

from __future__ import annotations

from hub import errors
from hub.domain import Failure
from hub.errors import GateRefusal, HubCorrupt, HubNotFound, HubUnreachable, ModelPressError, OutOfDisk, PolicyRefusal, Unavailable
from hub.facts import Facts

IN_A_ROW = 2
"""After so many looks that ended alike with what keeps all of them from being made, no other is tried."""

OF_RELEASES = (GateRefusal, HubNotFound, HubCorrupt, PolicyRefusal)
"""What a release itself is at fault for: it did not pass, is gone, is not what the hub lists, or has names that are not let in."""

_OF_ALL = (HubUnreachable, OutOfDisk)
_OF_THE_MACHINE = ("hub", "out_of_memory", "timed_out", "disk", "killed", "gated")


def broke(failure: Failure, doing: str) -> ModelPressError:
    """Return the error of a job that failed on a release: `GateRefusal` where the release is at fault, else the job's own."""
    if failure.category not in _OF_THE_MACHINE and failure.error != Unavailable.__name__:
        return GateRefusal(f"{doing} failed: {failure.reason}", hint=failure.hint)
    kind = getattr(errors, failure.error, errors.JobDied)
    if issubclass(kind, OF_RELEASES):
        kind = errors.JobDied  # something else that the job wanted is gone: its files were there before it began
    return kind(f"{doing} failed here: {failure.reason}", hint=failure.hint)


def lacking(facts: Facts) -> str:
    """Return which library or device is missing here, so that a checkpoint could not be loaded; empty where that was not the reason."""
    mark = f"{Unavailable.__name__}: "
    return facts.load_error.removeprefix(mark) if facts.load_error.startswith(mark) else ""


def ending(before: list[ModelPressError], error: ModelPressError) -> list[ModelPressError]:
    """Return the errors in a row, this one last, that would keep every look from being made; none where this one would not."""
    return [*before, error] if isinstance(error, _OF_ALL) else []
