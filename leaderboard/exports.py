"""The data behind the site: CSV and JSON with the columns of the SQL views `v_results` and `v_layers`, and a copy of the database."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

from hub.codec import to_json
from hub.domain import Environment, Measurement
from hub.history import BaseRecord, VariantRecord
from leaderboard.text import csv_cell

RESULT_COLUMNS = (
    "base_model", "base_sha", "variant", "recipe", "method", "scheme", "format", "metric", "value", "unit",
    "ci_low", "ci_high", "higher_is_better", "protocol", "engine", "hardware", "measured_at", "conditions", "basis", "percentiles",
)  # fmt: skip
LAYER_COLUMNS = (
    "base_model", "base_sha", "variant", "recipe", "method", "scheme", "format", "layer", "error", "tokens", "protocol", "hardware",
)  # fmt: skip
ResultRow = dict[str, str | float | bool | None]


def base_results(base: BaseRecord) -> list[ResultRow]:
    """Return a base model's measurements as rows of `v_results`."""
    ref = base.candidate.ref
    head = {
        "base_model": ref.repo_id, "base_sha": ref.sha, "variant": f"{ref.repo_id}@{ref.sha[:8]}",
        "recipe": "base", "method": "none", "scheme": "none", "format": "dense",
    }  # fmt: skip
    return [_result(head, m, base.environment_under(m.protocol)) for m in base.measurements]


def variant_results(variant: VariantRecord, name: str) -> list[ResultRow]:
    """Return a variant's measurements as rows of `v_results`; `name` tells it from every other variant."""
    head = _head(variant, name)
    return [_result(head, m, variant.environment_under(m.protocol)) for m in variant.measurements]


def variant_layers(variant: VariantRecord, name: str) -> list[ResultRow]:
    """Return a variant's layer errors as rows of `v_layers`, but for the time."""
    hardware = variant.environment.hardware if variant.environment else None
    found = [{"layer": e.layer, "error": e.error, "tokens": e.tokens, "protocol": e.protocol, "hardware": hardware} for e in variant.layers]
    return [{**_head(variant, name), **row} for row in found]


def _head(variant: VariantRecord, name: str) -> dict[str, str]:
    recipe = variant.recipe
    return {
        "base_model": variant.base.repo_id, "base_sha": variant.base.sha, "variant": name,
        "recipe": recipe.name, "method": recipe.method, "scheme": recipe.scheme, "format": recipe.format,
    }  # fmt: skip


def variant_names(variants: Sequence[VariantRecord]) -> dict[str, str]:
    """Return a name for each variant id as in `v_results`: base and recipe; of two that share it the later one adds its id's start."""
    names: dict[str, str] = {}
    for variant in variants:
        plain = f"{variant.base.name}-{variant.recipe.name}"
        names[variant.variant_id] = f"{plain}-{variant.variant_id[:8]}" if plain in names.values() else plain
    return names


def _result(head: dict[str, str], measurement: Measurement, environment: Environment | None) -> ResultRow:
    tail = {column: getattr(measurement, column) for column in RESULT_COLUMNS if hasattr(measurement, column)}
    documents = {column: to_json(tail[column]) for column in ("conditions", "percentiles")}
    return {**head, **tail, **documents, "hardware": environment.hardware if environment else None}


def results_csv(rows: Iterable[ResultRow], columns: Sequence[str] = RESULT_COLUMNS) -> str:
    """Return CSV (RFC 4180) with a header; text that a spreadsheet would run as a formula is neutralised."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([csv_cell(row[column]) for column in columns] for row in rows)
    return out.getvalue()


def results_json(rows: Sequence[ResultRow], as_of: str) -> str:
    """Return `{"as_of", "results": [...]}`, one object for each measured number."""
    return json.dumps({"as_of": as_of or None, "results": rows}, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def model_json(base: BaseRecord, variants: Sequence[VariantRecord], rows: Sequence[ResultRow]) -> str:
    """Return all that is known of one base model: its facts, its variants with recipe, files, verdicts and release, all results."""
    body = json.loads(to_json({"base": base, "variants": list(variants)}))
    for variant in body["variants"]:
        if variant["failure"]:
            variant["failure"].pop("log_tail", None)  # a log may name paths of the machine that made it
    return json.dumps({**body, "results": rows}, indent=1, sort_keys=True, allow_nan=False) + "\n"


def copy_sqlite(source: Path, target: Path) -> None:
    """Copy a live SQLite database into one self-contained file through the backup API, without the jobs' logs.

    A log may name paths of the machine that made it; `VACUUM` takes it out of the file's free pages too.
    """
    with closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")
        copy.execute("UPDATE jobs SET log_tail = NULL")
        copy.commit()
        copy.execute("VACUUM")
