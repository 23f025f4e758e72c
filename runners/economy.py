"""How sparing of memory this job is: more time for less of it, the result staying the same.

Level 0 is the usual way. At 1 what can lie on disk does, and what can be computed twice is not held: the very same numbers. At 2 windows
are looked at one at a time besides: the same numbers but for the order in which they are summed up.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

MOST = 2
_level: ContextVar[int] = ContextVar("economy", default=0)


def level() -> int:
    """Return how sparing this job is, 0 to `MOST`."""
    return _level.get()


def frugal() -> bool:
    """Whether memory is spared in the ways that change no bit of the result."""
    return level() >= 1


def together(usual: int) -> int:
    """Return how many windows are looked at together, where that is usually `usual`."""
    return 1 if level() >= MOST else usual


@contextmanager
def use(wanted: int) -> Iterator[None]:
    """Be so sparing inside; more than `MOST` is `MOST`."""
    token = _level.set(max(0, min(wanted, MOST)))
    try:
        yield
    finally:
        _level.reset(token)
