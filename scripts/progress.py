"""Progress of long work: live bars on a terminal, one plain line per event elsewhere. Everything goes to stderr."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hub.domain import Failure, Job, JobResult
from leaderboard.text import duration
from modelpress.options import console as new_console


@dataclass
class Phase:
    """One stretch of work: how much there is, what is running, what is done and what failed."""

    title: str
    total: int
    console: Console
    bar: Progress | None
    task: TaskID | None
    done: int = 0
    failed: int = 0
    running: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, label: str) -> None:
        """Say that a piece of work has started."""
        with self._lock:
            self.running.append(label)
            self._show()

    def end(self, label: str, note: str = "") -> None:
        """Say that a piece of work is done."""
        with self._lock:
            self.done += 1
            self._settle(label, "done", "green", note)

    def fail(self, label: str, reason: str) -> None:
        """Say that a piece of work failed, and why."""
        with self._lock:
            self.failed += 1
            self._settle(label, "failed", "red", reason)

    def leave(self, label: str, why: str) -> None:
        """Say that a piece of work has ended that is neither done nor failed, and why."""
        with self._lock:
            if label in self.running:
                self.running.remove(label)
            self.say(f"{label}: {why}")
            self._show()

    def say(self, text: str) -> None:
        """Print one line, without markup."""
        (self.bar.console if self.bar else self.console).print(text, highlight=False, soft_wrap=True, markup=False)

    def _settle(self, label: str, word: str, colour: str, note: str) -> None:
        if label in self.running:
            self.running.remove(label)
        count = f"[{self.done + self.failed:>{len(str(self.total))}}/{self.total}]"
        line = f"{escape(count)} [{colour}]{word}[/] {escape(label)}" + (f" [dim]({escape(note)})[/]" if note else "")
        (self.bar.console if self.bar else self.console).print(line, highlight=False, soft_wrap=True)
        self._show()

    def _show(self) -> None:
        if self.bar is None or self.task is None:
            return
        failed = f" [red]{self.failed} failed[/]" if self.failed else ""
        running = escape(", ".join(self.running)) or "waiting"
        self.bar.update(self.task, completed=self.done + self.failed, description=f"[bold]{self.title}[/]{failed} [dim]now: {running}[/]")


@dataclass(frozen=True)
class JobLines:
    """A phase seen by hub.dispatch, which speaks of jobs."""

    phase: Phase

    def started(self, job: Job) -> None:
        """A job has started."""
        self.phase.begin(job.title)

    def finished(self, job: Job, result: JobResult) -> None:
        """A job gave a result."""
        self.phase.end(job.title, duration(result.seconds))

    def failed(self, job: Job, failure: Failure) -> None:
        """A job failed."""
        self.phase.fail(job.title, f"{failure.error}: {failure.reason}")

    def ended(self, job: Job, why: str) -> None:
        """A job ended without a result of its own."""
        self.phase.leave(job.title, why)

    def waiting(self, why: str) -> None:
        """Nothing runs, and nothing can start yet."""
        self.phase.say(why)


class Reporter:
    """Opens phases and remembers how long each took (seconds by title)."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or new_console(stderr=True)
        self.seconds: dict[str, float] = {}

    def say(self, text: str) -> None:
        """Print one line as it is, without markup."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Phase]:
        """Show the progress of `total` pieces of work called `title`; nothing is shown when there is none."""
        began = time.monotonic()
        try:
            if total and self.console.is_terminal:
                columns = (
                    TextColumn("{task.description}"),
                    BarColumn(bar_width=24),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    TimeRemainingColumn(),
                )
                with Progress(*columns, console=self.console, transient=True) as bar:
                    yield Phase(title, total, self.console, bar, bar.add_task(title, total=total))
            else:
                if total:
                    self.say(f"{title}: {total} to do")
                yield Phase(title, total, self.console, None, None)
        finally:
            self.seconds[title] = self.seconds.get(title, 0.0) + time.monotonic() - began
