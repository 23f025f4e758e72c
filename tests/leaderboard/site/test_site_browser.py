"""The site in a real Chromium: no console error, sorting, shared links, phone width, dark mode, no JavaScript, file://."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from hub.store import Store
from leaderboard import site

pytestmark = pytest.mark.integration
PAGES = ("index.html", "models/modelpress-samples--sample-llama.html", "models/modelpress-samples--sample-gpt2.html",
         "jobs.html", "methods.html", "protocol.html", "404.html")  # fmt: skip


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


@pytest.fixture(scope="module")
def folder(full_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("browser") / "site"
    with Store(f"sqlite:///{full_file}") as store:
        site.build(store, out, hub_url="http://127.0.0.1:8757")
    return out


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The site served on loopback from a sub-path, as a static host would."""
    yield from served(folder)


@pytest.fixture(scope="module")
def crowded(crowd_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site of a model with ninety variants."""
    out = tmp_path_factory.mktemp("crowded") / "site"
    with Store(f"sqlite:///{crowd_file}") as store:
        site.build(store, out, hub_url="http://127.0.0.1:8757")
    yield from served(out)


def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/site/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = started.chromium.launch(executable_path=program, args=flags, timeout=300_000)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose console errors, exceptions and requests to other hosts fail the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.set_default_timeout(120_000)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("request", lambda request: wrong.append(request.url) if "//127.0.0.1" not in request.url else None)
    yield opened
    context.close()
    assert wrong == []


def names(page: Any, group: int = 0) -> list[str]:
    rows = page.locator("table.board tbody").nth(group).locator("tr.row:not([hidden]) th.name a")
    return [str(text) for text in rows.all_inner_texts()]


@pytest.mark.parametrize("path", PAGES)
def test_every_page_renders_without_errors_and_never_scrolls_sideways(path: str, page: Any, address: str) -> None:
    page.goto(address + path)
    page.wait_for_load_state("networkidle")
    assert page.locator("h1").count() == 1
    assert page.evaluate("document.fonts.check('16px Archivo')")
    for width in (1440, 1024, 375, 320):
        page.set_viewport_size({"width": width, "height": 812})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        assert page.evaluate("(scrollTo(500, 0), scrollX)") == 0


def test_sorting_stays_within_a_base_model_and_goes_to_the_address(page: Any, address: str) -> None:
    page.goto(address)
    before = names(page)
    button = page.get_by_role("button", name="Decode")
    button.focus()
    page.keyboard.press("Enter")
    assert names(page)[:3] == ["depth-distil", "base", "wanda-50"]
    assert len(names(page)) == len(before)
    assert button.locator("xpath=..").get_attribute("aria-sort") == "descending"
    page.wait_for_url("**/?sort=decode_tokens_per_second.descending")
    button.click()
    assert names(page)[0] == "gptq-w3a16-g64"
    button.click()
    assert names(page) == before
    page.wait_for_url(address)
    assert page.locator("[aria-sort]").count() == 0


def test_a_shared_link_opens_the_same_view(page: Any, address: str) -> None:
    page.goto(f"{address}?q=llama+w&sort=disk_size.ascending")
    assert page.get_by_role("searchbox").input_value() == "llama w"
    assert names(page) == ["gptq-w3a16-g64", "gptq-w4a16-g128", "int8-w8a8", "base", "wanda-50"]
    assert page.locator("table.board tbody:not([hidden])").count() == 1
    page.get_by_role("searchbox").fill("no such thing")
    assert page.get_by_text("No row fits this filter.").is_visible()
    page.get_by_role("searchbox").fill("")
    page.wait_for_url(f"{address}?sort=disk_size.ascending")


def test_the_filter_by_state_keeps_the_base_beside_its_variants(page: Any, address: str) -> None:
    page.goto(address)
    page.get_by_label("Show").select_option("held")
    assert names(page) == ["base", "wanda-50"]
    page.wait_for_url("**/?state=held")


def test_two_clicks_from_the_front_page_to_a_command(page: Any, address: str) -> None:
    page.goto(address)
    page.locator("table.take a.pick").first.click()
    command = page.locator("div:target pre").first
    command.wait_for()
    assert "hf download modelpress/sample-llama-int8-w8a8" in command.inner_text()


MODEL = "models/modelpress-samples--sample-llama.html"


def test_ninety_variants_stay_readable(page: Any, crowded: str) -> None:
    page.goto(crowded)
    assert page.get_by_role("heading", name="The variants that nothing beats").is_visible()
    assert len(names(page)) < 30
    assert page.evaluate("document.documentElement.scrollHeight") < 6000
    page.get_by_role("link", name="All 90 variants of sample-llama").click()
    page.wait_for_url("**/models/**")
    assert page.locator("table.board tr.row").count() == 91
    overlaps = """() => [...document.querySelectorAll("svg.chart")].map((svg) => {
        const boxes = [...svg.querySelectorAll("text.label")].map((label) => label.getBoundingClientRect());
        return boxes.filter((a, i) => boxes.some((b, j) => j > i &&
            a.left + 1 < b.right && b.left + 1 < a.right && a.top + 3 < b.bottom && b.top + 3 < a.bottom)).length;
    })"""
    assert page.evaluate(overlaps) == [0, 0]
    assert page.locator("details.variant[open]").count() == 0
    for name in ("methods.html", "jobs.html"):
        page.goto(crowded + name)
        assert page.evaluate("document.documentElement.scrollHeight") < 9000, name


@pytest.mark.parametrize("width", [1440, 390])
def test_a_long_table_keeps_its_head_and_names_in_sight(width: int, page: Any, crowded: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(crowded + MODEL)
    page.evaluate("document.querySelector('.tall').scrollIntoView()")
    page.evaluate("document.querySelector('.tall').scrollTo(300, 2000)")
    places = """() => {
        const [box, name, head] = [".tall", "thead th.name", "thead th[data-key=kl_divergence]"].map((s) =>
            document.querySelector(s).getBoundingClientRect());
        return [name.left - box.left, head.top - box.top, innerHeight - box.bottom];
    }"""
    left, top, below = page.evaluate(places)
    assert (abs(left) < 60, abs(top) < 2, below >= 0) == (True, True, True), (left, top, below)
    row = page.locator("table.board tr.row").nth(70).get_attribute("id")
    page.goto("about:blank")
    page.goto(f"{crowded}{MODEL}#{row}")
    target = page.locator("tr:target").bounding_box()
    assert 100 < target["y"] < 850, "a link to a row shows it below the head"


def test_the_filter_by_family_is_in_the_address(page: Any, crowded: str) -> None:
    page.goto(crowded + MODEL)
    page.get_by_label("Method").select_option("low-rank")
    rows = page.locator("table.board tr.row:not([hidden])")
    assert rows.count() == 1 + 15
    page.wait_for_url("**/*?family=low-rank")
    page.goto(f"{crowded}{MODEL}?family=export&state=verified")
    assert 1 < rows.count() < 1 + 15
    assert all("gguf" in text or "base" in text for text in rows.all_inner_texts())


def test_a_link_to_a_folded_variant_opens_it(page: Any, crowded: str) -> None:
    page.goto(crowded)
    page.locator("table.take a.pick").first.click()
    opened = page.locator("details.variant[open]")
    opened.wait_for()
    page.wait_for_load_state()
    assert opened.count() == 1
    assert "hf download" in opened.inner_text()
    assert "Error of single layers" in opened.inner_text()
    assert "Left in the base's precision" in opened.inner_text()
    assert opened.bounding_box()["y"] < 900


def test_works_without_javascript(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False, viewport={"width": 375, "height": 812})
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.goto(address)
    assert page.locator("table.board tr.row").count() == 21
    assert not page.locator("form.filter").is_visible()
    assert page.locator("table.board th button").count() == 0
    page.goto(address + PAGES[1])
    assert page.locator("svg.chart").count() == 2
    assert page.get_by_text("hf download").first.is_visible()
    context.close()


CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const f = (v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => { return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const c = parse(getComputedStyle(at).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const element of document.querySelectorAll("body *:not(svg):not(svg *)")) {
    if (!element.innerText || ![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) bad.push(`${element.tagName}.${element.className}: ${ratio.toFixed(2)}`);
  }
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_aa_in_both_themes(scheme: str, browser: Any, address: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    for path in PAGES:
        page.goto(address + path)
        assert page.evaluate(CONTRAST) == []
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    context.close()


def test_opens_from_a_folder_too(browser: Any, folder: Path) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto((folder / "index.html").as_uri())
    assert page.locator("table.board tr.row").count() == 21
    page.get_by_role("button", name="Decode").click()
    assert names(page)[0] == "depth-distil"
    context.close()
