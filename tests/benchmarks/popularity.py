"""What velocity is worth: the score beside the level alone on real dated listings: `python tests/benchmarks/popularity.py [FOLDER]`.

Rank correlation of both at one day with the downloads of a later one, and how many days earlier models that reach the top by level are
at the top by score. The formula's constants were chosen on the listings up to `TUNED`; those after it are held out.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from scipy.stats import spearmanr

from hub.popularity import Score, Sighting, score
from hub.replay import DatedListing, Entry, read

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
FOLDER = SHARED / "data" / "hub-snapshots" / "llmfit-snapshots"
TUNED = date(2026, 4, 22)
LARGE = 400
"""Listings of fewer models serve as history only: a top of 100 among 140 says nothing."""
AHEAD_DAYS = (6, 35)
FRESH_DAYS = 14
TOPS = (20, 50, 100)


@dataclass(frozen=True, kw_only=True)
class Day:
    """One listing with the score of each of its models whose downloads are known, from what was known that day."""

    day: date
    size: int
    downloads: Mapping[str, int]
    scores: Mapping[str, Score]


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Spearman's rank correlation of what was known at `day` with the downloads at `later`, over the `models` in both."""

    part: str
    day: date
    later: date
    models: int
    ours: float
    level: float
    downloads_and_rise: float
    downloads: float


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Models known before, that reached the top by level: `days` is how much earlier, on average, they were at the top by score.

    `false_alarms` were at the top by score and never by level, until the last listing.
    """

    top: int
    reached: int
    earlier: int
    later: int
    days: float
    false_alarms: int


def load(folder: Path) -> tuple[Day, ...]:
    """Return the listings of a folder by date, each model scored with nothing but what was listed until then.

    A model stays in for `FRESH_DAYS` after it was last listed: what a listing leaves out has not vanished from the Hub.
    """
    history: dict[str, list[Sighting]] = defaultdict(list)
    made: dict[str, str] = {}
    days = []
    for listing in read([folder]):
        at = datetime(listing.day.year, listing.day.month, listing.day.day, tzinfo=UTC)
        entries = _known(listing)
        made.update({name: entry.release_date for name, entry in entries.items() if entry.release_date})
        for name, entry in entries.items():
            history[name].append(Sighting(at=at, downloads=entry.hf_downloads or 0, likes=entry.hf_likes or 0))
        fresh = [name for name, seen in history.items() if (at - seen[-1].at).days <= FRESH_DAYS]
        scores = {name: score(history[name][-1], history[name][:-1], created_at=made.get(name, "")) for name in fresh}
        downloads = {name: entry.hf_downloads or 0 for name, entry in entries.items()}
        days.append(Day(day=listing.day, size=len(listing.entries), downloads=downloads, scores=scores))
    return tuple(days)


def correlations(days: Sequence[Day]) -> list[Correlation]:
    """Compare every two large listings that are a week to a month apart and differ in most counts."""
    large = [day for day in days if day.size >= LARGE]
    pairs = [(one, two) for one in large for two in large if AHEAD_DAYS[0] <= (two.day - one.day).days <= AHEAD_DAYS[1]]
    return [_correlation(one, two) for one, two in pairs if _moved(one, two)]


def entries(days: Sequence[Day], tops: Sequence[int] = TOPS) -> list[Entries]:
    """Follow who is at the top of each size, from the first large listing on."""
    first = next(number for number, day in enumerate(days) if day.size >= LARGE)
    return [_entries(days, first, top) for top in tops]


def _known(listing: DatedListing) -> dict[str, Entry]:
    return {entry.name: entry for entry in reversed(listing.entries) if entry.hf_downloads}


def _moved(one: Day, two: Day) -> bool:
    both = one.downloads.keys() & two.downloads.keys()
    return sum(one.downloads[name] != two.downloads[name] for name in both) > len(both) / 2


def _correlation(one: Day, two: Day) -> Correlation:
    both = sorted(one.downloads.keys() & two.downloads.keys())
    later = [two.downloads[name] for name in both]
    scores = [one.scores[name] for name in both]

    def with_later(values: Sequence[float]) -> float:
        return float(spearmanr(values, later).statistic)

    return Correlation(
        part="tuning" if two.day <= TUNED else "held out",
        day=one.day,
        later=two.day,
        models=len(both),
        ours=with_later([each.value for each in scores]),
        level=with_later([each.level for each in scores]),
        downloads_and_rise=with_later([each.downloads + each.rise for each in scores]),
        downloads=with_later([each.downloads for each in scores]),
    )


def _entries(days: Sequence[Day], first: int, top: int) -> Entries:
    by_level: dict[str, date] = {}
    by_score: dict[str, date] = {}
    known: dict[str, date] = {}
    for day in days:
        for name in day.scores:
            known.setdefault(name, day.day)
    for day in days[first:]:
        for name in sorted(day.scores, key=lambda name: -day.scores[name].level)[:top]:
            by_level.setdefault(name, day.day)
        for name in sorted(day.scores, key=lambda name: -day.scores[name].value)[:top]:
            by_score.setdefault(name, day.day)
    reached = [name for name, day in by_level.items() if known[name] < day > days[first].day]
    leads = [(by_level[name] - by_score.get(name, days[-1].day)).days for name in reached]
    return Entries(
        top=top,
        reached=len(reached),
        earlier=sum(lead > 0 for lead in leads),
        later=sum(lead < 0 for lead in leads),
        days=sum(leads) / len(leads) if leads else 0.0,
        false_alarms=len(by_score.keys() - by_level.keys()),
    )


def main() -> None:
    """Print both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    days = load(parser.parse_args().folder)
    found = correlations(days)
    print("rank correlation with later downloads, mean over pairs of listings")
    print(f"{'':<10}{'pairs':>6}{'score':>9}{'level':>9}{'better':>9}   {'downloads + rise':>17}{'downloads':>11}{'better':>8}")
    for part in ("tuning", "held out"):
        own = [one for one in found if one.part == part]
        if not own:
            continue
        means = [sum(getattr(one, name) for one in own) / len(own) for name in ("ours", "level", "downloads_and_rise", "downloads")]
        better = sum(one.ours > one.level for one in own)
        better_downloads = sum(one.downloads_and_rise > one.downloads for one in own)
        print(
            f"{part:<10}{len(own):>6}{means[0]:>9.4f}{means[1]:>9.4f}{better:>6}/{len(own):<2}"
            f"   {means[2]:>17.4f}{means[3]:>11.4f}{better_downloads:>5}/{len(own):<2}"
        )
    print("\nmodels that reach the top by level: when they are there by score")
    print(f"{'top':>5}{'reached':>9}{'earlier':>9}{'same day':>10}{'later':>7}{'mean days earlier':>19}{'only by score':>15}")
    for one in entries(days):
        same = one.reached - one.earlier - one.later
        print(f"{one.top:>5}{one.reached:>9}{one.earlier:>9}{same:>10}{one.later:>7}{one.days:>19.2f}{one.false_alarms:>15}")


if __name__ == "__main__":
    main()
