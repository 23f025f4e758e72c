"""Charts as SVG at build time: real axes with units, 95 % intervals, the Pareto front, and labels that do not collide.

Colours and type come from the site's stylesheet through classes, so that one drawing serves light, dark and print;
every mark is a link to its row, and the numbers stand in the table beside the chart as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from markupsafe import Markup, escape

from leaderboard.stats import Estimate
from leaderboard.text import plain

WIDTH, HEIGHT = 620, 400
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 40, 58
GLYPH, LINE = 6.9, 15.0


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis: its title with unit, its scale, and how a tick is written.

    Scale `asinh` is even near zero and logarithmic beyond ±1, which shows a loss of 0.3 and one of 80 per cent in one picture.
    """

    title: str
    better: str
    scale: Literal["linear", "asinh"] = "linear"
    tick: Callable[[float], str] = lambda value: f"{value:g}"
    from_zero: bool = False


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mark: where it lies with its intervals, its label, what it links to ("": nothing), and how it is drawn; `shape` is of `SHAPES`."""

    x: Estimate
    y: Estimate
    label: str
    href: str
    tooltip: str
    base: bool = False
    front: bool = False
    shape: str = "circle"


# Outlines around (0, 0), all of about the same area as a circle of radius 5; shape, not colour, tells families apart.
SHAPES = {
    "circle": "",
    "diamond": "M0-6.6L6.6 0L0 6.6L-6.6 0Z",
    "up": "M0-6.4L6.2 4.6H-6.2Z",
    "down": "M0 6.4L6.2-4.6H-6.2Z",
    "cross": "M-2-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
    "star": "M0-7L1.9-2.3L7-2.2L3 1L4.4 6L0 3.1L-4.4 6L-3 1L-7-2.2L-1.9-2.3Z",
    "hexagon": "M-3-5.4H3L6.2 0L3 5.4H-3L-6.2 0Z",
}


def _bytes(value: float) -> str:
    factor, unit = next(((f, u) for f, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if value >= f), (1.0, "B"))
    return f"{value / factor:g} {unit}" if value else "0"


def _signed(value: float) -> str:
    if value == 0:
        return "0"
    # 2,000 % is written out; 20 k % fits into the margin.
    large = ((1e9, 1e9, " G"), (1e6, 1e6, " M"), (1e4, 1e3, " k"))
    factor, unit = next(((factor, unit) for least, factor, unit in large if abs(value) >= least), (1.0, " "))
    return f"{'+' if value > 0 else '−'}{abs(value) / factor:,.10g}{unit}%"


SIZE_AXIS = Axis(title="Size on disk", better="smaller is better", tick=_bytes, from_zero=True)


def loss_axis(losses: Sequence[Estimate]) -> Axis:
    """Return the axis of perplexity above the base, in per cent: even, or with an `asinh` scale where some losses are large."""
    wide = max((loss.high for loss in losses), default=0) > 8
    title = "Perplexity above the base" + (" (logarithmic beyond 1 %)" if wide else "")
    return Axis(title=title, better="lower is better", scale="asinh" if wide else "linear", tick=_signed, from_zero=False)


CROWD = 24
"""With more marks than this, a label that is not on the front must lie close to its mark."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float
    asinh: bool

    def __call__(self, value: float) -> float:
        low, high, at = (math.asinh(v) if self.asinh else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def scatter(points: Sequence[Point], *, x: Axis, y: Axis, name: str) -> Markup:
    """Return a chart as an `<svg>` element; an empty string for fewer than two points, which say nothing beside the table."""
    if len(points) < 2:
        return Markup()
    frame = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{_text(name)}">'
    return Markup(f"{frame}{drawing(points, x=x, y=y)}</svg>")  # noqa: S704 - every text in it went through _text()


def drawing(points: Sequence[Point], *, x: Axis, y: Axis) -> Markup:
    """Return what is inside a chart of at least two points: grid, front, marks with their intervals, labels."""
    across, x_ticks = _scaled([p.x for p in points], x, LEFT, WIDTH - RIGHT, apart=40)
    up, y_ticks = _scaled([p.y for p in points], y, HEIGHT - BOTTOM, TOP, apart=17)
    places = [(across(p.x.value), up(p.y.value)) for p in points]
    bars = [_bars(point, across, up) for point in points]
    parts = [*_grid(x_ticks, y_ticks, x, y, across, up), _front(points, places)]
    obstacles = [*(box for pair in bars for box in pair), *_along(_front_places(points, places))]
    boxes = place_labels([p.label for p in points], places, obstacles, first=[p.base or p.front for p in points])
    for point, place, bar in zip(points, places, bars, strict=True):
        parts.append(_mark(point, place, bar))
    parts += [_label(point, place, box) for point, place, box in zip(points, places, boxes, strict=True) if box]
    return Markup("".join(parts))  # noqa: S704 - every text in it went through _text()


def interval_strip(estimate: Estimate, *, low: float, high: float) -> Markup:
    """Return a small drawing of a change in per cent with its interval on an asinh scale from `low` to `high`; zero is marked."""
    scale = _Scale(min(low, 0.0), max(high, 0.1), 4, 92, asinh=True)
    zero, at, start, end = (scale(min(max(v, low), high)) for v in (0.0, estimate.value, estimate.low, estimate.high))
    return Markup(  # noqa: S704 - numbers only
        '<svg class="strip" viewBox="0 0 96 12" aria-hidden="true">'
        f'<path class="axis" d="M4 6H92"/><path class="zero" d="M{zero:.1f} 1V11"/>'
        f'<path class="err" d="M{start:.1f} 6H{end:.1f}"/><circle class="dot" cx="{at:.1f}" cy="6" r="2.6"/></svg>'
    )


def nice_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return about `count` round numbers that cover `low` to `high`."""
    span = (high - low) or abs(high) or 1.0
    raw = span / max(count - 1, 1)
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def place_labels(
    labels: Sequence[str], places: Sequence[tuple[float, float]], obstacles: Iterable[Box], *, first: Sequence[bool] = ()
) -> list[Box | None]:
    """Return a box for each label near its mark, none over another, a mark or an interval; None for a label that finds no room.

    Greedy: those named in `first` choose before the others, and of each lot marks with the closest neighbours before the lonely, among
    eight directions at growing distance. In a crowd the others stay close to their marks, whose titles and rows say the same.
    """
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in places] + list(obstacles)
    chosen: dict[int, Box] = {}
    early = list(first) or [True] * len(places)
    near = [min((math.dist(place, other) for j, other in enumerate(places) if j != i), default=0.0) for i, place in enumerate(places)]
    for index in sorted(range(len(places)), key=lambda i: (not early[i], near[i])):
        reaches = _REACHES if early[index] or len(places) <= CROWD else _REACHES[:2]
        candidates = _candidates(places[index], len(labels[index]) * GLYPH, reaches)
        box = next((c for c in candidates if not any(_overlap(c, other) for other in taken)), None)
        if box:
            taken.append(box)
            chosen[index] = box
    return [chosen.get(index) for index in range(len(places))]


_REACHES = (10.0, 14.0, 22.0, 32.0, 44.0, 58.0, 76.0, 98.0)


def _candidates(place: tuple[float, float], width: float, reaches: Sequence[float]) -> Iterable[Box]:
    x, y = place
    half = LINE / 2
    for reach in reaches:
        tilt = reach * 0.7
        for left, middle in (
            (x + reach, y), (x - reach - width, y), (x - width / 2, y - reach - half), (x - width / 2, y + reach + half),
            (x + tilt, y - tilt - 2), (x + tilt, y + tilt + 2), (x - tilt - width, y - tilt - 2), (x - tilt - width, y + tilt + 2),
        ):  # fmt: skip
            box = (left, middle - half, left + width, middle + half)
            if box[0] >= LEFT + 2 and box[2] <= WIDTH - 2 and box[1] >= TOP - 14 and box[3] <= HEIGHT - BOTTOM - 2:
                yield box


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


_ASINH_STEPS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6, 1e7, 1e9, 1e12)
_DECADES = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e9, 1e12)


def _scaled(estimates: Sequence[Estimate], axis: Axis, start: float, end: float, *, apart: float) -> tuple[_Scale, list[float]]:
    """Return a scale that holds all intervals with some air, and its ticks, at least `apart` units of the drawing from each other."""
    low, high = min(e.low for e in estimates), max(e.high for e in estimates)
    if axis.scale == "linear":
        air = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
        ticks = nice_ticks(0.0 if axis.from_zero else low - air, high + air)
        return _Scale(ticks[0], ticks[-1], start, end, asinh=False), ticks
    bottom, top = math.asinh(min(low, 0.0)), math.asinh(max(high, 1.0))
    air = (top - bottom) * 0.06
    scale = _Scale(math.sinh(bottom - air), math.sinh(top + air), start, end, asinh=True)
    kept: list[float] = [0.0]
    for step in sorted({*_ASINH_STEPS, *(-step for step in _ASINH_STEPS)}, key=lambda step: (abs(step) not in _DECADES, abs(step))):
        if scale.low <= step <= scale.high and all(abs(scale(step) - scale(other)) >= apart for other in kept):
            kept.append(step)
    return scale, sorted(step for step in kept if scale.low <= step <= scale.high)


def _grid(x_ticks: list[float], y_ticks: list[float], x: Axis, y: Axis, across: _Scale, up: _Scale) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"/>']
    for value in y_ticks:
        at, kind = up(value), "zero" if y.scale == "asinh" and value == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 9}" y="{at + 4:.1f}" text-anchor="end">{_text(y.tick(value))}</text>')
    for value in x_ticks:
        at = across(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {TOP}V{bottom + 5}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{_text(x.tick(value))}</text>')
    parts.append(
        f'<text class="title" x="{LEFT}" y="{HEIGHT - 12}">{_text(x.title)}<tspan class="better" dx="8">{_text(x.better)}</tspan></text>'
    )
    parts.append(f'<text class="title" x="2" y="14">{_text(y.title)}<tspan class="better" dx="8">{_text(y.better)}</tspan></text>')
    return parts


def _bars(point: Point, across: _Scale, up: _Scale) -> tuple[Box, Box]:
    """Return the boxes of the horizontal and the vertical interval."""
    x, y = across(point.x.value), up(point.y.value)
    left, right = across(max(point.x.low, across.low)), across(min(point.x.high, across.high))
    top, bottom = up(min(point.y.high, up.high)), up(max(point.y.low, up.low))
    return (left, y - 1, right, y + 1), (x - 1, top, x + 1, bottom)


def _front_places(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return sorted(place for point, place in zip(points, places, strict=True) if point.front)


def _along(line: Sequence[tuple[float, float]]) -> Iterable[Box]:
    """Cut a line into small boxes that labels keep clear of."""
    for (x1, y1), (x2, y2) in pairwise(line):
        steps = max(1, round(math.dist((x1, y1), (x2, y2)) / 4))
        for step in range(steps + 1):
            x, y = x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps
            yield (x - 1, y - 1, x + 1, y + 1)


def _front(points: Sequence[Point], places: Sequence[tuple[float, float]]) -> str:
    front = _front_places(points, places)
    if len(front) < 2:
        return ""
    return '<path class="front" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in front) + '"/>'


def _mark(point: Point, place: tuple[float, float], bars: tuple[Box, Box]) -> str:
    x, y = place
    (left, _, right, _), (_, top, _, bottom) = bars
    kind = "base" if point.base else "on" if point.front else "off"
    lines = f"M{left:.1f} {y:.1f}H{right:.1f}" if right - left > 2 else ""
    lines += f"M{x:.1f} {top:.1f}V{bottom:.1f}M{x - 4:.1f} {top:.1f}h8M{x - 4:.1f} {bottom:.1f}h8" if bottom - top > 2 else ""
    tag, target = ("a", f' href="{_text(point.href)}"') if point.href else ("g", "")
    parts = [f'<{tag} class="mark {kind}"{target}><title>{_text(point.tooltip)}</title>']
    parts.append(f'<circle class="reach" cx="{x:.1f}" cy="{y:.1f}" r="14"/>')
    if lines:
        parts.append(f'<path class="err" d="{lines}"/>')
    parts.append(f'<rect x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>' if point.base else _shape(point.shape, x, y))
    return "".join([*parts, f"</{tag}>"])


def _shape(name: str, x: float, y: float) -> str:
    outline = SHAPES[name]
    return (
        f'<path class="shape" transform="translate({x:.1f} {y:.1f})" d="{outline}"/>'
        if outline
        else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"/>'
    )


def sign(shape: str) -> Markup:
    """Return a shape alone, for a legend."""
    drawn = _shape(shape, 8, 8)
    return Markup(f'<svg class="sign" viewBox="0 0 16 16" aria-hidden="true">{drawn}</svg>')  # noqa: S704 - no text


def _label(point: Point, place: tuple[float, float], box: Box) -> str:
    x, y = place
    middle = (box[1] + box[3]) / 2
    near = (min(max(x, box[0]), box[2]), min(max(y, box[1] + 3), box[3] - 3))
    far = math.dist(place, near) > 18
    leader = f'<path class="leader" d="M{x:.1f} {y:.1f}L{near[0]:.1f} {near[1]:.1f}"/>' if far else ""
    kind = "base" if point.base else "on" if point.front else "off"
    anchor, at = ("start", box[0]) if box[0] >= x else ("end", box[2]) if box[2] <= x else ("middle", (box[0] + box[2]) / 2)
    return f'{leader}<text class="label {kind}" x="{at:.1f}" y="{middle + 4.5:.1f}" text-anchor="{anchor}">{_text(point.label)}</text>'


def _text(value: str) -> Markup:
    """Return text from outside fit for SVG: escaped, on one line, without control and direction characters."""
    return escape(plain(value))
