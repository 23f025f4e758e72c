"""A small world for the store, the planner and the dispatcher: models are lists of numbers, and pressing one rounds them for real."""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import math
import os
import platform
import pwd
import random
import shutil
import signal
import statistics
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from hub.domain import (
    Artifact,
    ArtifactFile,
    Candidate,
    Environment,
    Facts,
    Failure,
    Job,
    JobResult,
    Measurement,
    ModelRef,
    Recipe,
    Step,
    Thresholds,
)
from hub.errors import JobDied, TimedOut, UnfitModel
from hub.protocol import Memory, Protocol, Quality, Speed, Text
from hub.store import Store
from hub.tables import HEAD, Table

WEIGHTS = 512


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Words:
    """Makes the domain's values with little typing."""

    protocol = Protocol(
        name="held-out@512",
        text=Text(name="held-out", sha256="0" * 64),
        quality=Quality(sequence_length=512, windows=8),
        speed=Speed(batches=(1,), contexts=(16,), modes=("eager",), new_tokens=16, repeats=3, seconds=0.0, warmup=1),
        memory=Memory(contexts=(), loads=3),
    )

    def model(self, name: str = "tiny", sha: str = "a" * 40) -> ModelRef:
        return ModelRef(repo_id=f"people/{name}", sha=sha)

    def recipe(self, bits: int = 8, name: str = "", **words: str) -> Recipe:
        return Recipe(
            name=name or f"round-w{bits}",
            title=words.get("title", f"{bits}-bit rounding"),
            summary="Rounds each number.",
            format="packed",
            steps=(Step(method="round", scheme=f"W{bits}", params={"bits": bits}),),
            thresholds=Thresholds(kl_divergence=0.1, perplexity_ratio=1.1),
        )

    def press(self, model: ModelRef | None = None, recipe: Recipe | None = None) -> Job:
        return Job(kind="press", base=model or self.model(), recipe=recipe or self.recipe())

    def measure(self, model: ModelRef | None = None, recipe: Recipe | None = None) -> Job:
        return Job(kind="measure", base=model or self.model(), recipe=recipe, protocol=self.protocol)

    def failure(self, job: Job, *, retryable: bool = False) -> Failure:
        return Failure(job_id=job.id, error="UnfitModel", reason="no", hint="try another", log_tail="…\n", seconds=0.5, retryable=retryable)

    def candidate(self, ref: ModelRef | None = None, downloads: int = 1000) -> Candidate:
        return Candidate(
            ref=ref or self.model(),
            downloads=downloads,
            likes=7,
            trending_score=1.5,
            created_at=now(),
            last_modified=now(),
            license="apache-2.0",
            license_name=None,
            license_link=None,
            gated=None,
            private=False,
            library_name="transformers",
            pipeline_tag="text-generation",
            architecture="LlamaForCausalLM",
            base_models=(),
            tags=("a",),
            languages=("en",),
            parameters=WEIGHTS,
            files=(),
        )


@dataclass
class RoundingFarm:
    """A farm in this process: rounds the numbers of a model to `bits`, writes them, and measures how far off they are.

    Refuses 0 bits as unfit, and knows no more than 16, which it meets with an exception of its own. `pause` makes a job take longer, of
    which it can be cancelled or run out of time; `during` is called in it, once it has begun. `economies` holds how sparing each job was
    told to be.
    """

    folder: Path
    pause: float = 0.0
    slots: int = 1
    exclusive_measures: bool = True
    events: list[tuple[str, Job]] = field(default_factory=list)
    economies: list[tuple[str, int]] = field(default_factory=list)
    during: Callable[[Job], None] = lambda job: None
    _running: dict[str, threading.Event] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cancel(self, job_id: str) -> None:
        with self._lock:
            if job_id in self._running:
                self._running[job_id].set()

    def run(self, job: Job, *, folder: Path | None = None, economy: int = 0, timeout_s: float | None = None) -> JobResult | Failure:
        cancelled = threading.Event()
        with self._lock:
            self.events.append(("begin", job))
            self.economies.append((job.label, economy))
            self._running[job.id] = cancelled
        began = time.monotonic()
        try:
            self.during(job)
            if self.pause and cancelled.wait(min(self.pause, timeout_s or self.pause)):
                raise JobDied("the job was ended on request")
            if timeout_s is not None and self.pause > timeout_s:
                raise TimedOut(f"the job took longer than {timeout_s:g} s")
            work = {"press": self._press, "measure": self._measure, "inspect": self._inspect}[job.kind]
            return work(job, began)
        finally:
            with self._lock:
                self.events.append(("end", job))

    def _press(self, job: Job, began: float) -> JobResult:
        assert job.recipe is not None
        bits = int(job.recipe.steps[0].params["bits"])
        if bits == 0:
            raise UnfitModel("0 bits hold no number", hint="take at least 1")
        levels = {n: 2**n for n in range(1, 17)}[bits]
        rounded = struct.pack(f"<{WEIGHTS}H", *(min(levels - 1, int(x * levels)) for x in weights(job.base)))
        path = self._path(job)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: another thread may press the same variant, and a third one measure it meanwhile.
        beside = path.with_name(f"{path.name}.{threading.get_ident()}")
        beside.write_bytes(rounded)
        beside.replace(path)
        file = ArtifactFile(path=path.name, size=len(rounded), sha256=hashlib.sha256(rounded).hexdigest())
        artifact = Artifact(
            variant_id=job.variant_id or "",
            base=job.base,
            recipe=job.recipe,
            files=(file,),
            parameters=WEIGHTS,
            made_at=now(),
            libraries={"struct": platform.python_version()},
        )
        return self._result(job, began, artifact=artifact)

    def _measure(self, job: Job, began: float) -> JobResult:
        true = weights(job.base)
        found = true
        if job.recipe is not None:
            levels = 2 ** int(job.recipe.steps[0].params["bits"])
            found = [(level + 0.5) / levels for level in struct.unpack(f"<{WEIGHTS}H", self._path(job).read_bytes())]
        errors = [abs(a - b) for a, b in zip(true, found, strict=True)]
        mean = statistics.fmean(errors)
        half = 1.96 * statistics.stdev(errors) / math.sqrt(len(errors))
        size = float(WEIGHTS * 8 if job.recipe is None else self._path(job).stat().st_size)
        numbers = (
            self._number(job, "kl_divergence", mean, "nat/token", mean - half, mean + half),
            self._number(job, "disk_size", size, "B", size, size),
        )
        return self._result(job, began, measurements=numbers)

    def _inspect(self, job: Job, began: float) -> JobResult:
        size = self._path(job).stat().st_size
        facts = Facts(
            loads=size == 2 * WEIGHTS,
            load_error="",
            tensors=1,
            packed_expected=1,
            packed_found=1,
            not_packed=(),
            non_finite=(),
            tensor_bytes_expected=2 * WEIGHTS,
            tensor_bytes_found=size,
            missing_files=(),
            unexpected_files=(),
            checksum_errors=(),
            prompt="1 2 3",
            generated_ids=(4, 5),
            generated_text=" 4 5",
        )
        return self._result(job, began, facts=facts)

    def _path(self, job: Job) -> Path:
        return self.folder / (job.variant_id or "") / "weights.bin"

    def _number(self, job: Job, metric: str, value: float, unit: str, low: float, high: float) -> Measurement:
        return Measurement(
            metric=metric,
            value=value,
            unit=unit,
            higher_is_better=False,
            ci_low=low,
            ci_high=high,
            interval="normal",
            samples=WEIGHTS,
            protocol=job.protocol.name if job.protocol else "",
            engine="python",
            measured_at=now(),
        )

    def _result(
        self,
        job: Job,
        began: float,
        *,
        artifact: Artifact | None = None,
        measurements: tuple[Measurement, ...] = (),
        facts: Facts | None = None,
    ) -> JobResult:
        seconds = time.monotonic() - began
        return JobResult(
            job_id=job.id,
            environment=environment(),
            started_at=now(),
            seconds=seconds,
            stages={"work": seconds},
            peak_memory_bytes=2**20,
            artifact=artifact,
            measurements=measurements,
            facts=facts,
        )


def weights(base: ModelRef) -> list[float]:
    """The numbers of a model: drawn from [0, 1) with its name and commit as the seed."""
    return [random.Random(f"{base.repo_id}@{base.sha}:{i}").random() for i in range(WEIGHTS)]


def environment() -> Environment:
    """This machine."""
    return Environment(
        hardware=platform.machine(),
        device="cpu",
        cores=os.cpu_count() or 1,
        memory_bytes=2**30,
        system=platform.system(),
        python=platform.python_version(),
        libraries={},
    )


@pytest.fixture(scope="session")
def words() -> Words:
    return Words()


@pytest.fixture
def farm(tmp_path: Path) -> RoundingFarm:
    return RoundingFarm(tmp_path / "artifacts")


class PostgreSQL:
    """A real PostgreSQL server of its own in a scratch folder, reached by a socket there.

    It keeps nothing safe (no fsync), and the kernel ends it with the process that started it.
    """

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._user = {"user": "postgres", "group": "postgres", "extra_groups": ()} if os.geteuid() == 0 else {}
        self._folder = Path(tempfile.mkdtemp(prefix="modelpress-postgresql-", dir="/tmp"))  # a socket's path must be short
        self._numbers = itertools.count()
        self._shared = ""
        if self._user:
            shutil.chown(self._folder, "postgres", "postgres")
        make = [binaries / "initdb", "-D", self._folder / "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(make, check=True, capture_output=True, cwd="/", **self._user)  # type: ignore[call-overload]
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = {"listen_addresses": "", "unix_socket_directories": self._folder, "fsync": "off", "full_page_writes": "off"}
        command = [self._binaries / "postgres", "-D", self._folder / "data", *(f"--{name}={value}" for name, value in options.items())]
        with (self._folder / "log").open("ab") as log:
            self._server = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", preexec_fn=_end_with_parent, **self._user)  # type: ignore[call-overload]
        patience = time.monotonic() + 60
        while subprocess.run([self._binaries / "pg_isready", "-q", "-h", self._folder], check=False).returncode:
            if self._server.poll() is not None or time.monotonic() > patience:
                raise RuntimeError(f"PostgreSQL does not start: {(self._folder / 'log').read_text()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End all connections and the server."""
        self._server.send_signal(signal.SIGINT)
        self._server.wait(60)

    def remove(self) -> None:
        """End the server at once, and remove its folder."""
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, statement: str, database: str = "postgres") -> None:
        """Run statements as the server's superuser."""
        subprocess.run(
            [
                self._binaries / "psql",
                "-qX",
                "-h",
                self._folder,
                "-U",
                "postgres",
                "-d",
                database,
                "-v",
                "ON_ERROR_STOP=1",
                "-c",
                statement,
            ],
            check=True,
            capture_output=True,
        )

    def url(self) -> str:
        """Return the address of a new database, which holds nothing."""
        name = f"test_{next(self._numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return self._address(name)

    def migrated(self) -> str:
        """Return the address of the one database that tests share in turn, migrated and emptied: a new one would be 7 MiB for each."""
        if not self._shared:
            self._shared = self.url()
            Store(self._shared).close()
        tables = ", ".join(Table.metadata.tables)
        name = make_url(self._shared).database or ""
        self.run(f"UPDATE alembic_version SET version_num = '{HEAD}'; TRUNCATE {tables} RESTART IDENTITY", name)
        return self._shared

    def _address(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@/{name}?host={self._folder}"


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # 1: PR_SET_PDEATHSIG; SIGQUIT: at once


def postgresql_binaries() -> Path:
    """Return the newest PostgreSQL's folder; skip where there is none or where it cannot be started."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    on_path = shutil.which("initdb")
    if on_path and not found:
        found = [Path(on_path).resolve()]
    if not found:
        pytest.skip("no PostgreSQL here (initdb is neither in /usr/lib/postgresql nor on the PATH): apt install postgresql")
    if os.geteuid() == 0 and not any(entry.pw_name == "postgres" for entry in pwd.getpwall()):
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    pytest.importorskip("psycopg", reason="the driver psycopg is not installed: pip install 'psycopg[binary]'")
    return found[-1].parent


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """The PostgreSQL server of all tests that ask for it; they skip, with the reason, where there is none."""
    server = PostgreSQL(postgresql_binaries())
    yield server
    server.remove()


@pytest.fixture
def sqlite(tmp_path: Path, new_database: Path) -> str:
    """The address of a new SQLite database."""
    return f"sqlite:///{shutil.copyfile(new_database, tmp_path / 'modelpress.db')}"


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def either(request: pytest.FixtureRequest) -> str:
    """The address of a new database of each kind in turn."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("sqlite"))
    return str(request.getfixturevalue("postgresql").migrated())


@pytest.fixture
def empty(either: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database of the same kind as `either` that holds nothing yet."""
    if either.startswith("sqlite"):
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return str(request.getfixturevalue("postgresql").url())


@pytest.fixture
def url(sqlite: str) -> str:
    return sqlite


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url) as store:
        yield store
