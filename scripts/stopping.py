"""SIGTERM and Ctrl-C as an orderly end: what runs is put back, what is open is closed; a second signal ends at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from hub.errors import Preempted


class Terminated(KeyboardInterrupt):
    """SIGTERM: the machine is taken away. No `Exception`, so that nobody takes it for the failure of what it interrupts."""


class Stopping:
    """Handles both signals while it is entered, if that is in the main thread; a signal that was ignored before stays so.

    A signal raises `KeyboardInterrupt`, or its sub-class `Terminated`, wherever the main thread is; inside `orderly` only at its end.
    """

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._error: KeyboardInterrupt | None = None
        self._orderly = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        """Begin to handle signals."""
        if threading.current_thread() is threading.main_thread():
            numbers = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._first) for number in numbers}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Handle signals as before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def orderly(self) -> Iterator[threading.Event]:
        """Give an event that a signal sets, for a block that ends in order when it is set; then raise."""
        self._orderly = True
        try:
            yield self._asked
        finally:
            self._orderly = False
        if self._error is not None:
            raise self._error

    def _first(self, number: int, _: FrameType | None) -> None:
        self._error = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        for handled in self._before:
            signal.signal(handled, self._second)
        self._asked.set()  # nobody waits for it in this thread, so its lock is free
        if not self._orderly:
            raise self._error

    def _second(self, number: int, _: FrameType | None) -> None:
        os._exit(Preempted.exit_code if number == signal.SIGTERM else 130)  # jobs and the embedded hub end with this process
