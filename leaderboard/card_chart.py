"""The card's picture, `chart.svg`: perplexity lost against size on disk among the variants of one base, with 95 % intervals.

It stands alone: the Hub shows it as an image, where no stylesheet of the page reaches it. It has a background of its own, so that it is
legible on whatever page it stands, and follows the reader's wish for light or dark.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import escape

from hub.history import BaseRecord, VariantRecord
from leaderboard import siblings, stats, text
from leaderboard.charts import HEIGHT, SIZE_AXIS, WIDTH, Point, drawing, loss_axis
from leaderboard.stats import Estimate

NAME = "chart.svg"
_STYLE = """
svg { --paper: #fff; --ink: #12161c; --soft: #566072; --line: #d9dee6; --mark: #7d8797; --blue: #1b2fc4; }
@media (prefers-color-scheme: dark) {
svg { --paper: #0f1217; --ink: #e8ebf0; --soft: #a0aabb; --line: #2b323d; --mark: #8791a2; --blue: #aebaff; } }
svg { font: 12px system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.paper { fill: var(--paper); } path { fill: none; } .frame { stroke: var(--ink); } .grid { stroke: var(--line); }
.zero { stroke: var(--mark); stroke-dasharray: 2 3; } .tick, .better { fill: var(--soft); } .reach { fill: none; }
.title { fill: var(--ink); font-weight: 600; font-size: 13px; } .better { font-weight: 400; }
.leader { stroke: var(--mark); stroke-width: .8; }
.label { fill: var(--soft); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
.label.on { fill: var(--blue); font-weight: 600; } .label.base { fill: var(--ink); font-weight: 600; }
.mark circle:not(.reach), .mark rect { fill: var(--paper); stroke: var(--mark); stroke-width: 2; }
.mark.on circle:not(.reach) { fill: var(--blue); stroke: var(--blue); } .mark.base rect { stroke: var(--ink); }
.mark .err { stroke: var(--mark); stroke-width: 1.5; } .mark.on .err { stroke: var(--blue); }
"""
_EDGE = 14


def draw(record: VariantRecord, base: BaseRecord, others: Sequence[VariantRecord]) -> str:
    """Return the chart as an SVG document; an empty string where the variant, or its base, has no size or no quality to show."""
    protocol, points = _points(record, base, others)
    if not points:
        return ""
    inside = drawing(points, x=SIZE_AXIS, y=loss_axis([point.y for point in points]))
    box = f"{-_EDGE} {-_EDGE} {WIDTH + 2 * _EDGE} {HEIGHT + 2 * _EDGE}"
    size = f'width="{WIDTH + 2 * _EDGE}" height="{HEIGHT + 2 * _EDGE}"'
    paper = f'<rect class="paper" x="{-_EDGE}" y="{-_EDGE}" {size} rx="6"/>'
    told = f"Protocol {protocol}; bars are 95 % intervals. " + "; ".join(f"{point.tooltip}" for point in points) + "."
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" {size} role="img" aria-labelledby="title desc">\n'
        f'<title id="title">{_text(title(record, base))}</title>\n<desc id="desc">{_text(told)}</desc>\n'
        f"<style>{_STYLE}</style>\n{paper}\n{inside}\n</svg>\n"
    )


def title(record: VariantRecord, base: BaseRecord) -> str:
    """Return what the chart shows, also the text in its place where no image is shown."""
    return f"Perplexity above the base against size on disk: {record.recipe.name} among the variants of {base.candidate.ref.name}"


def _points(record: VariantRecord, base: BaseRecord, others: Sequence[VariantRecord]) -> tuple[str | None, list[Point]]:
    """Return the protocol and the marks: the base, then the shown variants; no marks where this variant would have none."""
    protocol = stats.shared_protocol(record.measurements, base.measurements)
    whole = stats.find(base.measurements, "disk_size", protocol)
    if protocol is None or whole is None:
        return protocol, []
    name = base.candidate.ref.name
    points = [
        Point(x=Estimate.of(whole), y=_exact(0.0), label="base", href="", tooltip=f"{name} (base): {text.size(whole.value)}", base=True)
    ]
    shown = siblings.shortlist(record, base, siblings.family(record, others), protocol)
    for item in sorted(shown, key=lambda item: item.variant_id == record.variant_id):  # this one last: nothing is drawn over it
        size = stats.find(item.measurements, "disk_size", protocol)
        loss = stats.compare(item, base, protocol=protocol).perplexity_ratio
        own = item.variant_id == record.variant_id
        if size and loss:
            told = f"{item.recipe.name}: {text.size(size.value)}, perplexity {text.percent_change(loss)}"
            label = f"{item.recipe.name} (this one)" if own else item.recipe.name
            points.append(Point(x=Estimate.of(size), y=_percent(loss), label=label, href="", tooltip=told, front=own))
        elif own:
            return protocol, []
    return protocol, points


def _percent(ratio: Estimate) -> Estimate:
    return Estimate(value=(ratio.value - 1) * 100, low=(ratio.low - 1) * 100, high=(ratio.high - 1) * 100)


def _exact(value: float) -> Estimate:
    return Estimate(value=value, low=value, high=value)


def _text(value: str) -> str:
    return str(escape(text.plain(value)))
