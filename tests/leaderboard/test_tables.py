"""The generated part of docs/methods.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from markdown_it import MarkdownIt

from hub.domain import Job, JobResult, Refusal
from hub.store import Store
from leaderboard import tables
from leaderboard.queries import Board, read_board


@pytest.fixture
def board(make: SimpleNamespace, tmp_path: Path) -> Iterator[Board]:
    """A base model, a variant that passed the gate, one held back, one that failed, and a recipe that does not suit the model."""
    base, good = make.base(), make.judged(make.variant())
    step = replace(good.recipe.steps[0], method="wanda", scheme="2:4")
    bad = make.judged(make.variant(make.recipe("wanda|2of4", format="dense", steps=(step,)), kl=0.9, ratio=1.9, size=8_600_000))
    refusal = Refusal(repo_id=base.candidate.ref.repo_id, sha=base.candidate.ref.sha, code="unfit", reason="widths <b>", recipe="gptq-w2")
    with Store(tmp_path / "results.db") as store:
        store.record_models([base.candidate], make.at)
        store.record_refusals([refusal])

        def finish(job: Job, **result: object) -> None:
            done = JobResult(
                job_id=job.id, environment=make.machine, started_at=make.at, seconds=31.4, stages={}, peak_memory_bytes=1_400_000_000
            )
            store.finish(job, replace(done, **result))  # type: ignore[arg-type]

        finish(Job(kind="measure", base=make.ref), measurements=base.measurements)
        for record in (good, bad):
            finish(Job(kind="press", base=make.ref, recipe=record.recipe), artifact=record.artifact)
            finish(Job(kind="measure", base=make.ref, recipe=record.recipe), measurements=record.measurements)
            store.record_verdict(record.verdicts[-1])
        yield read_board(store)


def test_every_recipe_has_a_row_with_what_became_of_it(board: Board) -> None:
    text = tables.results(board, {"gptq": "Take it *first*."}, ["awq", "gptq", "wanda"])
    lines = text.splitlines()
    assert "- `gptq`: Take it \\*first\\*." in lines
    rows = [line for line in lines if line.startswith("| ") and "Recipe" not in line]
    assert rows[0] == "| base | 8.61 MB | 16.0 | 14.2 ± 0.3 | – | 0 | – | – | – |"
    assert rows[1].startswith("| **Quantization** |")
    assert rows[2].startswith(
        "| `gptq-w4a16-g128` | 2.71 MB | 4.97 | 14.5 ± 0.3 | +2.1 ± 0.4 % | 0.0123 ± 0.0008 | 31.4 s | 1.40 GB | no: passed the gate |"
    )
    assert rows[3].startswith("| **Pruning** |")
    assert rows[4].endswith("no: kl divergence, perplexity ratio |")
    assert "Example CPU 2000" in text
    assert "- `gptq-w2`: widths &lt;b&gt;" in lines
    html = MarkdownIt("commonmark").enable("table").render(text)
    assert html.count("<table>") == 1
    assert html.count("<tr>") == 1 + len(rows)
    assert {row.count("<td") for row in html.split("<tr>")[2:]} == {9}


def test_only_what_stands_between_the_marks_is_replaced(board: Board) -> None:
    section = tables.results(board, {}, [])
    before = f"# Methods\n\n{tables.BEGIN}\nold\n{tables.END}\n\nThe end.\n"
    after = tables.replace_between(before, section)
    assert after is not None
    assert after.startswith("# Methods\n\n<!--")
    assert after.endswith("-->\n\nThe end.\n")
    assert "old" not in after
    assert tables.replace_between(after, section) == after
    for broken in ("# Methods", before + before, f"{tables.END}{tables.BEGIN}"):
        assert tables.replace_between(broken, section) is None


def test_the_docs_have_the_marks() -> None:
    docs = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
    assert tables.replace_between(docs.read_text(encoding="utf-8"), "x") is not None
