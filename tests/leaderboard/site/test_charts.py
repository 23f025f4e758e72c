"""Charts: scales, ticks, intervals, the front, and labels that never lie over one another."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise

import pytest

from leaderboard.charts import HEIGHT, SHAPES, WIDTH, Axis, Point, interval_strip, nice_ticks, place_labels, scatter, sign
from leaderboard.stats import Estimate

SIZE, LOSS = Axis(title="Size, MB", better="smaller", from_zero=True), Axis(title="Loss, %", better="lower", scale="asinh")


def point(x: float, y: float, half: float = 0.1, **changes: object) -> Point:
    exact = Estimate(value=x, low=x, high=x)
    fields = {"label": f"v{x:g}", "href": "#v", "tooltip": "words", **changes}
    return Point(x=exact, y=Estimate(value=y, low=y - half, high=y + half), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0, 7.62e6), (0.001, 0.0013), (5, 5), (-2e-9, 1e-9), (0, 1e12)])
def test_ticks_are_round_few_and_cover_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 9
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in pairwise(ticks)}
    assert steps == {1.0}


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


@pytest.mark.parametrize("spread", [0, 6, 15, 60])
def test_labels_of_crowded_marks_do_not_collide(spread: float) -> None:
    places = [(300 + spread * math.cos(i), 200 + spread * math.sin(i)) for i in range(9)]
    boxes = place_labels([f"gptq-w{i}a16-g128" for i in range(9)], places, [])
    assert None not in boxes
    boxes = [box for box in boxes if box]
    assert not [pair for pair in combinations(boxes, 2) if overlap(*pair)]
    assert not [1 for box in boxes for x, y in places if overlap(box, (x - 5, y - 5, x + 5, y + 5))]
    assert all(box[0] >= 0 and box[2] <= WIDTH and box[1] >= 0 and box[3] <= HEIGHT for box in boxes)


def test_in_a_crowd_the_front_is_named_and_what_finds_no_room_is_not() -> None:
    places = [(300 + 3 * (i % 10), 200 + 3 * (i // 10)) for i in range(90)]
    boxes = place_labels([f"gptq-w{i}a16-g128" for i in range(90)], places, [], first=[i in (0, 45) for i in range(90)])
    assert boxes[0]
    assert boxes[45]
    assert boxes.count(None) > 60
    assert not [pair for pair in combinations([box for box in boxes if box], 2) if overlap(*pair)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_where_the_mark_lies(shape: str) -> None:
    svg = ET.fromstring(scatter([point(2, 40, shape=shape), point(4, 1)], x=SIZE, y=LOSS, name="chart"))
    mark = svg.findall("a")[0]
    drawn = mark.find("path[@class='shape']")
    assert (drawn is None) == (shape == "circle")
    if drawn is not None:
        reach = mark.find("circle[@class='reach']")
        assert reach is not None
        assert drawn.get("transform") == f"translate({reach.get('cx')} {reach.get('cy')})"
    ET.fromstring(sign(shape))


def test_intervals_front_base_and_links_are_drawn() -> None:
    points = [point(2, 40, 3), point(4, 1, 0.5, front=True), point(8, 0, 0, front=True, base=True, label="base")]
    svg = ET.fromstring(scatter(points, x=SIZE, y=LOSS, name="chart"))
    marks = svg.findall("a")
    assert [mark.get("class") for mark in marks] == ["mark off", "mark on", "mark base"]
    assert [mark.find("path") is not None for mark in marks] == [True, True, False]
    assert svg.find("path[@class='front']") is not None
    texts = [element.text for element in svg.iter("text")]
    assert {"base", "v2", "v4", "Size, MB", "Loss, %"} <= set(texts)


def test_better_is_lower_on_the_page() -> None:
    svg = scatter([point(2, 40), point(4, -0.3)], x=SIZE, y=LOSS, name="chart")
    worse, better = (float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)" r="5"', svg))
    assert worse < better < HEIGHT


@pytest.mark.parametrize("scale", ["linear", "asinh"])
@pytest.mark.parametrize("values", [(0, 0), (0.01, 0.02), (-4, 3), (5, 5000), (1e6, 1e6)])
def test_every_range_gives_a_chart_inside_its_frame(scale: str, values: tuple[float, float]) -> None:
    axis = Axis(title="Loss", better="lower", scale="asinh" if scale == "asinh" else "linear")
    svg = scatter([point(1, values[0], 0), point(2, values[1], 0)], x=SIZE, y=axis, name="chart")
    heights = [float(y) for y in re.findall(r'cy="(-?[\d.]+)" r="5"', svg)]
    assert all(0 <= y <= HEIGHT for y in heights)
    assert "nan" not in svg


def test_one_point_is_no_chart() -> None:
    assert scatter([point(1, 1)], x=SIZE, y=LOSS, name="chart") == ""


def test_hostile_labels_are_escaped() -> None:
    svg = scatter([point(1, 1, label="<script>x</script>", href='"><b>', tooltip="]]>\u202e"), point(2, 2)], x=SIZE, y=LOSS, name='<&">')
    ET.fromstring(svg)
    assert "<script" not in svg
    assert "<b>" not in svg


def test_a_strip_keeps_within_its_box() -> None:
    svg = interval_strip(Estimate(value=9, low=-50, high=5000), low=-1, high=48)
    ET.fromstring(svg)
    assert all(0 <= float(x) <= 96 for x in re.findall(r"[MH](\d+\.?\d*)", svg))
