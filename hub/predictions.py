"""What a job will take, learned from the farm's own history: factors on what the model's shape alone says. Pure.

A job stands in groups that grow finer: its kind, the hardware, what it does (methods and format of a press, protocol and format of a
measurement), and its size (powers of four of what the shape says). In each group the factor is the geometric mean of true / shape over
the group's parts, each part with one vote, shrunk towards the group around it: (sum of parts + SHRINK x around) / (parts + SHRINK), in
logarithms; the outermost is 1. A job is predicted by its finest group that has a history. The error is found the same way from what each
part's factor is away from what the group says without that part. Docs: docs/scheduling.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hub.domain import Job, Recipe
from hub.scheduling import Attempt, Prediction

PRIOR_FACTOR = 4.0
"""How far shapes alone are off, two times of three: some methods take a tenth of what their operations say, some three times as much."""
SHRINK = 0.5
"""How many parts the group around counts for: below one, as groups differ far more than jobs of one group do."""
SHRINK_ERROR = 0.2
"""The same for the error: less, as the error around a group is that of jobs unlike those in it."""
_SIZE_STEP = math.log(4)  # jobs within a factor of 4 are of one size: start-up and arithmetic then stand in about the same proportion

Place = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Takes:
    """What a model's shape alone says that a job takes; `saved` is the share of the base's bytes that the variant will not have."""

    seconds: float
    memory_bytes: float
    disk_bytes: int
    parameters: int = 0
    base_bytes: int = 0
    saved: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What a job is predicted to take, and what of it the shape said."""

    seconds: Prediction
    memory_bytes: Prediction
    takes: Takes


@dataclass(kw_only=True)
class _Group:
    """Parts of a group: sums of their means, by which each has one vote; `members` are single jobs, in the finest groups alone."""

    parts: set[Place] = field(default_factory=set)
    members: list[float] = field(default_factory=list)
    total: float = 0.0
    count: int = 0
    jobs: int = 0

    @property
    def mean(self) -> float:
        return self.total / self.count


class Factors:
    """Logarithms of true / shape by group, and how far they are off."""

    def __init__(self, samples: Iterable[tuple[Place, float]]) -> None:
        self._groups: dict[Place, _Group] = {}
        self._errors: dict[Place, float] = {}
        for path, value in samples:
            self._groups.setdefault(path, _Group()).members.append(value)
            for depth in range(len(path)):
                self._groups.setdefault(path[:depth], _Group()).parts.add(path[: depth + 1])
        for path in sorted(self._groups, key=len, reverse=True):  # parts before what they are parts of
            group = self._groups[path]
            values = group.members or [self._groups[part].mean for part in sorted(group.parts)]
            group.total, group.count = math.fsum(values), len(values)
            group.jobs = len(group.members) or sum(self._groups[part].jobs for part in group.parts)

    def predict(self, path: Place) -> tuple[float, float, int]:
        """Return a group's factor, its error (standard deviation), both as logarithms, and from how many jobs they are."""
        known = self._known(path)
        around = [self._groups[one] for one in _down(known) if one in self._groups]  # none where there is no history at all
        factor = self._factor([(group.total, group.count) for group in around])
        return factor, math.sqrt(self._error(known)), around[-1].jobs if around else 0

    def floor(self, path: Place) -> float:
        """Return the factor that a job must exceed to tell something when only a lower bound of it is known."""
        factor = self.predict(path)[0]
        return max(factor, self._groups[path].mean) if path in self._groups else factor

    def _known(self, path: Place) -> Place:
        while path and path not in self._groups:
            path = path[:-1]
        return path

    @staticmethod
    def _factor(sums: Sequence[tuple[float, int]]) -> float:
        """Return the innermost factor of groups given as (sum, parts), outermost first."""
        factor = 0.0
        for total, count in sums:
            factor = (total + SHRINK * factor) / (count + SHRINK)
        return factor

    def _error(self, path: Place) -> float:
        """Return the mean square of how far a part of this group is off, shrunk towards that of the group around it."""
        if path not in self._errors:
            around = self._error(path[:-1]) if path else math.log(PRIOR_FACTOR) ** 2
            group = self._groups.get(path, _Group())
            values = group.members or [self._groups[part].mean for part in sorted(group.parts)]
            squares = math.fsum((value - self._without(path, value)) ** 2 for value in values)
            self._errors[path] = (squares + SHRINK_ERROR * around) / (len(values) + SHRINK_ERROR)
        return self._errors[path]

    def _without(self, path: Place, value: float) -> float:
        """Return a group's factor with one part taken out of it, and so out of all groups around it."""
        sums: list[tuple[float, int]] = []
        gone, left = value, None
        for one in reversed(_down(path)):
            group = self._groups[one]
            total, count = group.total - gone + (left or 0.0), group.count - (left is None)
            sums.append((total, count) if count else (0.0, 0))
            gone, left = group.mean, total / count if count else None
        return self._factor(sums[::-1])


class History:
    """What attempts tell of the jobs to come.

    `hardware` is what the jobs will run on, as environments name it; empty: what the newest attempt ran on. Attempts without an
    `Expectation` have no shape to be compared with and are passed over, and so is what was interrupted. One whose time was over, by its own
    limit or by the budget, is a lower bound: it counts with that time where the others of its group say less, and else is passed over.
    """

    def __init__(self, attempts: Sequence[Attempt] = (), *, hardware: str = "") -> None:
        told = [attempt for attempt in attempts if attempt.expected]
        done = [attempt for attempt in told if attempt.outcome == "done"]
        self._hardware = hardware or next((attempt.hardware for attempt in reversed(done) if attempt.hardware), "")
        seconds = [sample for attempt in done if (sample := self._seconds(attempt))]
        first = Factors(seconds)
        late = [self._seconds(attempt) for attempt in told if attempt.category == "timed_out"]
        seconds += [sample for sample in late if sample and sample[1] > first.floor(sample[0])]
        self._times = Factors(seconds)
        self._memory = Factors(sample for attempt in done if (sample := self._peak(attempt)))

    def forecast(self, job: Job, takes: Takes) -> Forecast:
        """Return what a job will take."""
        return Forecast(
            seconds=_predicted(self._times, self._path(job, takes.seconds), takes.seconds),
            memory_bytes=_predicted(self._memory, self._path(job, takes.memory_bytes), takes.memory_bytes),
            takes=takes,
        )

    def _path(self, job: Job, shape: float, hardware: str = "") -> Place:
        size = math.floor(math.log(shape) / _SIZE_STEP) if shape > 0 else 0
        return (job.kind, hardware or self._hardware, _what(job), str(size))

    def _seconds(self, attempt: Attempt) -> tuple[Place, float] | None:
        shape = attempt.expected.shape_seconds if attempt.expected else 0.0
        return self._sample(attempt, attempt.seconds, shape)

    def _peak(self, attempt: Attempt) -> tuple[Place, float] | None:
        shape = attempt.expected.shape_memory_bytes if attempt.expected else 0.0
        return self._sample(attempt, attempt.peak_memory_bytes, shape)

    def _sample(self, attempt: Attempt, true: float, shape: float) -> tuple[Place, float] | None:
        if attempt.job is None or not (0 < true < math.inf and 0 < shape < math.inf):
            return None
        return self._path(attempt.job, shape, attempt.hardware), math.log(true / shape)


def _predicted(factors: Factors, path: Place, shape: float) -> Prediction:
    factor, error, jobs = factors.predict(path)
    return Prediction(value=shape * math.exp(factor), factor=math.exp(error), samples=jobs)


def _what(job: Job) -> str:
    made = job.recipe.format if job.recipe else "base"
    if job.kind == "press" and job.recipe:
        return f"{job.recipe.method} as {made}"
    return f"{job.protocol.name if job.protocol else job.kind} of {made}"


def _down(path: Place) -> list[Place]:
    return [path[:depth] for depth in range(len(path) + 1)]


class Chances:
    """How probable it is that a recipe's variant is published. `judged` holds by name how many passed, and of how many that came to an end.

    Smoothed: a recipe counts with two more variants that passed as often as those of all recipes together, which count with one more that
    passed and one that did not. So a recipe without a history has the chance of all, and no chance is 0 or 1.
    """

    def __init__(self, judged: Mapping[str, tuple[int, int]] | None = None) -> None:
        self._judged = judged or {}
        passed, count = (sum(pair[index] for pair in self._judged.values()) for index in (0, 1))
        self._overall = (passed + 1) / (count + 2)

    def of(self, recipe: Recipe) -> float:
        """Return the chance, above 0 and below 1."""
        passed, count = self._judged.get(recipe.name, (0, 0))
        return (passed + 2 * self._overall) / (count + 2)
