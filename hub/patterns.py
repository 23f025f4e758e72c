"""Regular expressions of strangers, tried in a time that grows with the text and not with what the expression makes of it.

Python's `re` goes back and tries again, which may take for ever. Here all ways are followed at once, and only for what quantizers write:
literals, `.`, classes, `*`, `+`, `?` after one character, groups of alternatives, `^` at the beginning, `$` at the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

_MOST_FORM, _MOST_WAYS, _MOST_REPEATS = 300, 64, 12
_TOKEN = re.compile(
    r"(?P<group>\((?:\?:)?)|(?P<end>\)\??(?![*+?{]))|(?P<either>\|)"
    r"|(?P<one>\\[dDsSwW]|\\[^A-Za-z0-9]|\[\^?(?:[\w./ -]|\\[dsw.-])+\]|[^\\\[\](){}|*+?])(?P<times>[*+?]?)(?:(?<=[*+?])\?)?(?![*+?{])"
)

_Way = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pattern:
    """An expression as the ways through its alternatives."""

    ways: tuple[_Line, ...]

    def match(self, text: str) -> bool:
        """Whether it fits the beginning of a text, as `re.match` does."""
        return any(way.match(text) for way in self.ways)


@dataclass(frozen=True)
class _Line:
    """One way: what fits one character each, how often each may come, and whether the text must end after it."""

    steps: _Way
    whole: bool

    @cached_property
    def _repeating(self) -> int:
        return sum(1 << at for at, (_, times) in enumerate(self.steps) if times == "*")

    @cached_property
    def _passed_by(self) -> int:
        return sum(1 << at for at, (_, times) in enumerate(self.steps) if times)

    @cached_property
    def _fitting(self) -> dict[str, int]:
        """Which steps a character fits, by the character, as far as such have come."""
        return {}

    def match(self, text: str) -> bool:
        """Whether it fits the beginning of a text; bit i of what is reached: the steps before the i-th are done."""
        end, repeating, passed_by, fitting = 1 << len(self.steps), self._repeating, self._passed_by, self._fitting
        reached = _past(1, passed_by)
        for sign in text:
            if not reached or (reached & end and not self.whole):
                break
            if sign not in fitting:
                fitting[sign] = sum(1 << at for at, (one, _) in enumerate(self.steps) if re.fullmatch(one, sign))
            fits = reached & fitting[sign]
            reached = _past((fits & repeating) | ((fits & ~repeating) << 1), passed_by)
        return bool(reached & end)


def _past(reached: int, passed_by: int) -> int:
    """Return what is reached when each step that may be left out is."""
    while (more := reached | ((reached & passed_by) << 1)) != reached:
        reached = more
    return reached


@lru_cache(maxsize=256)
def compiled(form: str) -> Pattern | None:
    """Return an expression to be tried; None for one of another form, of more than 300 characters, 64 ways, or 12 repeats in a way."""
    if len(form) > _MOST_FORM:
        return None
    try:
        return Pattern(tuple(_line(way) for way in _ways(_tokens(form), inside=False)))
    except (ValueError, re.error):
        return None


def _tokens(form: str) -> Iterator[re.Match[str]]:
    at = 0
    while at < len(form):
        token = _TOKEN.match(form, at)
        if token is None:
            raise ValueError(f"what stands at {at} is not tried")
        yield token
        at = token.end()


def _ways(tokens: Iterator[re.Match[str]], *, inside: bool) -> list[_Way]:
    """Return the ways through a sequence of alternatives, up to the end of its group."""
    done: list[_Way] = []
    ways: list[_Way] = [()]
    for token in tokens:
        if token["end"]:
            if not inside:
                raise ValueError("a group ends that did not begin")
            return [*done, *ways, *([()] if token["end"] == ")?" else [])]
        if token["either"]:
            done, ways = [*done, *ways], [()]
        elif token["group"]:
            ways = [way + part for part in _ways(tokens, inside=True) for way in ways]
        else:
            one, times = token["one"], token["times"]
            more = ((one, ""), (one, "*")) if times == "+" else ((one, times),)
            ways = [way + more for way in ways]
        if len(done) + len(ways) > _MOST_WAYS:
            raise ValueError("there are too many ways")
    if inside:
        raise ValueError("a group does not end")
    return done + ways


def _line(way: _Way) -> _Line:
    steps = way[1:] if way[:1] == (("^", ""),) else way
    whole = steps[-1:] == (("$", ""),)
    steps = steps[:-1] if whole else steps
    if any(one in "^$" for one, _ in steps) or sum(bool(times) for _, times in steps) > _MOST_REPEATS:
        raise ValueError("an anchor stands amid it, or too much repeats")
    for one, _ in steps:
        re.compile(one)
    return _Line(steps, whole)
