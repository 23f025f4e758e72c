"""Which charts a model's page has: perplexity lost against size, and against decode speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from markupsafe import Markup

from leaderboard import families
from leaderboard.charts import Axis, Point, scatter, sign
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

    axis = Axis(title="Size on disk", better="smaller is better", tick=_bytes, from_zero=True)
    return _chart(group, size_of, axis, f"{page.record.candidate.ref.name}: perplexity against size on disk", lambda e: size(e.value))


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
    return scatter(points, x=axis, y=_loss_axis([y for _, _, y in shown]), name=name)


def _loss_axis(losses: Sequence[Estimate]) -> Axis:
    wide = max((loss.high for loss in losses), default=0) > 8
    title = "Perplexity above the base" + (" (logarithmic beyond 1 %)" if wide else "")
    return Axis(title=title, better="lower is better", scale="asinh" if wide else "linear", tick=_signed, from_zero=False)


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
