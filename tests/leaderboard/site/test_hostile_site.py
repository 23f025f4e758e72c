"""Hostile metadata on the site: many models, each with another hostile text in every place, beside the same models with harmless names."""

from __future__ import annotations

import json
import re
import shutil
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lxml import html
from markdown_it import MarkdownIt

from hub.domain import Failure, Job, LayerError, Recipe, Refusal, Step, StepRecord
from hub.names import path_fault
from hub.scheduling import Plan
from hub.store import Store
from leaderboard import site, tables
from leaderboard.queries import read_board
from leaderboard.rows import safe_name
from leaderboard.text import MOST, plain

from ..hostile import CORPUS  # noqa: TID252
from .conftest import PROTOCOL, Family, Outcome, World, measured, recipe, speeds

HUB = "https://huggingface.co"
AT = "2026-11-20T10:00:00+00:00"
WORDS = tuple(dict.fromkeys(word.encode("utf-8", "replace").decode().replace("\0", "\ufffd") for word in CORPUS if len(word) < 20_000))
PLACES = 6
WORDS = (*WORDS, *WORDS[: -len(WORDS) % PLACES])
WIDEST = "Math.max(0, ...[...document.querySelectorAll(':is(td, th):not([colspan])')].map((cell) => cell.offsetWidth))"
HANDLER = re.compile(r"on[a-z]+$")


def write(store: Store, words: Sequence[str]) -> None:
    """Write base models, each with a published variant, a failed one and a refused recipe; each word stands in one kind of place."""
    world = World(store)
    groups = [words[start : start + PLACES] for start in range(0, len(words), PLACES)]
    found = [made(number, *group) for number, group in enumerate(groups)]
    store.record_models(
        [replace(world.candidate(base), license_name=group[1]) for (base, *_), group in zip(found, groups, strict=True)], AT
    )
    jobs = [Job(kind="measure", base=base.ref, protocol=PROTOCOL) for base, *_ in found]
    for base, good, bad, _ in found:
        jobs += [Job(kind="press", base=base.ref, recipe=one) for one in (good, bad)]
        jobs.append(Job(kind="measure", base=base.ref, recipe=good, protocol=PROTOCOL))
    refusals = [
        Refusal(repo_id=base.repo_id, sha=base.ref.sha, code=group[5], reason=group[5], recipe=group[2])
        for (base, *_), group in zip(found, groups, strict=True)
    ]
    store.record_plan(Plan(jobs=tuple(jobs), refusals=tuple(refusals), done=0))
    for (base, good, bad, outcome), group in zip(found, groups, strict=True):
        numbers = (measured("perplexity", base.perplexity, 0.3), measured("bits_per_weight", 16.0), *speeds(base.size, base.decode))
        world.finish(Job(kind="measure", base=base.ref, protocol=PROTOCOL), measurements=numbers)
        world.make(base, good, outcome)
        why = group[5]
        failed = Job(kind="press", base=base.ref, recipe=bad)
        store.start(failed)
        store.fail(failed, Failure(job_id=failed.id, error=why, reason=why, hint=why, log_tail=why, seconds=1.0, retryable=False))


def made(number: int, name: str, fact: str, title: str, step: str, layer: str, _why: str) -> tuple[Family, Recipe, Recipe, Outcome]:
    """A base model with two recipes, and what becomes of the first."""
    done = StepRecord(method=step, layers={f"{layer}.1": {"kept": layer}}, notes=(layer,))
    errors = (LayerError(layer=f"{layer}.q", error=0.5, tokens=8, protocol=layer),)
    outcome = Outcome(size=2.9, ratio=1.02, half=0.003, kl=0.02, decode=96, bits=4.9, layers=errors, steps=(done,))
    first = recipe(title, title, title, step, (step, step))
    first = replace(first, steps=(replace(first.steps[0], params={"seed": number, step: step}),))
    second = replace(first, name=f"{title} 2", steps=(Step(method="gptq", scheme=step, params={"seed": number}),))
    base = Family(
        repo_id=f"{number:03d}{name}/{name}", architecture=fact, parameters=1000, size=7.6, perplexity=14.1, decode=212, licence=fact
    )
    return base, first, second, outcome


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The site of hostile names and that of harmless ones, model for model."""
    made = []
    for name, words in (("hostile", WORDS), ("calm", tuple(f"harmless{number}" for number in range(len(WORDS))))):
        folder = tmp_path_factory.mktemp(name)
        with Store(f"sqlite:///{folder / 'modelpress.db'}") as store:
            write(store, words)
            site.build(store, folder / "site", hub_url=HUB)
            (folder / "tables.md").write_text(tables.results(read_board(store), {}, []))
        made.append(folder)
    return made[0], made[1]


def pages(folder: Path) -> list[Path]:
    """The pages of a site, those of models in the order in which they were made."""
    return sorted((folder / "site").rglob("*.html"), key=lambda page: (page.parent.name, page.name))


def shape(page: Path) -> list[tuple[str, list[str]]]:
    """Elements in their order with the names of their attributes; labels in charts, which find room or do not, are left out."""
    kept = (item for item in html.fromstring(page.read_bytes()).iter() if "label" not in (item.get("class") or "") or item.tag == "label")
    return [(str(item.tag), sorted(item.attrib)) for item in kept if item.get("class") != "leader"]


def test_pages_have_the_structure_of_harmless_ones(folders: tuple[Path, Path]) -> None:
    hostile, calm = map(pages, folders)
    assert len(hostile) == len(calm) == len(WORDS) // PLACES + 5
    for page, other in zip(hostile, calm, strict=True):
        assert shape(page) == shape(other), page.name
        root = html.fromstring(page.read_bytes())
        assert [item.get("src").removeprefix("../") for item in root.iter("script")] == ["static/site.js"]
        assert [item.text for item in root.iter("script")] == [None]
        assert not [name for item in root.iter() for name in item.attrib if HANDLER.match(name)]
        for item in root.iter():
            for name in {"href", "src", "action", "style", "srcdoc"} & set(item.attrib):
                address = item.get(name)
                assert address.startswith(f"{HUB}/") or re.match(r"(\.\./)?[\w./#-]+\Z", address), address
        seen = page.read_text()
        assert not {char for char in seen if unicodedata.category(char) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")} - {"\n"}


def test_every_word_is_shown_as_it_is(folders: tuple[Path, Path]) -> None:
    shown = "\n".join(str(html.fromstring(page.read_bytes()).text_content()) for page in pages(folders[0]))
    lost = [word for word in WORDS if plain(word) not in shown]
    assert [word for word in lost if len(plain(word)) < MOST] == []


def test_files_stay_where_they_belong(folders: tuple[Path, Path]) -> None:
    for folder in folders:
        out = folder / "site"
        assert {path.name for path in folder.iterdir()} >= {"site", "modelpress.db", "tables.md"}
        assert {path.parent for path in out.rglob("*") if path.is_file()} == {out, out / "models", out / "static"}
        for path in (out / "models").iterdir():
            assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.(html|json)", path.name, re.ASCII)
            assert len(path.name) < 200
        for path in out.rglob("*.json"):
            assert "</script" not in path.read_text().replace("\\/", "/") or path.read_text().isascii()
            json.loads(path.read_text())


def test_the_tables_of_the_docs_keep_their_structure(folders: tuple[Path, Path]) -> None:
    parser = MarkdownIt("commonmark").enable("table")

    def structure(text: str) -> list[tuple[str, str]]:
        inline = (child for token in parser.parse(text) for child in (token, *(token.children or ())))
        return [(token.type, str(token.attrs)) for token in inline if token.type not in ("text", "text_special", "code_inline")]

    hostile, calm = ((folder / "tables.md").read_text() for folder in folders)
    assert structure(hostile) == structure(calm)


@pytest.mark.integration
def test_a_browser_runs_nothing_and_nothing_sticks_out(folders: tuple[Path, Path]) -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    out = folders[0] / "site"
    longest = max((out / "models").glob("*.html"), key=lambda page: page.stat().st_size)
    paths = [
        "index.html",
        "jobs.html",
        "methods.html",
        f"models/{longest.name}",
        *(f"models/{page.name}" for page in pages(folders[0])[8:60:8]),
    ]
    with served(out) as address, playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(120_000)
        wrong: list[str] = []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(address) else None)
        for path in paths:
            page.goto(address + path)
            for width in (1280, 375):
                page.set_viewport_size({"width": width, "height": 900})
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (path, width)
                widest = page.evaluate(WIDEST)
                assert widest <= 970, (path, width)
        browser.close()
    assert wrong == []


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Keep the test output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def test_names_of_files_are_safe_on_every_system() -> None:
    found = [safe_name(word) for word in CORPUS]
    assert len(set(found)) == len(CORPUS)
    for name in found:
        assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,170}", name, re.ASCII), name
        assert path_fault(f"{name[:150]}.html") is None, name
