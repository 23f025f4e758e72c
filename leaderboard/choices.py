"""What to take: for each aim the measured best of what is published, and "stay with the base" wherever that is the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leaderboard.rows import Row
from leaderboard.text import percent_change
from leaderboard.words import as_large

QUALITY_BUDGET = 0.01


@dataclass(frozen=True, kw_only=True)
class Aim:
    """A wish of a visitor and the rule that answers it."""

    key: str
    title: str
    rule: str


KEEP = Aim(
    key="keep",
    title="Keep the quality",
    rule=f"the smallest published variant whose whole perplexity interval is at most {QUALITY_BUDGET * 100:g} % above the base's",
)
SMALL = Aim(key="small", title="Smallest", rule="the smallest published variant; what passed the gate lost no more than its recipe allows")
FAST = Aim(key="fast", title="Fastest", rule="the published variant that decodes fastest, if its interval lies wholly above the base's")
AIMS = (KEEP, SMALL, FAST)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The answer to an aim: a row (the base's own when it is best to stay) and why."""

    aim: Aim
    row: Row
    why: str

    @property
    def stay(self) -> bool:
        """Whether the answer is to stay with the base model."""
        return self.row.is_base


def choose(rows: Sequence[Row]) -> tuple[Choice, ...]:
    """Answer every aim for the rows of one base and protocol; nothing while the base itself is not measured."""
    base = next((row for row in rows if row.is_base), None)
    if base is None or base.loss is None:
        return ()
    serving = [row for row in rows if row.published and row.loss and row.recipe and row.recipe.track == "serving"]
    smaller = [row for row in serving if row.bytes and row.size_ratio and row.size_ratio.value < 1 and not as_large(row.size_ratio)]
    return (_keep(base, smaller), _small(base, smaller), _fast(base, [row for row in serving if not row.same_work]))


def _keep(base: Row, offered: Sequence[Row]) -> Choice:
    close = [row for row in offered if row.loss and row.loss.high <= 1 + QUALITY_BUDGET]
    if close:
        return Choice(aim=KEEP, row=min(close, key=_size_then_loss), why="")
    if not offered:
        return Choice(aim=KEEP, row=base, why="no smaller variant is published")
    nearest = min(offered, key=lambda row: row.loss.high if row.loss else 0)
    assert nearest.loss is not None
    return Choice(aim=KEEP, row=base, why=f"the closest variant, {nearest.name}, is at {percent_change(nearest.loss)} perplexity")


def _small(base: Row, offered: Sequence[Row]) -> Choice:
    if not offered:
        return Choice(aim=SMALL, row=base, why="no smaller variant is published")
    return Choice(aim=SMALL, row=min(offered, key=_size_then_loss), why="")


def _fast(base: Row, published: Sequence[Row]) -> Choice:
    timed = [row for row in published if row.decode_ratio]
    faster = [row for row in timed if row.decode_ratio and row.decode_ratio.low > 1]
    if faster:
        return Choice(aim=FAST, row=max(faster, key=lambda row: row.decode_ratio.value if row.decode_ratio else 0), why="")
    if not timed:
        return Choice(aim=FAST, row=base, why="no published variant was timed in turns with the base")
    best = max(timed, key=lambda row: row.decode_ratio.value if row.decode_ratio else 0)
    assert best.decode_ratio is not None
    return Choice(aim=FAST, row=base, why=f"the fastest variant, {best.name}, decodes at {best.decode_ratio.value:.2f}× the base")


def _size_then_loss(row: Row) -> tuple[float, float]:
    return (row.bytes or 0, row.loss.value if row.loss else 0)
