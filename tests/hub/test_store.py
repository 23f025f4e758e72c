from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, inspect, select, text
from sqlalchemy.exc import IntegrityError

from hub import owners
from hub.domain import Environment, JobResult, LayerError, ModelRef, Refusal, StepRecord
from hub.errors import BadDocument, StoreError
from hub.history import Check, Release, VariantRecord, Verdict
from hub.scheduling import Plan
from hub.store import Store
from hub.tables import HEAD, Table

DOCS = Path(__file__).resolve().parents[2] / "docs" / "results.md"
COLUMNS = (
    *("base_model", "base_sha", "variant", "recipe", "method", "scheme", "format", "metric", "value", "unit"),
    *("ci_low", "ci_high", "higher_is_better", "protocol", "engine", "hardware", "measured_at"),
    *("conditions", "basis", "percentiles"),
)
SCORE_COLUMNS = (
    *("base_model", "base_sha", "variant", "recipe", "protocol", "source", "samples", "fingerprint", "tokenizer_sha256", "measured_at"),
)

LAYER_COLUMNS = (
    *("base_model", "base_sha", "variant", "recipe", "method", "scheme", "format", "layer", "error", "tokens"),
    *("protocol", "hardware", "measured_at"),
)


def documented(view: str) -> tuple[str, ...]:
    """The columns that docs/results.md lists for a view."""
    section = DOCS.read_text().split(f"\n## `{view}`\n")[1].split("\n## ")[0]
    return tuple(name for cell in re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", cell))


def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    return run(url, query)[1]


def write(url: str, statement: str) -> None:
    run(url, statement)


def run(url: str, statement: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Run a statement of plain SQL; return the columns and rows, if it gives any."""
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            result = connection.exec_driver_sql(statement)
            return (tuple(result.keys()), [tuple(row) for row in result]) if result.returns_rows else ((), [])
    finally:
        engine.dispose()


only_sqlite = pytest.mark.parametrize("either", ["sqlite"], indirect=True)


@pytest.fixture
def url(either: str) -> str:
    """Everything here holds for both databases, but for what is marked."""
    return either


def count(url: str, table: str) -> int:
    return int(rows(url, f"SELECT COUNT(*) FROM {table}")[0][0])


@pytest.fixture
def filled(store: Store, farm: Any, words: Any) -> Store:
    """A store with one base model and two variants, pressed and measured."""
    store.record_models([words.candidate()], "2026-01-01T00:00:00+00:00")
    for job in full_plan(words).jobs:
        assert store.start(job)
        store.finish(job, farm.run(job))
    return store


def full_plan(words: Any, bits: tuple[int, ...] = (4, 8)) -> Plan:
    jobs = [words.measure()]
    for recipe in map(words.recipe, bits):
        jobs += [words.press(recipe=recipe), words.measure(recipe=recipe)]
    return Plan(jobs=tuple(jobs), refusals=(), done=0)


class TestJobs:
    def test_a_job_goes_from_planned_to_done_and_keeps_what_it_took(self, store: Store, farm: Any, words: Any) -> None:
        job = words.press()
        store.record_plan(Plan(jobs=(job,), refusals=(), done=0))
        assert [(r.job, r.state, r.attempts) for r in store.jobs()] == [(job, "planned", 0)]
        assert store.start(job)
        assert [(r.state, r.attempts) for r in store.jobs()] == [("running", 1)]
        result = farm.run(job)
        store.finish(job, result)
        (record,) = store.jobs()
        assert (record.state, record.seconds, record.stages, record.failure) == ("done", result.seconds, result.stages, None)
        assert store.done() == {job.id}

    def test_a_running_or_done_job_is_not_started_again(self, store: Store, farm: Any, words: Any) -> None:
        job = words.measure()
        assert store.start(job)
        assert not store.start(job)
        store.finish(job, farm.run(job))
        assert not store.start(job)
        assert [(r.state, r.attempts) for r in store.jobs()] == [("done", 1)]

    def test_finishing_twice_changes_nothing(self, filled: Store, farm: Any, words: Any, url: str) -> None:
        tables = sorted(Table.metadata.tables)
        before = {table: rows(url, f"SELECT * FROM {table}") for table in tables}
        for job in full_plan(words).jobs:
            filled.finish(job, farm.run(job))
            filled.fail(job, words.failure(job))
            filled.put_back(job)
        assert {table: rows(url, f"SELECT * FROM {table}") for table in tables} == before

    def test_a_failure_is_kept_and_counted(self, store: Store, words: Any) -> None:
        job = words.press()
        for attempt in (1, 2):
            assert store.start(job)
            failure = words.failure(job, retryable=True)
            store.fail(job, failure)
            (record,) = store.jobs()
            assert (record.state, record.attempts, record.failure) == ("failed", attempt, failure)
            assert store.failed_attempts() == {job.id: (attempt, True)}
            (variant,) = store.variants()
            assert variant.failure == failure
        store.start(job)
        assert store.jobs()[0].failure is None

    def test_facts_of_an_inspection_are_kept(self, filled: Store, farm: Any, words: Any) -> None:
        job = replace(words.press(recipe=words.recipe(4)), kind="inspect", subject="digest")
        assert filled.facts(job) is None
        result = farm.run(job)
        filled.finish(job, result)
        assert filled.facts(job) == result.facts

    def test_results_that_make_no_sense_are_refused_and_leave_nothing(self, store: Store, farm: Any, words: Any, url: str) -> None:
        job = words.measure()
        good: JobResult = farm.run(job)
        number = good.measurements[0]
        bad = {
            "another job": replace(good, job_id="0" * 16),
            "no numbers": replace(good, measurements=()),
            "not finite": replace(good, measurements=(replace(number, value=math.nan),)),
            "twice": replace(good, measurements=(number, number)),
        }
        store.start(job)
        for result in bad.values():
            with pytest.raises(BadDocument):
                store.finish(job, result)
        assert count(url, "measurements") == 0
        assert [r.state for r in store.jobs()] == ["running"]

    def test_the_latest_plan_is_what_is_planned(self, store: Store, farm: Any, words: Any) -> None:
        store.record_plan(full_plan(words, (2, 4)))
        press = words.press(recipe=words.recipe(2))
        store.start(press)
        store.finish(press, farm.run(press))
        failed = words.press(recipe=words.recipe(4))
        store.start(failed)
        store.fail(failed, words.failure(failed))
        unfit = Refusal(repo_id="people/tiny", sha="a" * 40, code="unfit", reason="no", recipe="round-w3")
        store.record_plan(Plan(jobs=full_plan(words, (8,)).jobs, refusals=(unfit,), done=1))
        assert [(r.job.label.removeprefix("measure ").removeprefix("press "), r.state) for r in store.jobs()] == [
            ("tiny base", "planned"),
            ("tiny round-w2", "done"),
            ("tiny round-w4", "failed"),
            ("tiny round-w8", "planned"),
            ("tiny round-w8", "planned"),
        ]
        assert store.refusals() == [unfit]
        store.record_plan(Plan(jobs=(), refusals=(), done=1))
        assert [v.recipe.name for v in store.variants()] == ["round-w2", "round-w4"]
        assert store.refusals() == []

    def test_new_words_of_a_recipe_are_taken_over(self, filled: Store, words: Any, url: str) -> None:
        recipe = words.recipe(4, name="nibble", title="Nibbles")
        filled.record_plan(Plan(jobs=(words.press(recipe=recipe),), refusals=(), done=0))
        assert recipe in [record.recipe for record in filled.variants()]
        assert rows(url, "SELECT DISTINCT variant FROM v_results WHERE recipe = 'nibble'") == [("tiny-nibble",)]


class TestRecover:
    def test_jobs_of_this_living_process_stay(self, store: Store, words: Any) -> None:
        store.start(words.press())
        assert store.recover() == 0
        assert [r.state for r in store.jobs()] == ["running"]

    def test_jobs_of_a_dead_process_are_planned_again(self, store: Store, words: Any, url: str) -> None:
        store.start(words.press())
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        write(url, f"UPDATE jobs SET owner = '{owners.host()}:{child.pid}:0.00'")
        assert store.recover() == 1
        assert [(r.state, r.attempts) for r in store.jobs()] == [("planned", 0)]
        assert store.recover() == 0

    def test_a_process_with_the_same_number_but_another_start_is_not_the_same(self, store: Store, words: Any, url: str) -> None:
        store.start(words.press())
        name, _, began = owners.own().rpartition(":")
        write(url, f"UPDATE jobs SET owner = '{name}:{float(began) - 60:.2f}'")
        assert store.recover() == 1

    def test_a_zombie_is_dead(self, store: Store, words: Any, url: str) -> None:
        store.start(words.press())
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
        write(url, f"UPDATE jobs SET owner = '{owners.host()}:{child.pid}:{owners.began(child.pid):.2f}'")
        assert store.recover() == 0
        assert child.stdin is not None
        child.stdin.close()
        while owners.began(child.pid) is not None:
            time.sleep(0.01)
        assert store.recover() == 1
        child.wait()

    def test_put_back_leaves_another_process_its_job(self, store: Store, words: Any, url: str) -> None:
        job = words.press()
        store.start(job)
        write(url, "UPDATE jobs SET owner = 'elsewhere:' || owner")
        store.put_back(job)
        assert [r.state for r in store.jobs()] == ["running"]
        write(url, "UPDATE jobs SET owner = substr(owner, 11)")
        store.put_back(job)
        assert [(r.state, r.attempts) for r in store.jobs()] == [("planned", 0)]


class TestRecords:
    def test_models_keep_a_dated_history_of_popularity(self, store: Store, words: Any, url: str) -> None:
        one, two = words.candidate(words.model("one"), 5), words.candidate(words.model("two"), 9)
        store.record_models([one, two], "2026-01-01T00:00:00+00:00")
        store.record_models([two, one], "2026-01-02T00:00:00+00:00")
        store.record_models([two, one], "2026-01-02T00:00:00+00:00")
        assert [(b.candidate, b.rank) for b in store.bases()] == [(two, 1), (one, 2)]
        assert count(url, "popularity") == 4

    def test_only_the_latest_listing_is_current(self, store: Store, words: Any) -> None:
        old, new = words.candidate(words.model(sha="b" * 40)), words.candidate(words.model(sha="c" * 40))
        store.record_models([old], "2026-01-01T00:00:00+00:00")
        store.record_models([new], "2026-01-02T00:00:00+00:00")
        assert [b.candidate for b in store.bases()] == [new, old]
        assert [b.candidate for b in store.bases(current=True)] == [new]

    def test_a_model_refused_since_the_latest_listing_is_not_current(self, store: Store, words: Any) -> None:
        model = words.candidate(words.model())
        store.record_models([model], "2026-01-01T00:00:00+00:00")
        store.record_models([], "2026-01-02T00:00:00+00:00")
        store.record_refusals([Refusal(repo_id=model.ref.repo_id, sha=model.ref.sha, code="banned", reason="it is banned")])
        assert store.bases(current=True) == []
        assert [b.candidate for b in store.bases()] == [model]
        store.record_models([model], "2026-01-03T00:00:00+00:00")
        assert [b.candidate for b in store.bases(current=True)] == [model]

    def test_bases_and_variants_come_back_as_they_went_in(self, filled: Store, farm: Any, words: Any) -> None:
        (base,) = filled.bases()
        assert (base.candidate.ref, [m.metric for m in base.measurements]) == (words.model(), ["kl_divergence", "disk_size"])
        assert isinstance(base.environment, Environment)
        four, eight = filled.variants()
        job = words.press(recipe=words.recipe(4))
        again = farm.run(job).artifact
        assert (four.variant_id, four.base, four.recipe) == (job.variant_id, words.model(), words.recipe(4))
        assert four.artifact == replace(again, made_at=four.artifact.made_at if four.artifact else "")
        assert four.press_seconds is not None
        assert four.press_peak_memory_bytes == 2**20
        assert four.measurements[0].value > eight.measurements[0].value > base.measurements[0].value == 0
        assert filled.variant(four.variant_id) == four
        assert filled.variant("unknown") is None

    def test_a_refused_model_is_refused_no_more_when_accepted(self, store: Store, words: Any) -> None:
        first = Refusal(repo_id="people/tiny", sha="a" * 40, code="licence", reason="unknown licence")
        later = Refusal(repo_id="people/tiny", sha="b" * 40, code="licence", reason="still unknown")
        store.record_refusals([first])
        store.record_refusals([later, later])
        assert store.refusals() == [later]
        store.record_models([words.candidate()], "2026-01-01T00:00:00+00:00")
        assert store.refusals() == []

    def test_verdicts_are_one_for_the_same_bytes(self, filled: Store, url: str) -> None:
        record = filled.variants()[0]
        checks = (Check(name="loads", passed=True, detail=""), Check(name="finite", passed=False, detail="2 tensors hold NaN"))
        verdict = Verdict(
            variant_id=record.variant_id, stage="artifact", subject="d1", checks=checks, judged_at="2026-01-01T00:00:00+00:00"
        )
        filled.record_verdict(verdict)
        filled.record_verdict(replace(verdict, judged_at="2026-01-02T00:00:00+00:00"))
        assert one(filled).verdicts == (verdict,)
        changed = replace(verdict, checks=(replace(checks[1], passed=True, detail=""), checks[0]), judged_at="2026-01-03T00:00:00+00:00")
        filled.record_verdict(changed)
        assert one(filled).verdicts == (changed,)
        assert count(url, "checks") == 2
        published = replace(verdict, stage="release", subject="commit")
        filled.record_verdict(published)
        assert set(one(filled).verdicts) == {changed, published}
        again = replace(published, judged_at="2026-01-04T00:00:00+00:00")
        filled.record_verdict(again)
        assert set(one(filled).verdicts) == {changed, again}, "a release was looked at once more, and is as it was"

    def test_a_variant_is_released_once(self, filled: Store, url: str) -> None:
        record = filled.variants()[0]
        release = Release(
            variant_id=record.variant_id,
            repo_id="us/tiny-w4",
            sha="c" * 40,
            artifact_digest="d" * 16,
            url="http://hub/us/tiny-w4",
            released_at="2026-01-01T00:00:00+00:00",
        )
        filled.published.settle(release)
        filled.published.settle(release)
        with pytest.raises(StoreError, match="released already as us/tiny-w4"):
            filled.published.settle(replace(release, repo_id="us/other"))
        columns = "sha, artifact_digest, url, released_at"
        with pytest.raises(IntegrityError):
            write(url, f"INSERT INTO releases (variant_id, repo_id, {columns}) SELECT variant_id, 'us/other', {columns} FROM releases")
        filled.mark_verified(record.variant_id, "2026-01-02T00:00:00+00:00")
        filled.published.settle(release)
        verified = replace(release, verified_at="2026-01-02T00:00:00+00:00")
        assert filled.releases() == [verified]
        assert one(filled).release == verified

    def test_a_forgotten_variant_is_pressed_again_as_if_it_had_never_been(self, filled: Store, farm: Any, words: Any, url: str) -> None:
        before = filled.variants()
        checks = (Check(name="loads", passed=True, detail=""),)
        filled.record_verdict(Verdict(variant_id=before[0].variant_id, stage="artifact", subject="d1", checks=checks, judged_at="now"))
        filled.forget(before[0].variant_id)
        assert filled.variant(before[1].variant_id) == before[1]
        assert [count(url, table) for table in ("artifacts", "checks", "verdicts")] == [1, 0, 0]
        press, measure = words.press(recipe=before[0].recipe), words.measure(recipe=before[0].recipe)
        assert not {press.id, measure.id} & filled.done()
        for job in (press, measure):
            assert filled.start(job)
            filled.finish(job, farm.run(job))
        again = filled.variant(before[0].variant_id)
        assert again is not None
        assert again.artifact is not None
        assert [m.metric for m in again.measurements] == [m.metric for m in before[0].measurements]

    def test_a_released_variant_is_not_forgotten(self, filled: Store) -> None:
        variant_id = filled.variants()[0].variant_id
        filled.published.settle(
            Release(variant_id=variant_id, repo_id="us/a", sha="c" * 40, artifact_digest="d", url="http://hub/us/a", released_at="now")
        )
        with pytest.raises(StoreError, match="is released"):
            filled.forget(variant_id)
        assert filled.variants()[0].artifact is not None

    def test_words_about_an_unknown_variant_are_refused(self, store: Store) -> None:
        with pytest.raises(StoreError, match="no variant 0000"):
            store.record_verdict(Verdict(variant_id="0000", stage="artifact", subject="s", checks=(), judged_at="now"))
        with pytest.raises(StoreError, match="no release"):
            store.mark_verified("0000", "now")


def one(store: Store) -> VariantRecord:
    return store.variants()[0]


class TestView:
    def test_columns_are_those_promised(self, filled: Store, url: str) -> None:
        assert run(url, "SELECT * FROM v_results")[0] == COLUMNS == documented("v_results")
        assert run(url, "SELECT * FROM v_scores")[0] == SCORE_COLUMNS == documented("v_scores")

    def test_one_row_per_variant_and_metric_and_bases_too(self, filled: Store, url: str) -> None:
        found = rows(url, "SELECT variant, recipe, method, scheme, format, metric, protocol FROM v_results ORDER BY variant, metric")
        p = "held-out@512"
        base = f"people/tiny@{'a' * 8}"
        assert found == [
            (base, "base", "none", "none", "dense", "disk_size", p),
            (base, "base", "none", "none", "dense", "kl_divergence", p),
            ("tiny-round-w4", "round-w4", "round", "W4", "packed", "disk_size", p),
            ("tiny-round-w4", "round-w4", "round", "W4", "packed", "kl_divergence", p),
            ("tiny-round-w8", "round-w8", "round", "W8", "packed", "disk_size", p),
            ("tiny-round-w8", "round-w8", "round", "W8", "packed", "kl_divergence", p),
        ]

    def test_variants_of_the_same_name_are_told_apart(self, filled: Store, farm: Any, words: Any, url: str) -> None:
        other = ModelRef(repo_id="others/tiny", sha="b" * 40)
        changed = words.recipe(6, name="round-w4")
        for job in (words.press(other, words.recipe(4)), words.press(words.model(), changed)):
            filled.finish(job, farm.run(job))
            measure = replace(job, kind="measure", protocol=words.protocol)
            filled.finish(measure, farm.run(measure))
        names = [name for (name,) in rows(url, "SELECT DISTINCT variant FROM v_results WHERE recipe = 'round-w4'")]
        assert len(names) == 3
        assert all(name.startswith("tiny-round-w4") for name in names)

    def test_the_documented_queries_run_and_find_something(self, filled: Store, url: str) -> None:
        queries = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)
        assert len(queries) == 6
        if url.startswith("postgresql"):  # as the text beside it says
            queries = [re.sub(r"json_extract\((\w+), '\$\.(\w+)'\)", r"\1::json ->> '\2'", query) for query in queries]
        by_quality, by_share, by_base, by_layer, by_point, by_pair = (rows(url, query) for query in queries)
        assert (by_point, by_pair) == ([], [])
        assert by_layer == []
        assert [row[0] for row in by_quality] == ["tiny-round-w8", "tiny-round-w4"]
        assert [row[2] for row in by_share] == [0.25, 0.25]
        assert by_base[0][:3] == ("people/tiny", 3, 2)


class TestLayers:
    """What single layers are like: decisions of the press, and errors found on measuring."""

    def steps(self) -> tuple[StepRecord, ...]:
        layers = {"up": {"bits": 4, "damp": 0.1}, "down": {"bits": 16, "kept": "not positive definite"}}
        return (StepRecord(method="round", text_sha256="1" * 64, samples_sha256="2" * 64, layers=layers, notes=("Rounded twice.",)),)

    def test_what_the_steps_did_comes_back(self, store: Store, farm: Any, words: Any) -> None:
        job = words.press()
        result = farm.run(job)
        store.finish(job, replace(result, artifact=replace(result.artifact, steps=self.steps())))
        (variant,) = store.variants()
        assert variant.artifact is not None
        assert variant.artifact.steps == self.steps()
        assert variant.artifact.steps[0].kept == {"down": "not positive definite"}

    def test_layer_errors_come_back_and_are_seen_in_sql(self, filled: Store, farm: Any, words: Any, url: str) -> None:
        found = tuple(
            LayerError(layer=name, error=error, tokens=1024, protocol="text@256") for name, error in (("up", 0.02), ("down", 0.3))
        )
        job = replace(words.measure(recipe=words.recipe(4)), protocol=replace(words.protocol, name="held-out@64"))
        filled.finish(job, replace(farm.run(job), layers=found))
        assert {record.recipe.name: record.layers for record in filled.variants()} == {"round-w4": found, "round-w8": ()}
        assert run(url, "SELECT * FROM v_layers")[0] == LAYER_COLUMNS == documented("v_layers")
        assert rows(url, "SELECT variant, layer, error, tokens, protocol FROM v_layers") == [
            ("tiny-round-w4", "up", 0.02, 1024, "text@256"),
            ("tiny-round-w4", "down", 0.3, 1024, "text@256"),
        ]
        worst = re.findall(r"```sql\n(.*?)```", DOCS.read_text(), re.DOTALL)[3]
        assert rows(url, worst)[0][:3] == ("tiny-round-w4", "down", 0.3)
        filled.forget(next(record.variant_id for record in filled.variants() if record.layers))
        assert count(url, "layer_errors") == 0

    def test_the_newest_errors_count(self, filled: Store, farm: Any, words: Any) -> None:
        for name, error in (("a@64", 0.5), ("b@64", 0.25)):
            job = replace(words.measure(recipe=words.recipe(4)), protocol=replace(words.protocol, name=name))
            layer = LayerError(layer="up", error=error, tokens=8, protocol="text@256")
            filled.finish(job, replace(farm.run(job), layers=(layer,)))
        assert [layer.error for record in filled.variants() for layer in record.layers] == [0.25]

    @pytest.mark.parametrize("error", [math.nan, math.inf, -0.1])
    def test_errors_that_are_none_are_refused(self, store: Store, farm: Any, words: Any, error: float) -> None:
        job = words.press(recipe=words.recipe(4))
        store.finish(job, farm.run(job))
        job = words.measure(recipe=words.recipe(4))
        layer = LayerError(layer="up", error=error, tokens=8, protocol="text@256")
        with pytest.raises(BadDocument, match="error of up"):
            store.finish(job, replace(farm.run(job), layers=(layer,)))
        good = replace(layer, error=0.1)
        with pytest.raises(BadDocument, match="2 times"):
            store.finish(job, replace(farm.run(job), layers=(good, good)))
        job = words.measure()
        with pytest.raises(BadDocument, match="of a variant"):
            store.finish(job, replace(farm.run(job), layers=(good,)))


def migrate(url: str, revision: str) -> None:
    """Make a database as the program of an older revision left it."""
    from alembic import command
    from alembic.config import Config

    engine = create_engine(url)
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", "hub:migrations")
        command.upgrade(config, revision)
    engine.dispose()


def copy(url: str, old: str) -> None:
    """Copy what the tables of an older database know, too; the numbers that it gives out go on after the last."""
    new, engine = create_engine(url), create_engine(old)
    with new.connect() as source, engine.begin() as target:
        known = inspect(target).get_table_names()
        for table in Table.metadata.sorted_tables:
            if table.name not in known:
                continue
            columns = [name for column in inspect(target).get_columns(table.name) if (name := column["name"]) in table.columns]
            found = source.execute(select(*(table.c[name] for name in columns))).mappings().all()
            if found:
                target.execute(
                    text(f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES (:{', :'.join(columns)})"), [*map(dict, found)]
                )
            number = next((column.name for column in table.primary_key if column.type.python_type is int), None)
            if engine.dialect.name == "postgresql" and number in ("id", "number"):
                target.execute(text(f"SELECT setval(pg_get_serial_sequence('{table.name}', '{number}'), 1000)"))
    new.dispose()
    engine.dispose()


def tables(url: str) -> list[str]:
    engine = create_engine(url)
    try:
        return inspect(engine).get_table_names()
    finally:
        engine.dispose()


class TestOpening:
    def test_a_database_of_the_first_revision_keeps_all_that_it_holds(
        self, filled: Store, farm: Any, words: Any, url: str, empty: str
    ) -> None:
        running = words.press(recipe=words.recipe(2))
        filled.start(running)
        variants, jobs = filled.variants(), filled.jobs()
        filled.close()
        migrate(empty, "0001")
        copy(url, empty)
        with Store(empty) as store:
            assert store.variants() == variants
            assert [record.artifact.steps for record in store.variants() if record.artifact] == [(), ()]
            assert [(record.job, record.seconds, record.attempts) for record in store.jobs()] == [
                (record.job, record.seconds, record.attempts) for record in jobs
            ]
            assert [record.state for record in store.jobs()] == ["done"] * 5 + ["cancelled"], "the next plan names it"
            assert store.bases()[0].rank == 1
            assert {name: [point.downloads for point in points] for name, points in store.popularity().items()} == {"people/tiny": [1000]}
            assert store.start(running)
            store.finish(running, farm.run(running))
            assert not store.start(running)
        assert rows(empty, "SELECT version_num FROM alembic_version") == [(HEAD,)]

    def test_the_migrations_make_what_the_tables_say(self, store: Store) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        with store._database.reading() as session:
            context = MigrationContext.configure(session.connection(), opts={"compare_type": True, "compare_server_default": True})
            assert compare_metadata(context, Table.metadata) == []

    def test_the_newest_revision_is_the_one_named(self) -> None:
        from alembic.config import Config
        from alembic.script import ScriptDirectory

        config = Config()
        config.set_main_option("script_location", "hub:migrations")
        assert ScriptDirectory.from_config(config).get_heads() == [HEAD]

    @only_sqlite
    def test_settings_of_sqlite(self, store: Store, url: str) -> None:
        with store._database.reading() as session:
            run = session.connection().exec_driver_sql
            found = {name: run(f"PRAGMA {name}").scalar() for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")}
        assert found == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 2, "busy_timeout": 30000}

    @pytest.mark.integration
    def test_a_file_may_have_any_name(self, tmp_path: Path, words: Any) -> None:
        file = tmp_path / "50%20 of a?b#c.db"
        with Store(file) as store:
            store.record_plan(full_plan(words, (8,)))
            assert store.file == file
        assert [path.name for path in tmp_path.iterdir()] == [file.name]

    @only_sqlite
    def test_opening_a_current_database_is_fast_and_needs_no_alembic(self, filled: Store, url: str) -> None:
        code = (
            "import sys, time; from hub.store import Store; t = time.process_time(); Store(sys.argv[1]).close();"
            "print(time.process_time() - t, any(name.split('.')[0] == 'alembic' for name in sys.modules))"
        )
        tries = [
            subprocess.run([sys.executable, "-c", code, url], capture_output=True, text=True, check=True).stdout.split() for _ in range(3)
        ]
        assert all(alembic == "False" for _, alembic in tries)
        assert min(float(seconds) for seconds, _ in tries) < 0.3

    def test_migrating_leaves_logging_alone(self, empty: str) -> None:
        before = (logging.root.level, list(logging.root.handlers), logging.getLogger("alembic").level)
        Store(empty).close()
        assert (logging.root.level, list(logging.root.handlers), logging.getLogger("alembic").level) == before

    def test_a_newer_database_is_refused(self, filled: Store, url: str) -> None:
        write(url, "UPDATE alembic_version SET version_num = '9999'")
        with pytest.raises(StoreError, match="newer ModelPress") as caught:
            Store(url)
        assert "upgrade" in caught.value.hint

    @pytest.mark.parametrize("content", [b"this is a text, not a database\n" * 50, b"PK\x03\x04" + bytes(4096)])
    def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "modelpress.db"
        path.write_bytes(content)
        with pytest.raises(StoreError, match="not a ModelPress database") as caught:
            Store(f"sqlite:///{path}")
        assert caught.value.hint
        assert path.read_bytes() == content

    def test_a_database_of_something_else_is_refused_and_left_as_it_is(self, empty: str) -> None:
        write(empty, "CREATE TABLE recipes (title TEXT)")
        with pytest.raises(StoreError, match="not those of ModelPress"):
            Store(empty)
        assert tables(empty) == ["recipes"]

    def test_a_folder_that_is_missing_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(StoreError, match=r"missing/modelpress\.db") as caught:
            Store(f"sqlite:///{tmp_path / 'missing' / 'modelpress.db'}")
        assert "folder" in caught.value.hint

    @pytest.mark.parametrize("address", ["nonsense", "oracle+nothing://x/y", ""])
    def test_an_address_that_says_nothing_is_refused(self, address: str) -> None:
        with pytest.raises(StoreError) as caught:
            Store(address)
        assert caught.value.hint

    def test_a_password_is_not_told(self) -> None:
        with pytest.raises(StoreError) as caught:
            Store("postgresql://user:secret-word@127.0.0.1:1/modelpress")
        assert "secret-word" not in caught.value.message + caught.value.hint

    @only_sqlite
    def test_a_damaged_file_is_refused(self, filled: Store, url: str, tmp_path: Path) -> None:
        filled.close()
        path = tmp_path / "modelpress.db"
        data = path.read_bytes()
        path.write_bytes(data[:4096] + os.urandom(len(data) - 4096))
        with pytest.raises(StoreError, match=r"damaged|refused"), Store(url) as store:
            store.variants()

    @pytest.mark.integration
    def test_many_openers_at_once_make_one_database(self, empty: str) -> None:
        code = "import sys; from hub.store import Store; Store(sys.argv[1]).close()"
        openers = [subprocess.Popen([sys.executable, "-c", code, empty], stderr=subprocess.PIPE) for _ in range(3)]
        assert [(opener.communicate()[1], opener.returncode) for opener in openers] == [(b"", 0)] * 3


def test_several_threads_write_at_once(store: Store, farm: Any, words: Any, url: str) -> None:
    models = [words.model(f"m{i}", f"{i:040x}") for i in range(4)]

    def work(index: int) -> None:
        recipe = words.recipe(4 + index % 4)
        for job in (words.measure(models[index % 4]), words.press(models[index % 4], recipe), words.measure(models[index % 4], recipe)):
            store.start(job)
            store.finish(job, farm.run(job))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    assert count(url, "models") == 4
    assert count(url, "environments") == 1
    assert {record.state for record in store.jobs()} == {"done"}
    assert count(url, "measurements") == 2 * len([record for record in store.jobs() if record.job.kind == "measure"])


WRITER = """
import json, sys
from dataclasses import replace
from hub import owners
from hub.codec import from_json
from hub.domain import Job, JobResult
from hub.store import Store

url, document = sys.argv[1:]
job, result = (from_json(kind, json.dumps(part)) for kind, part in zip((Job, JobResult), json.loads(document), strict=True))
store = Store(url)
for number in range(10**9):
    one = replace(job, subject=str(number))
    store.start(one)
    store.finish(one, replace(result, job_id=one.id))
    print(number, flush=True)
"""


@pytest.mark.integration
def test_kill_9_while_writing_leaves_a_readable_database_with_all_that_was_reported(store: Store, farm: Any, words: Any, url: str) -> None:
    from hub.codec import to_json

    job = words.measure()
    document = json.dumps([json.loads(to_json(part)) for part in (job, farm.run(job))])
    for delay in (0.1, 0.5):
        child = subprocess.Popen([sys.executable, "-c", WRITER, url, document], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        first = child.stdout.readline()
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        reported = int((first + child.stdout.read()).split()[-1])
        child.wait()
        with Store(url) as opened:
            opened.recover()
            states = {record.job.subject: record.state for record in opened.jobs()}
        if url.startswith("sqlite"):
            assert rows(url, "PRAGMA integrity_check") == [("ok",)]
            assert rows(url, "PRAGMA foreign_key_check") == []
        assert all(states[str(number)] == "done" for number in range(reported + 1))
        assert set(states.values()) <= {"done", "planned"}
        done = sum(state == "done" for state in states.values())
        assert count(url, "measurements") == 2 * done


KILLED_MIGRATION = """
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
@pytest.mark.parametrize("statement", ["CREATE TABLE jobs", "INSERT INTO alembic_version"])
def test_kill_9_while_migrating_leaves_nothing_half_made(empty: str, statement: str) -> None:
    child = subprocess.run([sys.executable, "-c", KILLED_MIGRATION, empty, statement])
    assert child.returncode == -signal.SIGKILL
    assert tables(empty) == []
    with Store(empty) as store:
        assert store.jobs() == []
