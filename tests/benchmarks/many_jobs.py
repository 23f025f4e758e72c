"""The queue and the store at 100,000 jobs: jobs/s for claim + record, the plan, what people look at; SQLite, and PostgreSQL where it is.

python tests/benchmarks/many_jobs.py                    # minutes on two cores
python tests/benchmarks/many_jobs.py --jobs 10000       # quicker
python tests/benchmarks/many_jobs.py --only sqlite

Each number of SQLite stands beside a loop of plain INSERTs of rows as many and as large, one transaction a job, in the same kind of file.
"""

from __future__ import annotations

import argparse
import importlib.util
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from sqlalchemy import text

from hub.codec import to_json
from hub.domain import (
    Artifact,
    ArtifactFile,
    Calibration,
    Environment,
    Job,
    JobResult,
    Measurement,
    ModelRef,
    Recipe,
    Scores,
    Step,
    StepRecord,
    Thresholds,
)
from hub.protocol import Memory, Protocol, Quality, Speed, Text
from hub.scheduling import Expectation, Plan, Prediction
from hub.store import Store

REPO = Path(__file__).resolve().parent.parent.parent
RECIPES = 40
BAR = 200.0
AT = "2026-01-01T00:00:00+00:00"
PROTOCOL = Protocol(
    name="held-out@512",
    text=Text(name="held-out", sha256="0" * 64),
    quality=Quality(sequence_length=512, windows=64),
    speed=Speed(batches=(1,), contexts=(16,), modes=("eager",), new_tokens=16, repeats=3, seconds=0.0, warmup=1),
    memory=Memory(contexts=(), loads=3),
)
ENVIRONMENT = Environment(
    hardware="a processor", device="cpu", cores=2, memory_bytes=2**34, system="Linux", python="3.11", libraries={"torch": "2.9.0"}
)


def recipe(number: int) -> Recipe:
    """Return one of many recipes."""
    calibration = Calibration(text="stdlib", samples=128, sequence_length=512, seed=number)
    step = Step(method="gptq", scheme="W4A16", params={"group_size": 128, "damp": 0.01}, calibration=calibration)
    limits = Thresholds(kl_divergence=0.1, perplexity_ratio=1.1)
    return Recipe(name=f"gptq-{number}", title="GPTQ", summary="Rounds.", format="gptq", steps=(step,), thresholds=limits)


def expectation(number: int) -> Expectation:
    """Return what a job is expected to take."""
    guess = Prediction(value=100.0 + number, factor=1.5, samples=12)
    sizes = {"disk_bytes": 10**9, "cost": 0.1, "shape_seconds": 90.0, "shape_memory_bytes": 2e9, "parameters": 10**9}
    return Expectation(
        value=1 / (1 + number), popularity=0.5, gain=0.7, seconds=guess, memory_bytes=guess, reason="It is popular.", **sizes
    )  # type: ignore[arg-type]


def make_plan(count: int) -> Plan:
    """Return a plan of `count` jobs: by model its measurement, then press and measurement of each variant."""
    jobs: list[Job] = []
    needs: dict[str, frozenset[str]] = {}
    recipes = [recipe(number) for number in range(RECIPES)]
    while len(jobs) < count:
        base = ModelRef(repo_id=f"people/model-{len(jobs)}", sha=f"{len(jobs):040x}")
        first = Job(kind="measure", base=base, protocol=PROTOCOL)
        jobs.append(first)
        for one in recipes:
            press = Job(kind="press", base=base, recipe=one)
            measure = Job(kind="measure", base=base, recipe=one, protocol=PROTOCOL)
            needs[press.id], needs[measure.id] = frozenset({first.id}), frozenset({first.id, press.id})
            jobs += [press, measure]
    jobs = jobs[:count]
    ids = {job.id for job in jobs}
    return Plan(
        jobs=tuple(jobs),
        refusals=(),
        done=0,
        needs={job: before for job, before in needs.items() if job in ids},
        expected={job.id: expectation(number) for number, job in enumerate(jobs)},
    )


def result(job: Job) -> JobResult:
    """Return what a job may give: an artifact of six files, or 30 numbers with the scores of 64 windows."""
    common = {"job_id": job.id, "environment": ENVIRONMENT, "started_at": AT, "seconds": 12.0, "peak_memory_bytes": 2**30}
    stages = {"load": 1.0, "work": 10.0, "save": 1.0}
    if job.kind == "press" and job.recipe:
        files = tuple(ArtifactFile(path=f"model-{n}.safetensors", size=10**8 + n, sha256=f"{n:064x}") for n in range(6))
        layers = {f"model.layers.{n}.up_proj": {"bits": 4, "damp": 0.01} for n in range(32)}
        artifact = Artifact(
            variant_id=job.variant_id or "",
            base=job.base,
            recipe=job.recipe,
            files=files,
            parameters=10**9,
            made_at=AT,
            libraries=ENVIRONMENT.libraries,
            steps=(StepRecord(method="gptq", text_sha256="1" * 64, samples_sha256="2" * 64, layers=layers),),
        )
        return JobResult(artifact=artifact, stages=stages, **common)  # type: ignore[arg-type]
    number = Measurement(
        metric="",
        value=1.5,
        unit="1",
        higher_is_better=False,
        ci_low=1.25,
        ci_high=1.75,
        interval="bootstrap",
        samples=64,
        protocol=PROTOCOL.name,
        engine="transformers",
        measured_at=AT,
        percentiles={"p5": 1.0, "p50": 1.5, "p95": 2.0},
    )
    numbers = tuple(replace(number, metric=f"metric_{n // 3}", conditions={"batch": n % 3} if n % 3 else {}) for n in range(30))
    values = {"perplexity": (2.5,) * 64, "kl_divergence": (0.125,) * 64}
    scores = Scores(source="windows", fingerprint="f" * 64, tokenizer_sha256="e" * 64, values=values, sizes={"tokens": (511,) * 64})
    return JobResult(measurements=numbers, scores=(scores,), stages=stages, **common)  # type: ignore[arg-type]


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Print how long the block took."""
    began = time.perf_counter()
    yield
    print(f"  {name:<58} {time.perf_counter() - began:8.2f} s")


def work(store: Store, count: int) -> tuple[float, float, list[Job]]:
    """Claim and record so many jobs, as a dispatcher of one slot does; return jobs/s, this process's milliseconds a job, and the jobs."""
    done: list[Job] = []
    results = 0.0  # making a result is the farm's time, not the store's
    began, cpu_began = time.perf_counter(), time.process_time()
    while len(done) < count:
        claim = store.queue.claim("bench", kinds=("press", "measure"), prefer=done[-1].base if done else None)
        if claim is None:
            break
        made = time.perf_counter()
        outcome = result(claim.job)
        results += time.perf_counter() - made
        if not store.finish(claim.job, outcome, owner="bench"):
            raise RuntimeError(f"{claim.job.title} was not recorded")
        done.append(claim.job)
    seconds, cpu = time.perf_counter() - began - results, time.process_time() - cpu_began
    again = time.process_time()  # asked once: on some systems to ask takes as long as a statement
    for job in done:
        result(job)
    cpu -= time.process_time() - again
    return len(done) / seconds, 1000 * cpu / len(done), done


def nearly_done(store: Store, left: int) -> None:
    """Mark all but `left` of the planned jobs as done, with 15 numbers for each, as the table would hold them."""
    with store._database.writing(alone=True) as session:
        session.execute(
            text("UPDATE jobs SET state = 'done' WHERE state = 'planned' AND number <= (SELECT MAX(number) FROM jobs) - :left"),
            {"left": left},
        )
        names = "environment_id, metric, value, unit, higher_is_better, ci_low, ci_high, ci_method, samples, engine, measured_at"
        values = ", ".join(f"one.{name}" for name in names.split(", "))
        one = "SELECT * FROM measurements WHERE job_id = (SELECT MIN(job_id) FROM measurements) ORDER BY id LIMIT 15"
        session.execute(
            text(
                f"INSERT INTO measurements (job_id, model_id, variant_id, protocol_id, {names}, conditions, percentiles) "
                f"SELECT jobs.id, jobs.model_id, jobs.variant_id, one.protocol_id, {values}, conditions, percentiles "
                f"FROM jobs CROSS JOIN ({one}) AS one WHERE jobs.state = 'done' AND jobs.seconds IS NULL"
            )
        )
        done_needs = "SELECT COUNT(*) FROM job_needs JOIN jobs AS n ON n.id = needs WHERE job_id = jobs.id AND n.state <> 'done'"
        session.execute(text(f"UPDATE jobs SET waits_for = ({done_needs}) WHERE state = 'planned'"))


def plain(jobs: list[Job], folder: Path) -> float:
    """Return jobs/s of a loop of plain INSERTs: as many rows of the same text a job, each job a transaction kept safe on the disk."""
    connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE found (id INTEGER PRIMARY KEY, job TEXT, name TEXT, value REAL, document TEXT)")
    connection.execute("CREATE INDEX by_job ON found (job, name)")
    rows = []
    for job in jobs:
        made = result(job)
        parts: list[object] = [job, made.stages, *made.measurements, *made.scores]
        parts += [*made.artifact.files, made.artifact.steps] if made.artifact else []
        rows.append([(job.id, type(part).__name__, 1.5, to_json(part)) for part in parts])
    began = time.perf_counter()
    for of_job in rows:
        connection.execute("BEGIN IMMEDIATE")
        for row in of_job:
            connection.execute("INSERT INTO found (job, name, value, document) VALUES (?, ?, ?, ?)", row)
        connection.execute("COMMIT")
    spent = time.perf_counter() - began
    connection.close()
    return len(jobs) / spent


def bench(address: str, plan: Plan, few: int, folder: Path) -> None:
    """Time everything on one database, and print it."""
    with Store(address) as store:
        with timed(f"record a plan of {len(plan.jobs):,} jobs"):
            store.record_plan(plan)
        with timed("record it again"):
            store.record_plan(plan)
        rate, cpu, jobs = work(store, few)
        bar = plain(jobs, folder) if address.startswith("sqlite") else None
        beside = f"plain INSERTs {bar:.0f} jobs/s, ratio {rate / bar:.2f}" if bar else ""
        print(f"  claim + record, at the beginning: {rate:.0f} jobs/s ({len(jobs)} jobs, {cpu:.1f} ms of CPU each)   {beside}")
        gone = {job.id for job in jobs}
        later = replace(plan, jobs=tuple(job for job in plan.jobs if job.id not in gone))
        with timed("record a plan after these were done: each job moves up"):
            store.record_plan(later)
        with timed("read all jobs (store.jobs)"):
            found = len(store.jobs())
        with timed(f"count {found:,} jobs by state (queue.counts)"):
            counts = store.queue.counts()
        with timed("all at a glance (reader.overview)"):
            store.reader.overview()
        nearly_done(store, few)
        rate, cpu, jobs = work(store, few)
        before = sum(counts.values()) - len(jobs)
        print(f"  claim + record, at the end:       {rate:.0f} jobs/s ({cpu:.1f} ms of CPU each, {before:,} done before)")
        if address.startswith("sqlite") and rate < BAR:
            print(f"  below the bar of {BAR:.0f} jobs/s: is the machine quiet? This process's CPU allows {1000 / cpu:.0f} jobs/s")


def postgresql() -> ModuleType:
    """Load the tests' server, which is in no package."""
    spec = importlib.util.spec_from_file_location("conftest", REPO / "tests" / "hub" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["conftest"] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run on SQLite, then on PostgreSQL where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--few", type=int, default=1000, help="how many jobs are claimed and recorded each time")
    parser.add_argument("--only", choices=("sqlite", "postgresql"))
    given = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with timed("make the plan, which is the planner's time"):
        plan = make_plan(given.jobs)
    with tempfile.TemporaryDirectory() as scratch:
        if given.only != "postgresql":
            print("SQLite")
            bench(f"sqlite:///{scratch}/modelpress.db", plan, given.few, Path(scratch))
        if given.only != "sqlite":
            module = postgresql()
            try:
                server = module.PostgreSQL(module.postgresql_binaries())
            except BaseException as error:  # pytest's Skipped is one
                print(f"PostgreSQL: {error}")
                return
            print("PostgreSQL (no fsync)")
            try:
                bench(server.migrated(), plan, given.few, Path(scratch))
            finally:
                server.remove()


if __name__ == "__main__":
    main()
