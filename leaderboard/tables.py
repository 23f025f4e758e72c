"""The results as Markdown tables for docs/methods.md: for each base model what every recipe costs and what became of it, and verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hub.domain import Refusal
from hub.history import VariantRecord
from leaderboard.families import FAMILIES, TITLES, family
from leaderboard.queries import BasePage, Board, reasons
from leaderboard.rows import Cell, Row
from leaderboard.text import Markdown, code, duration, markdown, size
from leaderboard.words import hardware

BEGIN = "<!-- results: begin (written by `modelpress methods --write`; verdicts come from verdicts.toml) -->"
END = "<!-- results: end -->"
_HEAD = (
    "Recipe",
    "Size",
    "Bits per weight",
    "Perplexity",
    "Against the base",
    "KL divergence, nats/token",
    "Press time",
    "Press memory",
    "Released",
)


def results(board: Board, verdicts: Mapping[str, str], methods: Sequence[str]) -> str:
    """Return the generated section: verdicts by method (those of `methods` that have one), then a table for each base model."""
    parts = ["## Results"]
    if judged := [f"- {code(name)}: {markdown(verdicts[name])}" for name in methods if name in verdicts]:
        parts += ["### Verdicts", "\n".join(judged)]
    parts += [_model(page) for page in board.pages if page.main.protocol]
    return "\n\n".join(parts) + "\n"


def replace_between(text: str, section: str) -> str | None:
    """Return the text with what stands between the two marks replaced; None where they are not there, once each and in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in after or END in after or END in before:
        return None
    return f"{before}{BEGIN}\n\n{section}\n{END}{after}"


def _model(page: BasePage) -> str:
    rows = {row.variant_id: row for row in page.main.rows}
    known = [(variant, rows[variant.variant_id]) for variant in page.variants if variant.variant_id in rows]
    lines = [_cells(_HEAD), "|---|" + "---:|" * (len(_HEAD) - 2) + "---|", _cells(_base(page.main.rows))]
    for name in FAMILIES:
        mine = sorted(
            ((v, row) for v, row in known if family(v.recipe) == name), key=lambda entry: (entry[1].bytes or float("inf"), entry[1].name)
        )
        if mine:
            lines.append(_cells((Markdown(f"**{TITLES[name]}**"), *[""] * (len(_HEAD) - 1))))
            lines += [_cells(_variant(variant, row)) for variant, row in mine]
    where = hardware(page.main.rows[0].environment)
    said = f"Protocol {code(page.main.protocol)}{f', on {markdown(where)}' if where else ''}. ± is half of an interval of 95 %."
    return "\n\n".join([f"### {markdown(page.record.candidate.ref.repo_id)}", said, "\n".join(lines), *_refused(page.refusals)])


def _cells(row: Sequence[str]) -> str:
    return "| " + " | ".join(markdown(cell) for cell in row) + " |"


def _base(rows: Sequence[Row]) -> tuple[str, ...]:
    row = next(row for row in rows if row.is_base)
    return ("base", *(_read(row.cells.get(key)) for key in ("disk_size", "bits_per_weight", "perplexity")), "–", "0", "–", "–", "–")


def _variant(variant: VariantRecord, row: Row) -> tuple[str, ...]:
    keys = ("disk_size", "bits_per_weight", "perplexity", "perplexity_ratio", "kl_divergence")
    time = duration(variant.press_seconds) if variant.press_seconds is not None else "–"
    memory = size(variant.press_peak_memory_bytes) if variant.press_peak_memory_bytes else "–"
    return (code(row.name), *(_read(row.cells.get(key)) for key in keys), time, memory, _released(variant, row))


def _read(cell: Cell | None) -> str:
    return " ".join(part for part in (cell.text, cell.spread, cell.unit) if part) if cell else "–"


def _released(variant: VariantRecord, row: Row) -> str:
    """Say whether a variant is released, or why not in few words."""
    if row.published:
        return "yes"
    if row.state.code == "held":
        newest = max(variant.verdicts, key=lambda verdict: (verdict.stage == "release", verdict.judged_at), default=None)
        failed = [check.name.replace("_", " ") for check in newest.checks if not check.passed] if newest else []
        return f"no: {', '.join(failed) or row.state.detail}"
    if row.state.code == "failed" and variant.failure:
        return f"no: {variant.failure.error}: {variant.failure.reason}"
    return f"no: {row.state.word.lower()}"


def _refused(refusals: Sequence[Refusal]) -> list[str]:
    """Return a list of what does not fit the model: each reason once, with its recipes."""
    lines = [f"- {', '.join(code(name) for name in recipes)}: {markdown(reason)}" for reason, recipes in reasons(refusals)]
    return ["Not pressed, because the model does not suit them:", "\n".join(lines)] if lines else []
