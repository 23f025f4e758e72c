"""`modelpress run --quick` as an operator sees it: the whole path, twice, and killed in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from .conftest import Folder, QuickRun
from .faults import new_farm, plant

pytestmark = pytest.mark.integration
COLUMNS = [
    "base_model", "base_sha", "variant", "recipe", "method", "scheme", "format", "metric", "value", "unit",
    "ci_low", "ci_high", "higher_is_better", "protocol", "engine", "hardware", "measured_at", "conditions", "basis", "percentiles",
]  # fmt: skip
ONE = ("--model", "good/qwen3-chat-1", "--recipe", "bnb-nf4", "--recipe", "bnb-nf4-double")
"""One model of one layer, in two ways that are made at once."""


def query(folder: Folder, sql: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(folder.press / "modelpress.db")) as connection:
        return connection.execute(sql).fetchall()


@contextmanager
def served(folder: Folder) -> Iterator[str]:
    """Serve the folder's hub with the real command until the block ends."""
    process = subprocess.Popen(folder.command("hub", "serve"), cwd=folder.path, env=folder.environment(), stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{folder.port}"
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"{endpoint}/api/models", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        yield endpoint
    finally:
        process.terminate()
        process.wait(120)


def test_everything_went_through(quick_run: QuickRun) -> None:
    report = quick_run.report
    assert report["jobs_failed"] == 0
    assert len(report["released"]) == 2
    assert report["verified"] == 2
    assert not report["not_published"]
    assert not report["not_verified"]


def test_skipped_models_are_explained(quick_run: QuickRun) -> None:
    refused = {refusal["code"] for refusal in quick_run.report["refused"]}
    assert len(refused) >= 4
    for refusal in quick_run.report["refused"]:
        assert refusal["reason"] in quick_run.stderr.replace("\n", " ") or len(refusal["reason"]) > 10


def test_plain_lines_without_a_terminal(quick_run: QuickRun) -> None:
    assert "press and measure: " in quick_run.stderr
    assert "[1/" in quick_run.stderr
    assert "\x1b[" not in quick_run.stderr


def test_the_view_for_people(quick_run: QuickRun) -> None:
    names = [row[1] for row in query(quick_run.folder, "pragma table_info(v_results)")]
    assert names == COLUMNS
    ((variants, metrics),) = query(
        quick_run.folder, "select count(distinct variant), count(distinct metric) from v_results where recipe <> 'base'"
    )
    assert variants == 2
    assert metrics >= 8
    assert query(quick_run.folder, "select count(*) from v_results where recipe = 'base' and metric = 'perplexity'") == [(1,)]
    bad = (
        "select * from v_results where value is null or unit is null or protocol is null or hardware is null"
        " or not ci_low <= value or not value <= ci_high"
    )
    assert query(quick_run.folder, bad) == []


def test_the_site_shows_them(quick_run: QuickRun) -> None:
    site = quick_run.folder.press / "site"
    index = (site / "index.html").read_text(encoding="utf-8")
    models = "".join(page.read_text(encoding="utf-8") for page in (site / "models").glob("*.html"))
    for record in quick_run.report["variants"]:
        assert record["recipe"]["name"] in index
        assert record["release"]["repo_id"] in models
        assert record["release"]["sha"] in models


def test_a_second_run_does_nothing_twice(quick_run: QuickRun) -> None:
    again = quick_run.folder.json("run", "--quick")
    print(f"second run / first run: {again['seconds'] / quick_run.report['seconds']:.2f}")
    assert again["jobs_done"] == 0
    assert again["released"] == []
    assert again["verified"] == 0
    assert again["seconds"] < quick_run.report["seconds"]


def test_published_bytes_load_as_any_user_would(quick_run: QuickRun, tmp_path: Path) -> None:
    """Plain transformers, the hub's address in HF_ENDPOINT, an empty cache: nothing of this project is imported."""
    probe = (
        "import sys\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "for repo in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(repo)\n    tokenizer = AutoTokenizer.from_pretrained(repo)\n"
        "    out = model.generate(**tokenizer('def main(', return_tensors='pt'), max_new_tokens=8, do_sample=False)\n"
        "    print(repo, out.shape[1])\n"
    )
    repos = [release["repo_id"] for release in quick_run.report["released"]]
    with served(quick_run.folder) as endpoint:
        env = {**quick_run.folder.environment(), "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", probe, *repos], capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300, check=False
        )
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(repo in done.stdout for repo in repos)


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def kill_at(folder: Folder, mark: str) -> bool:
    """Start a run, kill -9 it once a line with `mark` has appeared; return whether it had. Nothing it started may live on."""
    process = subprocess.Popen(
        folder.command("run", *ONE),
        cwd=folder.path,
        env=folder.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    seen = any(mark in line for line in process.stderr)
    family = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.stderr.close()
    process.wait(120)
    _, alive = psutil.wait_procs(family, timeout=120)
    assert not alive, f"still alive after kill -9 of their parent: {[one.cmdline() for one in alive]}"
    return seen


def test_killed_at_any_moment_it_finishes_later(tmp_path: Path) -> None:
    """In the middle of a job, of the gate, of an upload, between two releases, between two verifications; its hub dies with it."""
    folder = new_farm(tmp_path / "farm", plant(tmp_path / "planted", good=["good/qwen3-chat-1"], bad=()))
    done: set[object] = set()
    for mark in ("done press", "gate:", "publish:", "done publish", "done verify"):
        assert kill_at(folder, mark), f"no line with {mark!r} appeared: had the run finished before?"
        kept = {job for (job,) in query(folder, "select id from jobs where state = 'done'")}
        assert done <= kept, f"results were lost by the kill at {mark!r}"
        done = kept
        if mark == "gate:":
            # Someone clears a folder before its release: that variant is pressed again, and nothing else.
            lost = next((folder.press / "artifacts").iterdir())
            shutil.rmtree(lost)
            done = set()
    report = folder.json("run", *ONE)
    assert report["jobs_failed"] == 0
    releases = query(folder, "select count(*), count(distinct variant_id), count(distinct repo_id) from releases")
    assert releases == [(2, 2, 2)]
    with served(folder) as endpoint:
        from huggingface_hub import HfApi

        api = HfApi(endpoint=endpoint, token=False)
        for record in report["variants"]:
            commits = api.list_repo_commits(record["release"]["repo_id"])
            published = [commit for commit in commits if "initial" not in commit.title.lower()]
            assert len(published) == 1, [commit.title for commit in commits]
    left = [path.name for path in folder.press.rglob("*") if ".partial" in path.name or path.name.startswith("tmp")]
    assert not left
