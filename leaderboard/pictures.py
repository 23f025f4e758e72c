"""Which charts a model's page has: perplexity lost against size, and against decode speed."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from leaderboard import families
from leaderboard.charts import SIZE_AXIS, Axis, Point, loss_axis, scatter, sign
from leaderboard.families import family
from leaderboard.queries import BasePage, Board, Group
from leaderboard.rows import Row
from leaderboard.stats import Estimate, pareto_front
from leaderboard.text import percent_change, size, times

SHAPE_OF = {
    families.QUANTIZATION: "circle",
    families.EXPORT: "up",
    families.PRUNING: "diamond",
    families.LOW_RANK: "hexagon",
    families.DISTILLATION: "down",
    families.RECOVERY: "cross",
    families.CHAIN: "star",
}


def legend(group: Group) -> list[tuple[Markup, str]]:
    """Return the sign and the title of each family in a group's charts; nothing where there is one alone."""
    present = {family(row.recipe) for row in group.rows if row.recipe and row.percent}
    return [(sign(SHAPE_OF[name]), families.TITLES[name]) for name in families.FAMILIES if name in present] if len(present) > 1 else []


def size_chart(page: BasePage, group: Group) -> Markup:
    """Draw perplexity against the base over size on disk, with the front of what nothing beats on both."""

    def size_of(row: Row) -> Estimate | None:
        return Estimate(value=row.bytes, low=row.bytes, high=row.bytes) if row.bytes else None

    return _chart(group, size_of, SIZE_AXIS, f"{page.record.candidate.ref.name}: perplexity against size on disk", lambda e: size(e.value))


def speed_chart(page: BasePage, group: Group) -> Markup:
    """Draw perplexity against the base over decode speed, for rows timed in turns with the base whose work is not just the base's own.

    What ran in another engine than the base is left to the table: its factor is of two programs, and may be ten times all others.
    """

    def speed_of(row: Row) -> Estimate | None:
        return None if row.same_work or row.engine else row.decode_ratio

    axis = Axis(title="Decode speed against the base, batch 1", better="faster is better", tick=lambda value: f"{value:g}×", from_zero=True)
    name = f"{page.record.candidate.ref.name}: perplexity against decode speed"
    return _chart(group, speed_of, axis, name, lambda e: f"decodes at {times(e)} the base's speed")


def strip_range(board: Board) -> tuple[float, float]:
    """Return the lowest and highest change in per cent that the small interval drawings must show."""
    losses = [row.percent for page in board.pages for row in page.main.rows if row.percent]
    return min((loss.low for loss in losses), default=0.0), max((loss.high for loss in losses), default=1.0)


def _chart(group: Group, across: Callable[[Row], Estimate | None], axis: Axis, name: str, words: Callable[[Estimate], str]) -> Markup:
    shown = [(row, x, y) for row in group.rows if (y := row.percent) and (x := across(row))]
    front = set(pareto_front([(x, y) for _, x, y in shown]))
    points = [
        Point(
            x=x,
            y=y,
            label="base" if row.is_base else row.name,
            href=f"#{row.anchor}",
            tooltip=f"{row.name}: {words(x)}, perplexity {'as the base' if row.is_base or not row.loss else percent_change(row.loss)}",
            base=row.is_base,
            front=index in front,
            shape=SHAPE_OF[family(row.recipe)] if row.recipe else "circle",
        )
        for index, (row, x, y) in enumerate(shown)
    ]
    return scatter(points, x=axis, y=loss_axis([y for _, _, y in shown]), name=name)
