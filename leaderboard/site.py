"""The public site: a folder of static files made from the store alone, put in place as a whole or not at all."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined

from hub.errors import OutOfDisk, UsageError
from hub.history import Release
from hub.store import Store
from leaderboard import exports
from leaderboard.cards import PUBLIC_HUB
from leaderboard.charts import interval_strip
from leaderboard.choices import AIMS
from leaderboard.pictures import legend, size_chart, speed_chart, strip_range
from leaderboard.queries import Board, read_board
from leaderboard.rows import COLUMNS
from leaderboard.stats import find
from leaderboard.steps import kept, layer_summary, percent
from leaderboard.text import duration, number, plain, size
from leaderboard.words import entropy_coded, hardware, protocol_words, usage

MARKER = ".modelpress-site"
_NO_SPACE = 28
_EXCHANGE = 2


def build(store: Store, out: Path, *, hub_url: str) -> int:
    """Build the site beside `out` and swap it in; return how many pages it has.

    `hub_url` is where repositories are linked to. A failed build leaves the old site as it was. Raises `UsageError`
    when `out` holds something that is not a site of ours, or when `hub_url` is no http(s) address; `OutOfDisk`.
    """
    _check_target(out)
    if urlsplit(hub_url).scheme not in ("http", "https"):
        raise UsageError(f"{hub_url!r} is not an http or https address", hint="give the address of the hub, such as https://huggingface.co")
    board = read_board(store)
    try:
        with _scratch_beside(out) as scratch:
            pages = _write(board, store, scratch, hub_url.rstrip("/"))
            _swap(scratch, out)
    except OSError as error:
        if error.errno != _NO_SPACE:
            raise
        raise OutOfDisk(
            f"no space left for the site at {out}", hint="free some space; the site that was there before is untouched"
        ) from error
    return pages


def _check_target(out: Path) -> None:
    if out.is_dir() and not (out / MARKER).exists() and any(out.iterdir()):
        raise UsageError(
            f"{out} holds files that are not a site built here", hint="choose an empty or new folder: the site replaces all of it"
        )
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="choose a folder for the site")


@contextmanager
def _scratch_beside(out: Path) -> Iterator[Path]:
    """Give a new folder beside `out`, so that a rename can put it in place; what a killed build left is removed first."""
    out.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{out.name}.building-"
    for left in out.parent.glob(f"{prefix}*"):
        if not Path(f"/proc/{left.name.removeprefix(prefix).partition('-')[0]}").exists():
            shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=out.parent))
    scratch.chmod(0o755)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(new: Path, out: Path) -> None:
    """Put `new` where `out` is in one step; the old site ends at `new`'s place and is removed with it."""
    if not out.exists():
        new.rename(out)
        return
    if not _exchange(new, out):
        old = new.with_name(f"{new.name}-old")
        out.rename(old)
        new.rename(out)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders atomically (renameat2, Linux); False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    here = -100
    return rename is not None and rename(here, os.fsencode(first.absolute()), here, os.fsencode(second.absolute()), _EXCHANGE) == 0


@dataclass(frozen=True)
class _Pages:
    """Renders templates into one folder and counts the pages."""

    folder: Path
    environment: Environment
    shared: dict[str, Any]
    written: list[str]

    def page(self, path: str, template: str, **context: Any) -> None:
        """Render a template of `site/` to a page; links in it start at `root`."""
        root = "../" * path.count("/")
        text = self.environment.get_template(f"site/{template}").render(**self.shared, **context, root=root, path=path)
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        self.written.append(path)


def _write(board: Board, store: Store, folder: Path, hub_url: str) -> int:
    _copy_static(folder / "static")
    database = _export(board, store, folder)
    audits = {audit.variant_id: audit for audit in store.published.audits()}  # of each the newest
    shared = {"board": board, "columns": COLUMNS, "aims": AIMS, "database": database, "result_columns": exports.RESULT_COLUMNS}
    shared |= {"audits": audits}
    pages = _Pages(folder, environment(hub_url), shared, [])
    low, high = strip_range(board)
    strip = partial(interval_strip, low=low, high=high)
    pages.page("index.html", "index.html.j2", strip=strip)
    for page in board.pages:
        pictures = {group.anchor: (size_chart(page, group), speed_chart(page, group)) for group in page.groups}
        legends = {group.anchor: legend(group) for group in page.groups}
        pages.page(f"models/{page.slug}.html", "model.html.j2", page=page, pictures=pictures, legends=legends, strip=strip)
    for name in ("methods", "jobs", "protocol", "404"):
        pages.page(f"{name}.html", f"{name}.html.j2", strip=strip)
    (folder / MARKER).write_text("This folder is built by modelpress and replaced as a whole.\n", encoding="utf-8")
    return len(pages.written)


def _copy_static(target: Path) -> None:
    target.mkdir(parents=True)
    for item in files("leaderboard.templates").joinpath("static").iterdir():
        if item.is_file():
            (target / item.name).write_bytes(item.read_bytes())


def _export(board: Board, store: Store, folder: Path) -> bool:
    """Write CSV, JSON and, from SQLite, a copy of the database; return whether there is one."""
    names = exports.variant_names([v for page in board.pages for v in page.variants])
    everything: list[exports.ResultRow] = []
    layers: list[exports.ResultRow] = []
    (folder / "models").mkdir()
    for page in board.pages:
        rows = exports.base_results(page.record)
        for variant in page.variants:
            rows += exports.variant_results(variant, names[variant.variant_id])
            layers += exports.variant_layers(variant, names[variant.variant_id])
        (folder / "models" / f"{page.slug}.json").write_text(exports.model_json(page.record, page.variants, rows), encoding="utf-8")
        everything += rows
    (folder / "results.csv").write_text(exports.results_csv(everything), encoding="utf-8", newline="")
    (folder / "layers.csv").write_text(exports.results_csv(layers, exports.LAYER_COLUMNS), encoding="utf-8", newline="")
    (folder / "results.json").write_text(exports.results_json(everything, board.as_of), encoding="utf-8")
    if store.file is None:
        return False
    exports.copy_sqlite(store.file, folder / "results.sqlite")
    return True


def environment(hub_url: str) -> Environment:
    """Return the Jinja environment of the site: everything plain and escaped, undefined names are errors."""
    jinja = Environment(
        loader=PackageLoader("leaderboard.templates", ""),
        autoescape=True,
        finalize=_plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {
        "size": size,
        "number": number,
        "duration": duration,
        "count": _count,
        "layers": layer_summary,
        "percent": percent,
        "kept": kept,
        "coded_size": lambda variant: find(variant.measurements, "entropy_coded_size") if entropy_coded(variant.recipe) else None,
        "usage": usage,
        "sentences": lambda protocol: protocol_words(protocol, protocol.name),
        "machine": hardware,
        "repo": partial(_repo_url, hub_url),
        "release": lambda release: f"{_repo_url(hub_url, release.repo_id)}/tree/{quote(release.sha, safe='')}",
        "fetch": partial(_fetch_command, hub_url),
        "run": partial(_run_command, hub_url),
    }
    return jinja


def _plain(value: Any) -> Any:
    """Make every text that a page shows plain, whatever it came from; markup (also what is escaped already) stays as it is."""
    return plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _count(weights: int) -> str:
    """Return a number of weights as the field writes it: 4.2 M, 8.03 B."""
    factor, unit = next(((f, u) for f, u in ((1e9, " B"), (1e6, " M"), (1e3, " k")) if weights >= f), (1, ""))
    return f"{number(weights / factor)}{unit}"


def _repo_url(hub_url: str, repo_id: str) -> str:
    return f"{hub_url}/{quote(repo_id)}"


def _endpoint(hub_url: str) -> str:
    return "" if hub_url == PUBLIC_HUB else f"HF_ENDPOINT={shlex.quote(hub_url)} "


def _fetch_command(hub_url: str, release: Release) -> str:
    """Return the command that downloads a release at its commit."""
    return f"{_endpoint(hub_url)}hf download {shlex.quote(plain(release.repo_id))} --revision {shlex.quote(plain(release.sha))}"


def _run_command(hub_url: str, release: Release) -> str:
    """Return Python that loads a release at its commit and writes a few tokens."""
    elsewhere = (
        [] if hub_url == PUBLIC_HUB else ["import os", f'os.environ["HF_ENDPOINT"] = {hub_url!r}  # before transformers is imported']
    )
    return "\n".join([
        *elsewhere,
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"at = dict(pretrained_model_name_or_path={plain(release.repo_id)!r}, revision={plain(release.sha)!r})",
        "model, tokenizer = AutoModelForCausalLM.from_pretrained(**at), AutoTokenizer.from_pretrained(**at)",
        'prompt = tokenizer("def add(a, b):", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))",
    ])  # fmt: skip
