"""Replays dated listings of models through a discovery's ranking and policy: what each day would have pressed, and why.

A listing is a JSON list of objects with `name` (owner/name), `hf_downloads` (of 30 days), `hf_likes`, `parameters_raw`, `release_date`,
`pipeline_tag`, `format`; others are passed over. Its date is in the file's name. What a listing does not hold is unknown and not judged:
licence, gate, files, languages, the architecture's class. A count of 0 is unknown too: such listings write it where they did not ask.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hub import policy
from hub.catalog import Ranked, rank
from hub.domain import Candidate, Refusal
from hub.errors import BadDocument, UsageError
from hub.history import Listing
from hub.listing import unreadable
from hub.popularity import WINDOW_DAYS, Score
from hub.settings import Settings

MAX_BYTES = 64 << 20
MAX_MODELS = 100_000
NOT_HELD = ("license", "gated", "private", "files", "language", "architecture")
"""What no listing holds, as people are told."""
_UNKNOWN = frozenset(policy.RULES) - {"banned", "author", "pipeline_tag", "downloads", "derivative", "name", "size"}
_DATE = re.compile(r"(?<!\d)(\d{4}-\d{2}-\d{2})(?!\d)")
_FORMATS = {"awq": "awq", "gptq": "gptq", "autoround": "auto-round", "mlx": "mlx"}


class Entry(BaseModel):
    """One model of a listing."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str = Field(min_length=1, max_length=300)
    hf_downloads: int | None = Field(default=None, ge=0, le=10**15)
    hf_likes: int | None = Field(default=None, ge=0, le=10**15)
    parameters_raw: int | None = Field(default=None, ge=0, le=10**18)
    release_date: str | None = None
    pipeline_tag: str | None = None
    format: str | None = None


_ENTRIES: TypeAdapter[list[Entry]] = TypeAdapter(Annotated[list[Entry], Field(max_length=MAX_MODELS)])


@dataclass(frozen=True, kw_only=True)
class DatedListing:
    """The models of one day."""

    day: date
    entries: tuple[Entry, ...]


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A model that would have been pressed: its rank among what is accepted that day, by score and by level alone, and why."""

    repo_id: str
    rank: int
    rank_by_level: int
    score: Score
    downloads: int
    likes: int
    parameters: int
    task_known: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Day:
    """One day of a replay. `moved` counts models whose downloads are new, or others than those last listed; 0: an old listing shown again.

    `accepted` counts what may be pressed, `waiting` what of it was not yet and does not fit the day, `task_unknown` what was let in
    although its task is not known; `refusals` say why each other model was refused.
    """

    day: date
    listed: int
    moved: int
    accepted: int
    rising: int
    falling: int
    waiting: int
    task_unknown: int
    picks: tuple[Pick, ...]
    refusals: tuple[Refusal, ...]

    @property
    def refused(self) -> dict[str, int]:
        """How many were refused by which rule, most first."""
        return dict(Counter(refusal.code for refusal in self.refusals).most_common())


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one day may press: so many models, and so many parameters of all together (0: no limit), which is what pressing costs."""

    models: int = 5
    parameters: float = 0.0


def read(paths: Sequence[Path]) -> tuple[DatedListing, ...]:
    """Return listings by date; of a folder the dated JSON files in it. Raises `UsageError` and `BadDocument`, naming the file."""
    found: dict[date, tuple[Path, DatedListing]] = {}
    for path in _files(paths):
        listing = _listing(path)
        if listing.day in found:
            raise UsageError(f"{found[listing.day][0]} and {path} are both of {listing.day}.", hint="Name one listing a day.")
        found[listing.day] = (path, listing)
    return tuple(found[day][1] for day in sorted(found))


def replay(listings: Iterable[DatedListing], settings: Settings, limits: Limits) -> Iterator[Day]:
    """Yield what would have been done on the day of each listing, in the order given; a day knows nothing but the earlier ones."""
    history: dict[str, list[Listing]] = defaultdict(list)
    tasks: dict[str, str] = {}
    pressed: set[str] = set()
    for listing in listings:
        entries = {entry.name: entry for entry in reversed(listing.entries)}
        tasks.update({name: tag for name, entry in entries.items() if (tag := _task(entry))})
        moved = sum(_moved(entry, history[name]) for name, entry in entries.items())
        at = datetime(listing.day.year, listing.day.month, listing.day.day, tzinfo=UTC)
        ranked = rank((_candidate(entry, tasks.get(name)) for name, entry in entries.items()), at, history)
        refusals = {one.candidate.ref.repo_id: policy.screen(one.candidate, settings, unknown=_unknown(one.candidate)) for one in ranked}
        accepted = [one for one in ranked if refusals[one.candidate.ref.repo_id] is None]
        picks = _picks(accepted, pressed, limits)
        pressed.update(pick.repo_id for pick in picks)
        yield Day(
            day=listing.day,
            listed=len(entries),
            moved=moved,
            accepted=len(accepted),
            rising=sum(one.score.trend == "rising" for one in accepted),
            falling=sum(one.score.trend == "falling" for one in accepted),
            waiting=sum(one.candidate.ref.repo_id not in pressed for one in accepted),
            task_unknown=sum(one.candidate.pipeline_tag is None for one in accepted),
            picks=picks,
            refusals=tuple(refusal for refusal in refusals.values() if refusal),
        )
        for name, entry in entries.items():
            history[name] = [*history[name][-int(WINDOW_DAYS) :], _seen(entry, at)]  # one a day: no more of them count


def _picks(accepted: Sequence[Ranked], pressed: Collection[str], limits: Limits) -> tuple[Pick, ...]:
    """Return the best models that were not pressed yet and fit into one day; one too large for what is left lets smaller ones pass."""
    by_level = sorted(accepted, key=lambda one: (-one.score.level, one.candidate.ref.repo_id))
    level_ranks = {one.candidate.ref.repo_id: number for number, one in enumerate(by_level, start=1)}
    left = limits.parameters or math.inf
    picks: list[Pick] = []
    for number, one in enumerate(accepted, start=1):
        if len(picks) == limits.models:
            break
        parameters = one.candidate.parameters or 0
        if one.candidate.ref.repo_id in pressed or parameters > left:
            continue
        left -= parameters
        picks.append(_pick(one, number, level_ranks[one.candidate.ref.repo_id]))
    return tuple(picks)


def _pick(one: Ranked, number: int, by_level: int) -> Pick:
    downloads = f"{one.candidate.downloads:,} downloads" if one.candidate.downloads else "downloads not listed that day"
    counts = downloads + (f", {one.candidate.likes:,} likes" if one.candidate.likes else "")
    trend = f"; {one.score.trend} by {one.score.rise:+.2f}" if one.score.trend != "level" else ""
    early = f", rank {by_level} by level alone" if by_level > number else ""
    return Pick(
        repo_id=one.candidate.ref.repo_id,
        rank=number,
        rank_by_level=by_level,
        score=one.score,
        downloads=one.candidate.downloads,
        likes=one.candidate.likes,
        parameters=one.candidate.parameters or 0,
        task_known=one.candidate.pipeline_tag is not None,
        reason=f"rank {number}{early}: {counts}{trend}",
    )


def _candidate(entry: Entry, task: str | None) -> Candidate:
    mark = _FORMATS.get((entry.format or "").lower())
    return replace(
        unreadable(entry.name),
        downloads=entry.hf_downloads or 0,
        likes=entry.hf_likes or 0,
        created_at=entry.release_date or "",
        pipeline_tag=task,
        parameters=entry.parameters_raw or None,
        tags=(mark,) if mark and mark != "mlx" else (),
        library_name=mark if mark == "mlx" else None,
    )


def _unknown(candidate: Candidate) -> frozenset[str]:
    """Return the rules that this entry of a listing says nothing about."""
    absent = {"pipeline_tag": candidate.pipeline_tag is None, "downloads": not candidate.downloads, "size": candidate.parameters is None}
    return _UNKNOWN | {code for code, missing in absent.items() if missing}


def _task(entry: Entry) -> str | None:
    return entry.pipeline_tag if entry.pipeline_tag not in ("", "unknown") else None


def _seen(entry: Entry, at: datetime) -> Listing:
    downloads, likes = entry.hf_downloads or 0, entry.hf_likes or 0
    return Listing(at=at.isoformat(), downloads=downloads, likes=likes, trending_score=0.0, rank=0, score=None)


def _moved(entry: Entry, past: Sequence[Listing]) -> bool:
    before = next((seen.downloads for seen in reversed(past) if seen.downloads), None)
    return bool(entry.hf_downloads) and entry.hf_downloads != before


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        dated = sorted(file for file in path.glob("*.json") if _DATE.search(file.name))
        if not dated:
            raise UsageError(
                f"{path} holds no dated listing.", hint="Expected JSON files with a date in their names, as in 2026-02-15.json."
            )
        yield from dated


def _listing(path: Path) -> DatedListing:
    day = _day(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise BadDocument(f"{path} has {size:,} bytes; a listing of at most {MAX_BYTES:,} is read.", hint="Split it, or name another.")
        text = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.", hint="Name a listing or a folder of them.") from error
    try:
        entries = _ENTRIES.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole document"
        hint = "Expected a JSON list of objects, each with a name (owner/name) and hf_downloads."
        raise BadDocument(f"{path} is no listing of models: {place}: {first['msg']}.", hint=hint) from error
    if not entries:
        raise BadDocument(f"{path} lists no model.", hint="Leave it out: an empty listing says nothing about any model.")
    return DatedListing(day=day, entries=tuple(entries))


def _day(path: Path) -> date:
    found = _DATE.search(path.name)
    try:
        return date.fromisoformat(found[1] if found else "")
    except ValueError:
        raise UsageError(f"{path} has no date in its name.", hint="Name a listing by its day, as in hf_models.2026-02-15.json.") from None
