"""Runs of the real command that are disturbed: start, wait for a line, strike, and compare what is left with an undisturbed run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import psutil

from hub.local.process import LocalHub

from ..ports import free_port  # noqa: TID252
from . import poison
from .conftest import Folder

Rows = dict[str, list[tuple[object, ...]]]

SAME = (
    "perplexity", "perplexity_ratio", "delta_perplexity", "bits_per_byte", "kl_divergence", "same_top_token", "delta_probability",
    "rms_delta_probability", "disk_size", "bits_per_weight", "entropy_coded_size",
)  # fmt: skip
"""The metrics whose values do not depend on how long things took or on what else ran."""

QUERIES = {
    "models": "select repo_id, sha from models",
    "refusals": "select repo_id, sha, recipe, code, reason from refusals",
    "variants": "select id, label, recipe from variants",
    "jobs": "select id, kind, state, category, error, reason, cancel, owner from jobs",
    "artifacts": "select variant_id, job_id, digest, parameters, bytes from artifacts",
    "files": "select variant_id, path, size, sha256 from artifact_files",
    "measurements": "select job_id, metric, unit, conditions, protocol_id, basis, case when metric in ({same}) then value end"
    " from measurements where basis = 'measured' and metric not like '%memory'",
    "scores": "select job_id, source, samples, fingerprint, document from scores",
    "layers": "select job_id, layer, error, tokens from layer_errors",
    "verdicts": "select v.variant_id, v.stage, v.passed, c.name, c.passed from verdicts v join checks c on c.verdict_id = v.id",
    "releases": "select variant_id, repo_id, artifact_digest, verified_at is not null from releases",
}
"""What must be equal, by table. Left out: times, memory, machine states, the commits of releases (made of times), and how a plan was
carried out: attempts, and what jobs waited for, which a later plan does not repeat for what is done."""


def end_state(database: Path) -> Rows:
    """Return the rows that an undisturbed run and a disturbed one that was run again have in common, sorted; long ones as a hash."""
    with closing(sqlite3.connect(database)) as connection:
        names = ", ".join(f"'{metric}'" for metric in SAME)
        found = {table: connection.execute(query.format(same=names)).fetchall() for table, query in QUERIES.items()}
    return {table: sorted((tuple(map(_short, row)) for row in rows), key=repr) for table, rows in found.items()}


def _short(value: object) -> object:
    return hashlib.sha256(value.encode()).hexdigest() if isinstance(value, str) and len(value) > 1000 else value


def compare(one: Path | Rows, other: Path | Rows) -> list[str]:
    """Return in which rows two databases differ, one line each; none where their end states are equal."""
    left, right = (end_state(side) if isinstance(side, Path) else side for side in (one, other))
    lines = []
    for table in QUERIES:
        lines += [f"{table}: only in the first: {row}" for row in left[table] if row not in right[table]]
        lines += [f"{table}: only in the second: {row}" for row in right[table] if row not in left[table]]
        if not lines and len(left[table]) != len(right[table]):
            lines.append(f"{table}: {len(left[table])} rows in the first, {len(right[table])} in the second")
    return lines


def new_farm(path: Path, planted: Path, **farm: object) -> Folder:
    """Make a user's folder on a copy of a planted hub: one cheap recipe, the quick protocol, one thread."""
    path.mkdir(parents=True, exist_ok=True)
    folder = Folder(path, free_port())
    shutil.copytree(planted, folder.press / "hub")
    settings = {"threads": 1, "timeout_s": 120, **farm}
    lines = [f"{key} = {value}" for key, value in settings.items()]
    press = ["[press]", 'recipes = ["bnb-nf4"]', 'protocol = "stdlib-heldout@512-quick"']
    (path / "modelpress.toml").write_text("\n".join(["[hub]", f"port = {folder.port}", *press, "[farm]", *lines, ""]))
    return folder


def plant(root: Path, *, good: tuple[str, ...], bad: tuple[str, ...]) -> Path:
    """Make a hub's folder that nobody serves, to be copied."""
    poison.plant(root, good=good, bad=bad)
    return root


def serving(folder: Folder) -> LocalHub:
    """Return the folder's hub with fault injection, which the command finds and uses; a context manager."""
    return LocalHub(folder.press / "hub", port=folder.port, samples=False, faults=True)


def fault(hub: LocalHub, kind: str, path: str, **more: object) -> None:
    """Let the hub misbehave; see `hub.local.faults`."""
    ask(hub, "POST", {"kind": kind, "path": path, **more})


def ask(hub: LocalHub, method: str, body: Mapping[str, object] | None = None) -> list[dict[str, object]]:
    """Ask the hub's fault injection; return its rules with how often each was used."""
    data = json.dumps(body).encode() if body else None
    headers = {"Authorization": f"Bearer {hub.write_token}"}
    request = urllib.request.Request(f"{hub.endpoint}/api/_faults", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        rules: list[dict[str, object]] = json.loads(answer.read())
    return rules


def await_death(hub: LocalHub) -> None:
    """Wait until the hub's process, a child of this one, has ended."""
    assert hub.pid is not None
    os.waitid(os.P_PID, hub.pid, os.WEXITED | os.WNOWAIT)


class Running:
    """`modelpress run` as a child process whose lines are read as they come."""

    def __init__(self, folder: Folder, *words: str, env: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            folder.command(*(words or ("run",))),
            cwd=folder.path,
            env=folder.environment(env),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._more = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line)
                self._more.notify_all()

    def seen(self, mark: str) -> None:
        """Wait until a line holds `mark`; fail where the command ends before."""
        self._until(lambda: any(mark in line for line in self.lines), f"before {mark!r}")

    def said(self, lines: int) -> None:
        """Wait until there are so many lines; fail where the command ends before."""
        self._until(lambda: len(self.lines) >= lines, f"before line {lines}")

    def _until(self, reached: Callable[[], bool], what: str, timeout: float = 400) -> None:
        with self._more:
            until = time.monotonic() + timeout
            while not reached():
                if self.process.poll() is not None and not self._reader.is_alive():
                    raise self._failed(f"ended with {self.process.returncode} {what}")
                if time.monotonic() > until:
                    raise self._failed(f"waited for {timeout:g} s {what}")
                self._more.wait(0.2)

    def _failed(self, why: str) -> AssertionError:
        self.process.kill()  # else it would work on beside the next test
        return AssertionError(f"{why}:\n{self.text}")

    @property
    def text(self) -> str:
        """All lines so far."""
        return "".join(self.lines)

    def end(self, timeout: float = 400) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(timeout)
        self._reader.join(60)
        return code

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the command alone, wait for its end, and see that nothing it started lives on; return the exit code."""
        family = self.family()
        self.process.send_signal(number)
        code = self.end(120)
        _, alive = psutil.wait_procs(family, timeout=120)
        assert not alive, f"still alive after their parent's end: {[one.cmdline() for one in alive]}"
        return code

    def family(self) -> list[psutil.Process]:
        """All processes that the command has started, and those that they have."""
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def job(self, timeout: float = 400) -> psutil.Process:
        """Return the process of the job that runs now, once there is one: a child of the farm's warm parent, which has its command line."""
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            for process in self.family():
                try:
                    if "runners.farm.zygote" in process.cmdline() and "runners.farm.zygote" in process.parent().cmdline():
                        return process
                except (psutil.Error, AttributeError):
                    continue
            time.sleep(0.02)
        raise self._failed(f"no job ran in {timeout:g} s")


def finish(folder: Folder, *words: str) -> str:
    """Run to the end, which must be a good one; return what was said."""
    run = Running(folder, "run", *words)
    assert run.end() == 0, run.text
    return run.text


def database(folder: Folder) -> Path:
    """The folder's SQLite file."""
    return folder.press / "modelpress.db"


def query(folder: Folder, sql: str) -> list[tuple[object, ...]]:
    """Ask the folder's database."""
    with closing(sqlite3.connect(database(folder))) as connection:
        return connection.execute(sql).fetchall()


def leftovers(folder: Folder) -> list[str]:
    """Return unfinished files and folders in the work folder."""
    return [path.name for path in folder.press.rglob("*") if ".partial" in path.name or path.name.startswith("tmp")]


@contextmanager
def small_disk(where: Path, size: str) -> Iterator[Callable[[str], None] | None]:
    """Mount a tmpfs of this size, such as `512k`; gives a function that resizes it, or None where this system does not let us."""
    where.mkdir(parents=True, exist_ok=True)
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", where], check=False, capture_output=True
    )
    if not mounted or mounted.returncode:
        yield None
        return
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", where], check=True) and None
    finally:
        subprocess.run(["umount", "-l", where], check=False)
