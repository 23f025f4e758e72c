"""The site built from a real store: what its pages say, what it refuses, and what hostile text does to it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hub.domain import Failure, Job, Refusal
from hub.errors import OutOfDisk, UsageError
from hub.protocol import Protocol
from hub.store import Store
from leaderboard import site
from leaderboard.choices import choose
from leaderboard.pictures import speed_chart
from leaderboard.queries import Board, read_board
from leaderboard.rows import Row, State, safe_name
from leaderboard.stats import Estimate

VOID = {"meta", "link", "br", "input", "path", "circle", "rect"}


class Reader(HTMLParser):
    """Collects tags, attributes, links and ids, and checks that elements close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        found = dict(attrs)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found[key] or "" for key in ("href", "src") if key in found]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()


def built(store: Store, out: Path, hub_url: str) -> Path:
    site.build(store, out, hub_url=hub_url)
    return out


def test_counts_its_pages(full: Store, tmp_path: Path, hub_url: str) -> None:
    pages = site.build(full, tmp_path / "site", hub_url=hub_url)
    assert pages == len(list((tmp_path / "site").rglob("*.html"))) == 8


def test_every_link_leads_somewhere_and_markup_is_whole(full: Store, tmp_path: Path, hub_url: str) -> None:
    out = built(full, tmp_path / "site", hub_url)
    ids = {page: Reader(page.read_text()).ids for page in out.rglob("*.html")}
    for page in out.rglob("*.html"):
        reader = Reader(page.read_text())
        assert len(reader.ids) == len(set(reader.ids)), page.name
        for link in reader.links:
            if link.startswith("http"):
                assert link.startswith(f"{hub_url}/")
                continue
            path, _, fragment = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            assert not fragment or fragment in ids[target], f"{page.name}: {link}"


def test_nothing_inline_and_no_other_host(full: Store, tmp_path: Path, hub_url: str) -> None:
    out = built(full, tmp_path / "site", hub_url)
    for page in out.rglob("*.html"):
        text = page.read_text()
        names = {name for name, _ in Reader(text).attributes}
        assert "style" not in names
        assert not any(name.startswith("on") for name in names)
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in text
        assert re.findall(r"<script[^>]*>(?!</script>)", text) == []
        assert "<style" not in text


def test_the_front_page_says_what_to_take_and_when_to_stay(full: Store, tmp_path: Path, hub_url: str) -> None:
    text = (built(full, tmp_path / "site", hub_url) / "index.html").read_text()
    llama, qwen, gpt2 = (re.sub(r"<[^>]+>", " ", part) for part in re.findall(r"<tr>\n<th scope=\"row\">.*?</tr>", text, re.S))
    assert re.search(r"int8-w8a8.*gptq-w3a16-g64.*depth-distil", llama, re.S)
    assert "(slower than the base)" in llama
    assert qwen.count("Stay with the base") == 2
    assert "the closest variant, int8-w8a8, is at +1.31 ± 0.15 % perplexity" in qwen
    assert "not been measured yet" in gpt2


def test_rows_that_cannot_be_told_apart_share_a_rank(full: Store) -> None:
    rows = {row.name: row for row in read_board(full).pages[0].main.rows}
    assert (rows["base"].rank, rows["int8-w8a8"].rank) == (1, 1)
    assert (rows["gptq-w4a16-g128"].rank, rows["bnb-nf4"].rank) == (3, 3)
    assert (rows["gptq-w3a16-g64"].rank, rows["wanda-50"].rank) == (5, 7)
    assert [row.name for row in rows.values() if row.tied] == ["base", "int8-w8a8", "gptq-w4a16-g128", "bnb-nf4"]
    assert not rows["depth-distil"].on_front


def test_zeros_in_dense_weights_are_neither_faster_nor_recommended(full: Store) -> None:
    """Not even where a restless machine measured three times the base's speed."""
    rows = [
        replace(
            row, state=State(code="verified", word="Verified"), decode_ratio=Estimate(value=3.0, low=2.9, high=3.1, higher_is_better=True)
        )
        if row.name == "wanda-50"
        else row
        for row in read_board(full).pages[0].main.rows
    ]
    zeros = next(row for row in rows if row.name == "wanda-50")
    assert zeros.same_work
    assert {(zeros.cells[key].note, zeros.cells[key].tone) for key in ("decode_tokens_per_second", "peak_memory")} == {("same work", "")}
    assert [choice.row.name for choice in choose(rows)] == ["int8-w8a8", "gptq-w3a16-g64", "depth-distil"]


def test_nothing_beats_the_fastest_on_speed_and_zeros_are_not_drawn_there(full: Store) -> None:
    page = read_board(full).pages[0]
    anchors = {row.name: row.anchor for row in page.main.rows}
    drawing = speed_chart(page, page.main)
    assert f'<a class="mark on" href="#{anchors["depth-distil"]}">' in drawing
    assert f'<a class="mark off" href="#{anchors["bnb-nf4"]}">' in drawing
    assert f"#{anchors['wanda-50']}" not in drawing


def test_states_say_how_far_each_variant_came(full: Store) -> None:
    llama, qwen, gpt2 = read_board(full).pages
    assert {row.name: row.state.code for row in qwen.main.rows} == {
        "base": "base", "gptq-w4a16-g128": "failed", "gptq-w3a16-g64": "waiting", "int8-w8a8": "published",
        "bnb-nf4": "verified", "wanda-50": "verified", "depth-distil": "held",
    }  # fmt: skip
    assert "divergence" in next(row for row in llama.main.rows if row.name == "wanda-50").state.detail
    assert gpt2.main.rows[0].state.code == "waiting"


def test_a_model_page_has_charts_commands_and_verdicts(full: Store, tmp_path: Path, hub_url: str) -> None:
    text = (built(full, tmp_path / "site", hub_url) / "models" / "modelpress-samples--sample-llama.html").read_text()
    assert text.count('<svg class="chart"') == 2
    assert f"HF_ENDPOINT={hub_url} hf download modelpress/sample-llama-bnb-nf4 --revision {'b' * 40}" in text
    assert "os.environ[&#34;HF_ENDPOINT&#34;]" in text, "the Python asks the same hub"
    assert "the gate on the published bytes" in text
    assert "hf download modelpress/sample-llama-wanda-50" not in text, "what the gate held back has no command"


def test_jobs_show_class_reason_and_hint_but_no_log(full: Store, tmp_path: Path, hub_url: str) -> None:
    assert full.file
    with closing(sqlite3.connect(full.file)) as database:
        assert database.execute("UPDATE jobs SET log_tail = 'a secret path' WHERE state = 'failed'").rowcount
        assert database.execute("UPDATE jobs SET document = '{\"kinder\": 1}' WHERE state = 'running'").rowcount == 1
        ((running,),) = database.execute("SELECT id FROM jobs WHERE state = 'running'")
        assert database.execute("UPDATE jobs SET stages = '{' WHERE number = (SELECT min(number) FROM jobs WHERE state = 'done')").rowcount
        database.commit()
    out = built(full, tmp_path / "site", hub_url)
    text = (out / "jobs.html").read_text()
    for words in (
        "UnfitModel",
        "do not divide by the group size 128",
        "take a recipe with groups of 64",
        "someone/pickled",
        "no-safetensors",
    ):
        assert words in text
    assert not [file for file in out.rglob("*") if file.is_file() and b"secret path" in file.read_bytes()]
    assert 'Unreadable <span class="count">2</span>' in text, "one row that cannot be read stops no page"
    assert f'<th scope="row">{running}</th><td>running</td><td class="why">the database&#39;s job {running} is not a valid Job: ' in text
    with closing(sqlite3.connect(full.file)) as database:
        assert database.execute("SELECT count(*) FROM jobs WHERE log_tail = 'a secret path'").fetchone() != (0,), "only the copy is cleared"


def test_the_protocol_page_tells_every_protocol_and_environment(full: Store, tmp_path: Path, hub_url: str) -> None:
    text = (built(full, tmp_path / "site", hub_url) / "protocol.html").read_text()
    for words in (
        "stdlib-heldout@512",
        "64 non-overlapping windows of 512 tokens, at even distances",
        "Example CPU 2000",
        "gptqmodel 7.6.0",
    ):
        assert words in text


def test_numbers_of_another_protocol_bring_no_other_machine(full: Store, world: Any, tmp_path: Path, hub_url: str) -> None:
    """Tasks taken later and elsewhere leave every row as it was, and a variant of which nothing else was measured keeps one."""
    base = next(base for base in full.bases() if base.environment)
    assert base.environment is not None
    tasks, elsewhere = Protocol(name="tasks-quick"), replace(base.environment, hardware="Other CPU 3000")
    point = replace(base.measurements[0], metric="accuracy", protocol=tasks.name, conditions={"task": "piqa"})
    unmeasured = next(variant for variant in full.variants() if variant.failure)

    def rows_but_its(board: Board) -> list[Row]:
        rows = [row for page in board.pages for group in page.groups for row in group.rows]
        assert unmeasured.variant_id in {row.variant_id for row in rows}
        return [row for row in rows if row.variant_id != unmeasured.variant_id]

    before = rows_but_its(read_board(full))
    world.finish(Job(kind="measure", base=base.candidate.ref, protocol=tasks), environment=elsewhere, measurements=(point,))
    for variant in (*(one for one in full.variants() if one.measurements), unmeasured):
        job = Job(kind="measure", base=variant.base, recipe=variant.recipe, protocol=tasks)
        world.finish(job, environment=elsewhere, measurements=(point,))
    board = read_board(full)
    assert rows_but_its(board) == before
    assert {place.hardware for place in board.environments} == {base.environment.hardware, elsewhere.hardware}
    out = built(full, tmp_path / "site", hub_url)
    assert "<small>tasks-quick</small>" in (out / "jobs.html").read_text()
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_bytes().decode())))
    with sqlite3.connect(out / "results.sqlite") as copy:
        view = copy.execute("SELECT variant, metric, conditions, protocol, hardware FROM v_results").fetchall()
    assert sorted(tuple(row[name] for name in ("variant", "metric", "conditions", "protocol", "hardware")) for row in rows) == sorted(view)


def test_downloads_agree_with_the_view(full: Store, tmp_path: Path, hub_url: str) -> None:
    out = built(full, tmp_path / "site", hub_url)
    rows = list(csv.DictReader(io.StringIO((out / "results.csv").read_bytes().decode())))
    with sqlite3.connect(out / "results.sqlite") as copy:
        cursor = copy.execute("SELECT * FROM v_results")
        view = [dict(zip([name for name, *_ in cursor.description], row, strict=True)) for row in cursor]
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert list(rows[0]) == list(view[0])
    key = lambda row: (row["variant"], row["metric"], row["conditions"])  # noqa: E731
    assert sorted(map(key, rows)) == sorted(map(key, view))
    values = {key(row): row["value"] for row in view}
    assert all(float(row["value"]) == values[key(row)] for row in rows)
    assert {row["conditions"] for row in rows} > {"{}", '{"batch": 8, "context": 64, "mode": "eager"}'}
    assert {row["basis"] for row in rows} == {"measured", "estimated"}
    parsed = json.loads((out / "results.json").read_text())
    assert len(parsed["results"]) == len(view)
    assert json.loads((out / "models" / "modelpress-samples--sample-llama.json").read_text())["base"]["rank"] == 1


def test_an_empty_database_gives_a_site_that_says_so(store: Store, tmp_path: Path, hub_url: str) -> None:
    out = built(store, tmp_path / "site", hub_url)
    assert "Nothing has been pressed yet" in (out / "index.html").read_text()
    assert "No job has failed" in (out / "jobs.html").read_text()
    assert "No recipe has been tried yet" in (out / "methods.html").read_text()


def test_the_same_data_give_the_same_bytes(full: Store, tmp_path: Path, hub_url: str) -> None:
    first, second = built(full, tmp_path / "a", hub_url), built(full, tmp_path / "b", hub_url)
    names = sorted(str(path.relative_to(first)) for path in first.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names if not name.endswith(".sqlite"))


HOSTILE = (
    "<script>alert(1)</script>/x",
    "=cmd|' /C calc'!A0/x",
    'a"onload="b/|pipe|',
    "../../etc/passwd",
    "a/{{ 7*7 }}",
    "o/‮gnp.exe",
    "x/<!--",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str, world: object, hostile: Callable[..., object], tmp_path: Path, hub_url: str) -> None:
    family = hostile(text)
    world.write([family], refusals=[Refusal(repo_id=text, sha=text, code=text, reason=text, recipe=text)])  # type: ignore[attr-defined]
    broken = Job(kind="measure", base=family.ref)  # type: ignore[attr-defined]
    store: Store = world.store  # type: ignore[attr-defined]
    store.start(broken)
    store.fail(broken, Failure(job_id=broken.id, error=text, reason=text, hint=text, log_tail="", seconds=1, retryable=False))
    out = built(store, tmp_path / "deep" / "site", hub_url)
    inside = sorted(path.relative_to(out).parts[0] for path in out.rglob("*.html"))
    assert set(inside) == {"404.html", "index.html", "jobs.html", "methods.html", "models", "protocol.html"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["site"]
    for page in out.rglob("*.html"):
        html = page.read_text()
        reader = Reader(html)
        assert reader.tags.count("script") == 1
        assert not any(name.startswith("on") for name, _ in reader.attributes)
        assert "‮" not in re.sub(r'data-[a-z]+="[^"]*"|title="[^"]*"', "", html)
        assert "<!--" not in html
    for row in csv.reader(io.StringIO((out / "results.csv").read_bytes().decode())):
        assert not any(cell.startswith(("=", "+", "@", "-")) and not cell.lstrip("-").replace(".", "").isdigit() for cell in row)


@pytest.mark.parametrize("text", HOSTILE)
def test_file_names_are_safe_and_distinct(text: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", safe_name(text))
    assert safe_name(text) != safe_name(f"{text} ")


def test_a_failed_build_leaves_the_old_site(full: Store, tmp_path: Path, hub_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = built(full, tmp_path / "site", hub_url)
    before = (out / "index.html").read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(site.exports, "results_json", no_space)
    with pytest.raises(OutOfDisk, match="no space left"):
        site.build(full, out, hub_url=hub_url)
    assert (out / "index.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith("modelpress.db")) == ["site"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_second_build_replaces_the_first_as_a_whole(
    exchange: bool, full: Store, tmp_path: Path, hub_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:
        monkeypatch.setattr(site, "_exchange", lambda *_: False)
    out = built(full, tmp_path / "site", hub_url)
    (out / "stale.html").write_text("old")
    built(full, out, hub_url)
    assert not (out / "stale.html").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_what_a_killed_build_left_is_cleared_away(full: Store, tmp_path: Path, hub_url: str) -> None:
    (tmp_path / ".site.building-999999999-abc").mkdir()
    alive = tmp_path / f".site.building-{os.getpid()}-abc"
    alive.mkdir()
    built(full, tmp_path / "site", hub_url)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [alive.name]


def test_layer_errors_are_in_the_downloads(crowd_file: Path, tmp_path: Path, hub_url: str) -> None:
    with Store(f"sqlite:///{crowd_file}") as store:
        out = built(store, tmp_path / "site", hub_url)
    rows = list(csv.DictReader(io.StringIO((out / "layers.csv").read_bytes().decode())))
    with sqlite3.connect(out / "results.sqlite") as copy:
        cursor = copy.execute("SELECT * FROM v_layers")
        names = [name for name, *_ in cursor.description]
        view = [dict(zip(names, map(str, row), strict=True)) for row in cursor]
    assert [name for name in names if name != "measured_at"] == list(rows[0])
    key = lambda row: row["variant"]  # noqa: E731
    assert sorted(rows, key=key) == sorted(({k: v for k, v in row.items() if k != "measured_at"} for row in view), key=key)
    page = (out / "models" / "modelpress-samples--sample-llama.html").read_text()
    assert page.count("from transformers import AutoModelForCausalLM") == page.count("Load it in Python") > 0
    assert "How to load gguf is on its" in page


def test_a_folder_of_other_things_is_never_replaced(store: Store, tmp_path: Path, hub_url: str) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="not a site built here"):
        site.build(store, tmp_path, hub_url=hub_url)
    with pytest.raises(UsageError, match="is a file"):
        site.build(store, tmp_path / "precious.txt", hub_url=hub_url)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_the_hub_address_must_be_one(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="javascript:"):
        site.build(store, tmp_path / "site", hub_url="javascript:alert(1)")


def test_the_first_view_is_small(full: Store, tmp_path: Path, hub_url: str) -> None:
    import gzip

    out = built(full, tmp_path / "site", hub_url)
    packed = {path.name: len(gzip.compress(path.read_bytes())) for path in (out / "index.html", *(out / "static").iterdir())}
    assert sum(packed.values()) < 100_000
    assert packed["site.js"] < 30_000


def test_ascii_shell_words_are_quoted(hub_url: str) -> None:
    from hub.history import Release

    hostile = Release(variant_id="v", repo_id="a/b; rm -rf ~", sha="x$(id)", artifact_digest="d", url="u", released_at="t")
    command = site.environment(hub_url).filters["fetch"](hostile)
    assert command.endswith("hf download 'a/b; rm -rf ~' --revision 'x$(id)'")
