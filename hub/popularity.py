"""How popular a model is: a level from its latest counts and a rise from its dated history, by one stated formula. Pure.

With v the downloads of 30 days, brought to 30 days where the model is younger:

    level  = log10(1 + v) + 0.5 · log10(1 + likes) + 0.25 · log10(1 + trending score)
    rise   = 7 days · slope · span / (span + 7 days), kept within ± 0.7
    score  = level + rise

`slope` is by how much log10(1 + v) + 0.5 · log10(1 + likes) grows a day: for each count the median of the slopes between all pairs of
sightings of the last 30 days (Theil and Sen), so that one spike or one wrong number moves it little; `span` is the time between the
first and the last of them: what was seen over two days is believed less than what was seen over three weeks. The score is thus about
the level to be expected in a week; without history the rise is 0. docs/popularity.md says how the constants were chosen and what they
are worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import combinations
from statistics import median

WINDOW_DAYS = 30.0
_YOUNGEST_DAYS = 3.0
_AHEAD_DAYS = 7.0
_MOST_RISE = 0.7
_KEPT_DAYS = 7.0  # so long a listing may be kept by somebody and shown again
_NEWEST = 16
_LIKES = 0.5
_TRENDING = 0.25
_NOTABLE = 0.05
_DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """How popular a model was at one time: the Hub's count of the downloads of 30 days, its likes, its trending score."""

    at: datetime
    downloads: int
    likes: int
    trending_score: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score in its parts, in decades: what downloads, likes and trend count now, and what their growth adds or takes."""

    downloads: float
    likes: float
    trending: float
    rise: float = 0.0

    @property
    def level(self) -> float:
        """What the present counts are worth."""
        return self.downloads + self.likes + self.trending

    @property
    def value(self) -> float:
        """The whole score; never negative."""
        return max(0.0, self.level + self.rise)

    @property
    def expected_downloads(self) -> float:
        """Downloads a month to be expected in a week: the present ones, with the rise."""
        return max(0.0, float(10 ** (self.downloads + self.rise) - 1))

    @property
    def trend(self) -> str:
        """In one word: `rising`, `falling` or `level`."""
        return "rising" if self.rise >= _NOTABLE else "falling" if self.rise <= -_NOTABLE else "level"


def score(latest: Sighting, history: Iterable[Sighting] = (), *, created_at: str = "") -> Score:
    """Return how popular a model is at its latest sighting; `history` holds earlier ones, in any order.

    `created_at` (ISO-8601) is when the model was made: the Hub counts a younger model's downloads since then; unknown counts as old.
    Sightings outside the window, or later than the latest, say nothing. A count of 0 after a positive one is unknown, as no model
    loses all its downloads or likes within days: the last known number stands. Never raises.
    """
    past = _window(latest, history, created_at)
    downloads = [(_days(seen.at, latest), math.log10(1 + _velocity(seen, created_at))) for seen in past if seen.downloads > 0]
    likes = [(_days(seen.at, latest), _LIKES * math.log10(1 + seen.likes)) for seen in past if seen.likes > 0]
    rise = _AHEAD_DAYS * (_slope(downloads) + _slope(likes))
    known = next((seen for seen in reversed(past) if seen.downloads > 0), latest)
    counted = known if _days(latest.at, known) <= _KEPT_DAYS else replace(known, at=latest.at)
    return Score(
        downloads=math.log10(1 + _velocity(counted, created_at)),
        likes=likes[-1][1] if likes else 0.0,
        trending=_TRENDING * math.log10(1 + max(latest.trending_score, 0.0)),
        rise=max(-_MOST_RISE, min(_MOST_RISE, rise)),
    )


def _window(latest: Sighting, history: Iterable[Sighting], created_at: str) -> list[Sighting]:
    """Return the sightings that count, oldest first, ending with the latest.

    Of equal counts in a row only the first stays: the Hub counts once a day, and listings are kept and shown again, so a number that
    did not move at all is an old one, not a model that stands still. For a week: the downloads of a young model are counted since it was
    made, so its pace falls with each day that adds none, and by those of its first days it would be taken for another.
    """
    known = sorted((seen for seen in history if 0 < _days(latest.at, seen) <= WINDOW_DAYS), key=lambda seen: seen.at)
    kept: list[Sighting] = []
    for seen in (*known, latest):
        again = bool(kept) and (seen.downloads, seen.likes) == (kept[-1].downloads, kept[-1].likes)
        if not again or (_days(seen.at, kept[-1]) > _KEPT_DAYS and _age_days(created_at, kept[-1].at) < WINDOW_DAYS):
            kept.append(seen)
    return _thinned(kept)


def _thinned(sightings: list[Sighting]) -> list[Sighting]:
    """Return at most about `_NEWEST` of them, evenly over the window: slopes are taken between all pairs."""
    step = -(-len(sightings) // _NEWEST)
    return sightings[::-1][::step][::-1] if step > 1 else sightings


def _velocity(seen: Sighting, created_at: str) -> float:
    """Return downloads a month; of a model younger than that, those so far at the same pace (an hour is no pace: at least 3 days)."""
    age = _age_days(created_at, seen.at)
    return max(seen.downloads, 0) * WINDOW_DAYS / min(WINDOW_DAYS, max(_YOUNGEST_DAYS, age))


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Return growth a day, less the shorter the time it was seen over; 0 for fewer than two points."""
    if len(points) < 2:
        return 0.0
    span = points[-1][0] - points[0][0]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in combinations(points, 2) if b[0] > a[0]]
    return median(slopes) * span / (span + _AHEAD_DAYS) if slopes else 0.0


def _days(at: datetime, since: Sighting) -> float:
    return (at - since.at).total_seconds() / _DAY_S


def _age_days(created_at: str, at: datetime) -> float:
    try:
        made = datetime.fromisoformat(created_at)
    except ValueError:
        return WINDOW_DAYS  # unknown: taken as old, so that it gains nothing
    return (at - (made if made.tzinfo else made.replace(tzinfo=UTC))).total_seconds() / _DAY_S
