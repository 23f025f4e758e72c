"""Renews the leases of running jobs from a thread of its own, and passes on what a dispatcher learns thereby."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from hub.queue import Queue
from hub.scheduling import Claim, Renewal

_log = logging.getLogger(__name__)
_MOST_S = 5.0
"""However long a lease is: a job that people cancel, or a pause, is noticed after so many seconds."""


class Leases:
    """Keeps the claims it is told to; a context manager.

    `tell` is called, from the thread, with each renewal and with the claims that it is about: by then a job may have ended, or have been
    claimed again.
    """

    def __init__(self, queue: Queue, owner: str, lease_s: float, tell: Callable[[Renewal, dict[str, Claim]], None]) -> None:
        self._queue, self._owner, self._lease_s, self._tell = queue, owner, lease_s, tell
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._away = False
        self._thread = threading.Thread(target=self._keep, name="leases", daemon=True)

    def __enter__(self) -> Leases:
        """Start the thread."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """End the thread; one that waits for a database that is held is not waited for."""
        self._closed.set()
        self._thread.join(1.0)

    def hold(self, claim: Claim) -> None:
        """Renew this claim from now on."""
        with self._lock:
            self._held[claim.job.id] = claim

    def drop(self, job_id: str) -> None:
        """Renew the claim on this job no more."""
        with self._lock:
            self._held.pop(job_id, None)

    def _keep(self) -> None:
        while not self._closed.wait(min(self._lease_s / 4, _MOST_S)):
            with self._lock:
                held = dict(self._held)
            if not held:
                continue
            try:
                renewal = self._queue.renew(self._owner, list(held), lease_s=self._lease_s)
            except Exception as error:  # whatever it is: without this thread all leases would end
                _log.log(logging.DEBUG if self._away else logging.WARNING, "leases are not renewed now: %s", error)
                self._away = True
                continue  # a lease outlasts several tries; what is lost by then is told once the database is there again
            self._away = False
            self._tell(renewal, held)
