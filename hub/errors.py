"""Every error a user can meet, with its exit code: what happened, what was expected, what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hub.domain import FailureClass


class ModelPressError(Exception):
    """Base of all errors meant for people: the message says what happened, `hint` what to do next.

    `category` is the class under which a job's failure is counted and shown; `retryable`: another try may help.
    """

    exit_code = 1
    retryable = False
    category: FailureClass = "bug"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.hint))

    @property
    def name(self) -> str:
        """The class name, as stored with a failure."""
        return type(self).__name__


def _rebuild(kind: type[ModelPressError], message: str, hint: str) -> ModelPressError:
    return kind(message, hint=hint)


class UsageError(ModelPressError):
    """The command line asks for something that does not exist or does not go together."""

    exit_code = 2
    category: FailureClass = "unsupported"


class SettingsError(ModelPressError):
    """modelpress.toml or an environment variable holds a wrong key or value."""

    exit_code = 3


class BadDocument(ModelPressError):
    """A JSON or TOML document (job, recipe, manifest) does not hold what it should."""

    exit_code = 4


class UnknownName(ModelPressError):
    """No recipe, method, metric, engine, protocol or text of this name."""

    exit_code = 5
    category: FailureClass = "unsupported"


class Unavailable(ModelPressError):
    """A method, metric or engine whose library is missing here; the hint installs it."""

    exit_code = 6
    category: FailureClass = "unsupported"


class UnfitModel(ModelPressError):
    """The recipe cannot be applied to this model: unsupported architecture, or shapes that do not divide."""

    exit_code = 7
    category: FailureClass = "unsupported"


class BadCheckpoint(ModelPressError):
    """A checkpoint folder is missing, truncated, corrupt, or holds what is not allowed."""

    exit_code = 8
    category: FailureClass = "unsupported"


class PolicyRefusal(ModelPressError):
    """Policy does not allow this model to be pulled or published."""

    exit_code = 9
    category: FailureClass = "licence"


class GateRefusal(ModelPressError):
    """An artifact did not pass the gate, so it is not published."""

    exit_code = 10


class OutOfDisk(ModelPressError):
    """The disk is full, or has less room than the work needs."""

    exit_code = 11
    category: FailureClass = "disk"


class OutOfMemory(ModelPressError):
    """A job used more memory than it may; a more sparing try may do with less (`JobOrder.economy`)."""

    exit_code = 12
    retryable = True
    category: FailureClass = "out_of_memory"


class TimedOut(ModelPressError):
    """A job took longer than it may."""

    exit_code = 13
    category: FailureClass = "timed_out"
    retryable = True


class JobDied(ModelPressError):
    """A job's process ended without a result: killed from outside, or crashed in native code."""

    exit_code = 14
    category: FailureClass = "killed"
    retryable = True


class WorkFolderBusy(ModelPressError):
    """Another modelpress process works in this folder."""

    exit_code = 15


class StoreError(ModelPressError):
    """The database cannot be opened, is newer than this program, or is corrupt."""

    exit_code = 16


class Unstable(ModelPressError):
    """Numbers stopped being finite: weights, activations or losses became NaN or infinite."""

    exit_code = 17
    category: FailureClass = "unstable"


class CalibrationFailed(ModelPressError):
    """The calibration text gave a method nothing it can work with: too short, or an input that never fires."""

    exit_code = 18
    category: FailureClass = "calibration"


class Preempted(ModelPressError):
    """The machine is taken away (SIGTERM): what ran was put back and will be done by the next run."""

    exit_code = 19
    retryable = True
    category: FailureClass = "killed"


class HubError(ModelPressError):
    """The Hub answered something that does not help; the sub-classes say what."""

    exit_code = 20
    category: FailureClass = "hub"


class HubUnreachable(HubError):
    """No connection, a time-out, a connection cut off, or 5xx after the retries; `retry_after`: the seconds that the Hub asks to wait."""

    exit_code = 21
    retryable = True
    retry_after: float | None = None


class HubRefused(HubError):
    """401 or 403: the token is missing, wrong, or not allowed to do this."""

    exit_code = 22
    category: FailureClass = "gated"


class OverBudget(HubError):
    """A daily limit of ours on the Hub, or its own wish to be left alone, is in the way now: it is done by a later run."""

    retryable = True


class HubNotFound(HubError):
    """No such repository, revision or file."""

    exit_code = 23


class HubConflict(HubError):
    """The repository moved on since it was read (412), or the name is taken (409)."""

    exit_code = 24
    retryable = True


class HubCorrupt(HubError):
    """Bytes came that do not have the checksum that the Hub lists."""

    exit_code = 25
    retryable = True


class Incomplete(ModelPressError):
    """The run ended in order, but some of its jobs failed."""

    exit_code = 30


class NotReproduced(ModelPressError):
    """A number was taken again, and the two do not agree within the stated tolerance."""

    exit_code = 31
