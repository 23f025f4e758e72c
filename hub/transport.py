"""How we talk to the Hub: the library set up once, every error it can raise mapped in one place, retries where it has none of its own."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import Any, TypeVar

from hub.errors import HubConflict, HubCorrupt, HubError, HubNotFound, HubRefused, HubUnreachable, ModelPressError, OutOfDisk

T = TypeVar("T")

PUBLIC_HUB = "https://huggingface.co"
# Most of the library's calls have no time limit of their own. The Hub itself gives a commit up after 60 s.
_LIMITS = {"connect": 10.0, "read": 90.0, "write": 90.0, "pool": 90.0}
_ATTEMPTS = 6
_FULL = {errno.ENOSPC, errno.EDQUOT}
_BUSY = {429, 503}
_HIDDEN = "[token]"
# How many seconds the library may still wait in a call where the Hub asks it to. Its own threads know no call: theirs is one wait's limit.
_patience: ContextVar[list[float] | None] = ContextVar("patience", default=None)
_ONE_WAIT_S = 60.0
_log = logging.getLogger(__name__)
_lock = threading.Lock()
_ready: ModuleType | None = None


def library(endpoint: str) -> ModuleType:
    """Import huggingface_hub when it is first needed, with time limits, and without its bars and repeated warnings.

    Xet is off for every Hub but the public one: where hf_xet is installed, the library uploads through it alone.
    """
    global _ready
    with _lock:
        if endpoint != PUBLIC_HUB:
            os.environ["HF_HUB_DISABLE_XET"] = "1"
        import huggingface_hub
        from huggingface_hub import constants

        if endpoint != PUBLIC_HUB:
            constants.HF_HUB_DISABLE_XET = True  # it read the environment when it was imported, perhaps before us
        if _ready is None:
            import httpx
            from huggingface_hub.utils import logging as library_logging
            from huggingface_hub.utils._http import default_client_factory
            from huggingface_hub.utils.tqdm import disable_progress_bars

            def with_limits() -> httpx.Client:
                client = default_client_factory()
                hooks = client.event_hooks
                client.event_hooks = {"request": [*hooks["request"], _limit], "response": [*hooks["response"], _not_for_ever]}
                return client

            huggingface_hub.set_client_factory(with_limits)
            disable_progress_bars()
            library_logging.set_verbosity(logging.ERROR)
            _ready = huggingface_hub
        return _ready


def _limit(request: Any) -> None:
    """Give a request the time limits that it lacks; a client's own would not do, for the library switches them off call by call."""
    own = {kind: limit for kind, limit in request.extensions.get("timeout", {}).items() if limit is not None}
    request.extensions = {**request.extensions, "timeout": {**_LIMITS, **own}}


class _TooLong(Exception):
    """The Hub asks to wait longer than a call may take, which the library would do without a word."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it asks to wait {seconds:.0f} s")
        self.seconds = seconds


def _not_for_ever(response: Any) -> None:
    """Count the seconds that the library is about to wait for the Hub, and end the call where they are too many."""
    asked = asked_to_wait(response.headers) if response.status_code in _BUSY else None
    if asked is None:
        return
    left = _patience.get()
    if asked > (_ONE_WAIT_S if left is None else left[0]):
        raise _TooLong(asked)
    if left is not None:
        left[0] -= asked


def asked_to_wait(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which the Hub wants to be asked again (`Retry-After` as seconds or date, `RateLimit`), None where unsaid."""
    from huggingface_hub.utils._http import parse_ratelimit_headers

    value = headers.get("Retry-After", "")
    if value.isascii() and value.isdecimal():
        return float(value)
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    limit = parse_ratelimit_headers(headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None


@contextmanager
def calling(endpoint: str, subject: str, *, secret: str | None = None, patience_s: float = 30.0) -> Iterator[None]:
    """Map whatever the library raises inside to `hub.errors`; `subject` says what was wanted: "the files of owner/name".

    Where the Hub's words hold the `secret` it is put out of them. Raises `HubUnreachable` where the Hub asks to wait beyond `patience_s`.
    """
    waiting = _patience.set([patience_s])
    try:
        yield
    except (ModelPressError, MemoryError):
        raise
    except Exception as error:  # what the library lets through is wider than it says; nothing of it may reach a user
        # Its own words may hold the token in a traceback too, so they do not stand behind ours.
        raise mapped(error, endpoint, subject, secret) from (None if _tells(error, secret) else error)
    finally:
        _patience.reset(waiting)


def _tells(error: BaseException | None, secret: str | None) -> bool:
    """Whether an error, or one behind it, has a secret in its words."""
    while secret and error is not None:
        if secret in f"{error!s} {error!r}":
            return True
        error = error.__cause__ or error.__context__
    return False


def mapped(error: BaseException, endpoint: str, subject: str, secret: str | None = None) -> ModelPressError:
    """Return our error for one of the library's, of its transport's, or of the system's; a `secret` in their words is left out."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, LocalTokenNotFoundError, OfflineModeIsEnabled

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return mapped(error.__cause__, endpoint, subject, secret)  # it speaks of the cache; the true reason lies under it
    if type(error) is RuntimeError and error.__cause__ is not None:
        return mapped(error.__cause__, endpoint, subject, secret)  # it speaks of the file that was being sent
    if isinstance(error, _TooLong):
        return _busy(f"{subject}: {endpoint} asks to slow down", error.seconds)
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return _answered(error, endpoint, subject, secret)
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnreachable(
            f"{subject}: HF_HUB_OFFLINE forbids to ask {endpoint}", hint="Unset HF_HUB_OFFLINE and run the command again."
        )
    if isinstance(error, LocalTokenNotFoundError):
        return HubRefused(f"{subject}: {endpoint} wants a token and there is none", hint="Put one into the environment variable HF_TOKEN.")
    if isinstance(error, httpx.TransportError | ConnectionError | TimeoutError | LocalEntryNotFoundError):
        hint = "Check the address, the network and whether that Hub runs, then run the command again."
        return HubUnreachable(f"{subject}: {endpoint} cannot be reached ({_words(error, secret)})", hint=hint)
    if isinstance(error, OSError) and error.errno in _FULL:
        return OutOfDisk(
            f"{subject}: the disk is full ({error.filename or 'while writing'})", hint="Free some room and run the command again."
        )
    if isinstance(error, OSError) and error.errno is not None:
        return HubError(
            f"{subject}: {error.strerror} ({error.filename or 'no file named'})",
            hint="Make the cache folder writable, or choose another work_dir.",
        )
    if isinstance(error, OSError) and "onsistency check failed" in str(error):
        return HubCorrupt(
            f"{subject}: {_words(error, secret)}", hint="Run the command again; if it happens again, the Hub's copy is damaged."
        )
    return HubError(
        f"{subject}: {endpoint} gave an answer that is not understood ({_words(error, secret)})",
        hint="Check that the address is that of a Hub.",
    )


def _answered(error: Any, endpoint: str, subject: str, secret: str | None) -> ModelPressError:
    from huggingface_hub.errors import RepositoryNotFoundError

    status = int(error.response.status_code)
    code = str(error.response.headers.get("X-Error-Code", ""))
    said = _words(error.server_message or error.response.headers.get("X-Error-Message") or error, secret)
    found = f"{subject}: {endpoint} answered {status}"
    if code == "GatedRepo":
        return HubRefused(
            f"{subject}: access is gated", hint="Ask for access on the model's page and use a token of that account in HF_TOKEN."
        )
    if isinstance(error, RepositoryNotFoundError) or code in {"RepoNotFound", "RevisionNotFound", "EntryNotFound"} or status == 404:
        what = {"RevisionNotFound": "revision", "EntryNotFound": "file"}.get(code, "repository")
        return HubNotFound(
            f"{subject}: there is no such {what} on {endpoint}", hint="Check the name; a private one needs a token that may read it."
        )
    if status in {401, 403}:
        return HubRefused(
            f"{found}: {said}", hint="Check that HF_TOKEN holds a valid token, and that it may do this (writing needs a write token)."
        )
    if status == 409:
        return HubConflict(f"{found}: {said}", hint="The name is taken; run the command again to see what is there.")
    if status == 412:
        return HubConflict(f"{found}: the repository has changed since it was read", hint="Run the command again.")
    if status in {408, 429} or status >= 500:
        why = "asks to slow down" if status == 429 else f"answered {status}"
        return _busy(f"{subject}: {endpoint} {why}: {said}", asked_to_wait(error.response.headers) if status in _BUSY else None)
    return HubError(f"{found}: {said}", hint="See what the Hub says; if the request is right, report it.")


def _busy(message: str, asked: float | None) -> HubUnreachable:
    if asked is None:
        return HubUnreachable(message, hint="Wait a little and run the command again.")
    error = HubUnreachable(f"{message} (it asks to wait {asked:.0f} s)", hint="Run the command again after that time; it goes on.")
    error.retry_after = asked
    return error


def _words(error: object, secret: str | None = None) -> str:
    """Return the gist of a foreign message: one line, at most 200 characters, without the secret."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.replace(secret, _HIDDEN) if secret else text
    return text if len(text) <= 200 else text[:200] + "..."


def patiently(action: Callable[[], T], *, patience_s: float, lengthy: bool = False) -> T:
    """Run `action`, again where the Hub could not be reached, for about `patience_s` seconds at most; a `lengthy` one's own time is free.

    Waits 0.5, 1, 2, 4, 8 s and a random part of it, or as long as the Hub says in Retry-After; where it asks for more than is left, the
    error is raised at once. Only for what is safe to ask twice: an action that is not must see for itself what became of it.
    """
    import tenacity

    spread = tenacity.wait_random_exponential(multiplier=0.5, max=8, min=0.25)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, HubUnreachable) else None
        return spread(state) if asked is None else asked

    def enough(state: tenacity.RetryCallState) -> bool:
        spent = state.idle_for if lengthy else state.seconds_since_start or 0.0
        return state.attempt_number >= _ATTEMPTS or spent + state.upcoming_sleep >= patience_s

    def note(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.info("%s; trying again in %.1f s", error, state.upcoming_sleep)

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(HubUnreachable), stop=enough, wait=wait, before_sleep=note, reraise=True
    )(action)
