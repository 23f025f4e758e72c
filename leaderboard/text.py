"""Text on its way out: escaped for Markdown, CSV and terminals, numbers with units and only the digits that their uncertainty allows."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from leaderboard.stats import Estimate

_MARKDOWN = re.compile(r"([\\`*_\[\]|~$@]|:(?=//))")
# What would make a heading, list, rule or underline of a line when it stands first: `# `, `- `, `1. `, `---`, `===`.
_LINE_START = re.compile(r"^(?:(?=[-+=#](?:\W|$))|\d+(?=[.)](?:\s|$)))")
_LINK = re.compile(r"https://[A-Za-z0-9.-]+(:\d+)?(/[\w.~%/#?=&+-]*)?\Z", re.ASCII)
_RELATIVE_LINK = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)*\Z", re.ASCII)
# What a spreadsheet runs, at the start of a cell or of what a semicolon makes one where that parts cells; fullwidth signs count as plain.
_FORMULA = re.compile("(^|;)( *)(?=[-=+@\uff0d\uff1d\uff0b\uff20\ufe63\ufe66\ufe62\ufe6b])")
# Letters, signs and marks that show nothing, besides those of the categories below; and what build services take for orders to them.
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")
_BUILD_COMMAND = re.compile(r"^([^\S\n]*:)(?=:)|#(?=#(?:\[|vso\[))", re.MULTILINE)
_UNSHOWN = frozenset(("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"))
_MOST_MARKS = 8
MOST = 1000
"""The most characters of one foreign text that are shown; the data behind the site and the cards have all of them."""


class Markdown(str):
    """Text that is Markdown already and is not escaped again."""

    __slots__ = ()


def plain(value: str) -> str:
    """Return the text on one line, `MOST` characters at most, without what is not seen or shows otherwise than it is written.

    Those are control, format (bidirectional, zero-width), unassigned and invisible characters, and marks heaped on one letter. Where
    nothing else is left, a replacement character stands, so that no link or cell is empty.
    """
    one_line = _INVISIBLE.sub("", re.sub(r"\s+", " ", value[: 8 * MOST]))
    if not (one_line.isascii() and one_line.isprintable()):
        one_line = "".join(_seen(one_line))
    shown = one_line.strip() or ("\ufffd" if value else "")
    return f"{shown[: MOST - 1].rstrip()}…" if len(shown) > MOST or len(value) > 8 * MOST else shown


def _seen(line: str) -> Iterator[str]:
    marks = 0
    for char in line:
        category = unicodedata.category(char)
        marks = marks + 1 if category.startswith("M") else 0
        if category not in _UNSHOWN and marks <= _MOST_MARKS:
            yield char


def terminal(value: str) -> str:
    """Return text that a terminal shows and does not obey, nor a build service whose log it is; lines stay lines."""
    if not (value.isascii() and value.isprintable()):
        value = "".join(char for char in value if char == "\n" or unicodedata.category(char) not in _UNSHOWN)
    return _BUILD_COMMAND.sub(lambda match: f"{match[0]} ", value)


def markdown(value: object) -> Markdown:
    """Return text from outside so that Markdown shows it as it is: no markup, HTML, links or table cells come of it."""
    if isinstance(value, Markdown):
        return value
    text = _MARKDOWN.sub(r"\\\1", plain(str(value)))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"(?i)\bwww\.", r"www\.", text)
    return Markdown(_LINE_START.sub(lambda match: f"{match[0]}\\", text))


def code(value: object) -> Markdown:
    """Return an inline code span, fenced by more backticks than the text holds; text with a pipe is escaped without one.

    Programs do not agree on where a table's cell ends in a code span with a pipe after a backslash.
    """
    text = plain(str(value))
    if "|" in text:
        return markdown(text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return Markdown(f"{fence}{pad}{text}{pad}{fence}")


def link(label: object, address: str | None) -> Markdown:
    """Return a Markdown link when the address is https or a plain relative path, and the escaped label alone when not."""
    safe = safe_link(address)
    return Markdown(f"[{markdown(label)}]({safe})") if safe else markdown(label)


def safe_link(address: str | None) -> str | None:
    """Return the address if it is https (http for loopback) or a plain relative path without `..`, else None."""
    if not address or ".." in address:
        return None
    loopback = re.sub(r"\Ahttp://(127\.0\.0\.1|localhost|\[::1\])(?=[:/]|\Z)", "https://loopback", address)
    return address if _LINK.match(loopback) or _RELATIVE_LINK.match(address) else None


def csv_cell(value: object) -> object:
    """Return a cell for the csv module: text on one line, with an apostrophe before what a spreadsheet would run as a formula."""
    return _FORMULA.sub(r"\1\2'", plain(value)) if isinstance(value, str) else value


def finalize(value: Any) -> Any:
    """Escape every expression of a Markdown template that is not `Markdown` already (Jinja's `finalize`)."""
    return markdown(value) if isinstance(value, str) else value


def decimals_for(half_width: float) -> int:
    """Return how many decimals to show: the uncertainty keeps one significant digit, two when it begins with 1 or 2."""
    if half_width <= 0 or not math.isfinite(half_width):
        return 0
    exponent = math.floor(math.log10(half_width))
    leading = half_width / 10**exponent
    return max(0, -exponent + (1 if leading < 3 else 0))


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits, never in scientific notation below a million."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(decimals, 8)}f}"


def uncertain(estimate: Estimate, *, scale: float = 1.0, signed: bool = False) -> str:
    """Return `value ± half-width`, or the value alone when it is exact; a lopsided interval is written `value (low to high)`."""
    sign = "+" if signed else ""
    value, low, high = estimate.value * scale, estimate.low * scale, estimate.high * scale
    if estimate.exact:
        return f"{sign}{number(value)}" if value > 0 else number(value)
    decimals = decimals_for(min(x for x in (high - value, value - low) if x > 0))
    if not _symmetric(estimate):
        return f"{value:{sign}z,.{decimals}f} ({low:{sign}z,.{decimals}f} to {high:{sign}z,.{decimals}f})"
    half = estimate.half_width * abs(scale)
    return f"{value:{sign}z,.{decimals}f} ± {half:,.{decimals}f}"


def _symmetric(estimate: Estimate) -> bool:
    up, down = estimate.high - estimate.value, estimate.value - estimate.low
    return min(up, down) >= 0.6 * max(up, down)


def percent_change(ratio: Estimate) -> str:
    """Return a ratio as a change in per cent with its uncertainty: `+3.4 ± 0.5 %`."""
    shifted = Estimate(value=ratio.value - 1, low=ratio.low - 1, high=ratio.high - 1)
    return f"{uncertain(shifted, scale=100, signed=True)} %"


def times(ratio: Estimate) -> str:
    """Return a ratio as a factor with its uncertainty: `0.45 ± 0.02 ×`."""
    return f"{uncertain(ratio)} ×"


_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(count: float) -> str:
    """Return bytes in decimal units, as the Hub shows them."""
    for factor, unit in _BYTES:
        if abs(count) >= factor:
            return f"{number(count / factor)} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Return a time in the unit that people would choose."""
    if seconds < 1:
        return f"{number(seconds * 1000, 2)} ms"
    if seconds < 120:
        return f"{number(seconds, 2 if seconds < 10 else 3)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def quantity(estimate: Estimate, unit: str) -> str:
    """Return a measured number with its unit: bytes scaled, shares as per cent, `1` (a plain number) without a unit."""
    if unit == "B":
        factor, name = next(((f, n) for f, n in _BYTES if abs(estimate.value) >= f), (1.0, "B"))
        return f"{uncertain(estimate, scale=1 / factor)} {name}"
    if unit == "1":
        return uncertain(estimate)
    labels = {"nat/token": "nats/token", "token/s": "tokens/s", "bit": "bits"}
    return f"{uncertain(estimate)} {labels.get(unit, unit)}"
