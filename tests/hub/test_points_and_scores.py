"""Points of a curve, scores by window, and databases from before there were any."""

from __future__ import annotations

import json
import math
import signal
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Job, JobResult, Measurement, ModelRef, Scores
from hub.errors import BadDocument
from hub.planner import plan
from hub.protocol import Memory, Protocol, Quality, Speed, Text
from hub.store import Store

WINDOWS = Scores(
    source="windows",
    fingerprint="f" * 64,
    tokenizer_sha256="e" * 64,
    values={"perplexity": (2.5, 2.25, 2.75), "kl_divergence": (0.5, 0.25, 0.125)},
    sizes={"tokens": (511, 511, 511), "bytes": (1800, 1750, 1900)},
)
TASK = Scores(source="boolq", fingerprint="b" * 64, tokenizer_sha256="e" * 64, values={"acc": (1.0, 0.0)})


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def curve(number: Measurement) -> tuple[Measurement, ...]:
    points = ({"mode": "eager", "batch": batch, "context": 2048} for batch in (1, 8))
    return tuple(replace(number, value=number.value * point["batch"], conditions=point) for point in points)


class TestPoints:
    def test_points_come_back_beside_their_headline(self, store: Store, farm: Any, words: Any, url: str) -> None:
        job = words.measure()
        result = farm.run(job)
        store.record_models([words.candidate()], "2026-01-01T00:00:00+00:00")
        headline = replace(result.measurements[0], percentiles={"p5": 0.5, "p95": 2.0})
        estimated = replace(headline, metric="kv_cache", conditions={"context": 32768}, basis="estimated")
        given = (headline, *curve(headline), estimated)
        store.finish(job, replace(result, measurements=given))
        assert store.bases()[0].measurements == given
        assert rows(url, "SELECT conditions, basis, percentiles FROM v_results") == [
            ("{}", "measured", '{"p5": 0.5, "p95": 2.0}'),
            ('{"batch": 1, "context": 2048, "mode": "eager"}', "measured", '{"p5": 0.5, "p95": 2.0}'),
            ('{"batch": 8, "context": 2048, "mode": "eager"}', "measured", '{"p5": 0.5, "p95": 2.0}'),
            ('{"context": 32768}', "estimated", '{"p5": 0.5, "p95": 2.0}'),
        ]

    def test_points_that_make_no_sense_are_refused(self, store: Store, farm: Any, words: Any, url: str) -> None:
        job = words.measure()
        good: JobResult = farm.run(job)
        number = good.measurements[0]
        point = replace(number, conditions={"batch": 8, "mode": "eager"})
        same = replace(number, conditions={"mode": "eager", "batch": 8})
        bad = {
            "2 times, not once": (number, point, same),
            "batch = nan": (replace(point, conditions={"batch": math.nan}),),
            r"batch = \[8\]": (replace(point, conditions={"batch": [8]}),),  # type: ignore[dict-item]
            "no finite number": (replace(number, percentiles={"p95": math.inf}),),
        }
        for words_, measurements in bad.items():
            with pytest.raises(BadDocument, match=words_):
                store.finish(job, replace(good, measurements=measurements))
        assert rows(url, "SELECT COUNT(*) FROM measurements") == [(0,)]
        store.finish(job, replace(good, measurements=(number, point)))
        assert rows(url, "SELECT COUNT(*) FROM measurements") == [(2,)]


class TestScores:
    def test_scores_notes_and_state_come_back(self, store: Store, farm: Any, words: Any, url: str) -> None:
        store.finish(words.press(), farm.run(words.press()))
        job = words.measure(recipe=words.recipe())
        result = replace(farm.run(job), scores=(WINDOWS, TASK), notes=("Batch 64 does not fit.",), state={"load": 0.5})
        store.finish(job, result)
        (measured,) = store.measured(job.id)
        assert (measured.id, measured.job, measured.environment) == (job.id, job, result.environment)
        assert (measured.measurements, measured.notes, measured.state) == (result.measurements, result.notes, result.state)
        assert store.scores(job.id) == [TASK, WINDOWS]
        assert store.scores("0" * 16) == []
        assert rows(url, "SELECT variant, source, samples, fingerprint FROM v_scores ORDER BY source") == [
            ("tiny-round-w8", "boolq", 2, "b" * 64),
            ("tiny-round-w8", "windows", 3, "f" * 64),
        ]
        store.forget(job.variant_id or "")
        assert store.scores(job.id) == []

    def test_what_was_measured_is_found_by_any_of_its_names_newest_first(self, store: Store, farm: Any, words: Any) -> None:
        store.finish(words.press(), farm.run(words.press()))
        of_base, of_variant = words.measure(), words.measure(recipe=words.recipe())
        later = replace(of_variant, protocol=replace(words.protocol, name="held-out@64"))
        for minute, job in enumerate((of_base, of_variant, later)):
            store.finish(job, replace(farm.run(job), started_at=f"2026-01-01T00:0{minute}:00+00:00"))
        other = words.measure(ModelRef(repo_id="people/tiny", sha="b" * 40))
        store.finish(other, replace(farm.run(other), started_at="2025-01-01T00:00:00+00:00"))
        store.start(words.measure(words.model("unmeasured")))
        found = {name: [job.id for job in store.measured(name)] for name in (of_variant.variant_id, "tiny-round-w8", "people/tiny")}
        assert found[of_variant.variant_id] == found["tiny-round-w8"] == [later.id, of_variant.id]
        assert found["people/tiny"] == [of_base.id, other.id]
        assert [job.id for job in store.measured("people/tiny@bb")] == [other.id]
        assert store.measured("people/unmeasured") == store.measured("people/tiny@%") == []

    def test_scores_that_make_no_sense_are_refused(self, store: Store, farm: Any, words: Any, url: str) -> None:
        job = words.measure()
        good: JobResult = farm.run(job)
        bad = {
            "2 times, not once": (WINDOWS, WINDOWS),
            "different lengths": (replace(WINDOWS, sizes={"tokens": (511,)}),),
            "different lengths: ": (replace(WINDOWS, values={}, sizes={}),),
            "no finite numbers": (replace(WINDOWS, values={"perplexity": (2.5, math.nan, 2.0)}),),
        }
        for message, scores in bad.items():
            with pytest.raises(BadDocument, match=message):
                store.finish(job, replace(good, scores=scores))
        press = words.press()
        with pytest.raises(BadDocument, match="that is measured"):
            store.finish(press, replace(farm.run(press), scores=(WINDOWS,)))
        assert rows(url, "SELECT COUNT(*) FROM scores") == [(0,)]


FLAT = {
    "name": "held-out@512",
    "text": "held-out",
    "text_sha256": "0" * 64,
    "sequence_length": 512,
    "windows": 8,
    "prompt_tokens": 16,
    "new_tokens": 16,
    "repeats": 9,
    "warmup": 1,
}
IN_SECTIONS = Protocol(
    name="held-out@512",
    text=Text(name="held-out", sha256="0" * 64),
    quality=Quality(sequence_length=512, windows=8),
    speed=Speed(batches=(1,), contexts=(16,), modes=("eager",), new_tokens=16, repeats=9, seconds=0.0, warmup=1),
    memory=Memory(contexts=(), loads=3),
)


def of_revision(path: Path, revision: str) -> sqlite3.Connection:
    """An empty database of an older program."""
    from alembic import command
    from alembic.config import Config
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "hub:migrations")
        command.upgrade(config, revision)
    engine.dispose()
    return sqlite3.connect(path)


def filled_of_old(store: Store, farm: Any, words: Any, url: str, path: Path) -> list[Job]:
    """Fill a store and write what it holds as the program before this revision did; return the jobs."""
    store.record_models([words.candidate()], "2026-01-01T00:00:00+00:00")
    jobs = [words.measure(), words.press(), words.measure(recipe=words.recipe())]
    for job in jobs:
        store.finish(job, farm.run(job))
    old = of_revision(path, "0002")
    old.execute("ATTACH ? AS new", (url.removeprefix("sqlite:///"),))
    for (table,) in old.execute("SELECT name FROM main.sqlite_master WHERE type = 'table' AND name <> 'alembic_version'").fetchall():
        own, other = ([column[1] for column in old.execute(f"PRAGMA {place}.table_info({table})")] for place in ("main", "new"))
        columns = ", ".join(name for name in own if name in other)  # what a later revision dropped was NULL for jobs that are done
        old.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
    old.execute("UPDATE protocols SET document = ?", (json.dumps(FLAT),))
    for job in jobs:
        ((document,),) = old.execute("SELECT document FROM main.jobs WHERE id = ?", (job.id,)).fetchall()
        flat = {**json.loads(document), "protocol": FLAT if job.protocol else None}
        old.execute("UPDATE jobs SET document = ? WHERE id = ?", (json.dumps(flat), job.id))
    old.commit()
    old.close()
    return jobs


def test_a_database_with_flat_protocols_opens_and_shows_its_numbers(store: Store, farm: Any, words: Any, url: str, tmp_path: Path) -> None:
    jobs = filled_of_old(store, farm, words, url, tmp_path / "old.db")
    bases, variants = store.bases(), store.variants()
    with Store(tmp_path / "old.db") as opened:
        assert (opened.bases(), opened.variants()) == (bases, variants)
        assert [record.job for record in opened.jobs()] == [replace(j, protocol=IN_SECTIONS) if j.protocol else j for j in jobs]
        assert opened.done() == {job.id for job in jobs}
        (measured,) = opened.measured(jobs[0].id)
        assert (measured.notes, measured.state, measured.job.protocol) == ((), {}, IN_SECTIONS)
        again = plan([words.model()], [words.recipe()], IN_SECTIONS, opened.done())
        assert [job.kind for job in again.jobs] == ["measure", "measure"], "what was pressed stays, what was measured is measured again"
        opened.record_plan(again)
        for job in again.jobs:
            opened.finish(job, farm.run(job))
        assert [len(record.measurements) for record in (*opened.bases(), *opened.variants())] == [4, 4]
    found = f"sqlite:///{tmp_path / 'old.db'}"
    assert rows(found, "PRAGMA foreign_key_check") == []
    assert rows(found, "SELECT COUNT(*) FROM v_results WHERE conditions = '{}' AND basis = 'measured'") == [(8,)]


KILLED = """
import os, signal, sys
from sqlalchemy import Engine, event
from hub.store import Store

def die(connection, cursor, statement, parameters, context, many):
    if sys.argv[2] in statement:
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(Engine, "before_cursor_execute", die)
Store(sys.argv[1])
"""


@pytest.mark.integration
@pytest.mark.parametrize("statement", ["DROP TABLE measurements", "UPDATE jobs", "UPDATE alembic_version"])
def test_kill_9_while_the_tables_are_made_anew_loses_nothing(
    store: Store, farm: Any, words: Any, url: str, tmp_path: Path, statement: str
) -> None:
    path = tmp_path / "old.db"
    filled_of_old(store, farm, words, url, path)
    before = rows(f"sqlite:///{path}", "SELECT * FROM v_results")
    child = subprocess.run([sys.executable, "-c", KILLED, f"sqlite:///{path}", statement], check=False)
    assert child.returncode == -signal.SIGKILL
    assert rows(f"sqlite:///{path}", "SELECT version_num FROM alembic_version") == [("0002",)]
    assert rows(f"sqlite:///{path}", "SELECT * FROM v_results") == before
    with Store(path) as opened:
        assert (opened.bases(), opened.variants()) == (store.bases(), store.variants())
