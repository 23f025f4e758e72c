"""Numbers at points of a curve, scores by window, notes on what was not measured, and protocols of sections.

A protocol was flat before: a text, windows of it, a prompt and its repeats. The stored ones are written anew in sections, so that what was
measured under them is read and shown as before. Their ids, and those of the jobs, stay what they were: hashes of the flat form. So the same
protocol in sections is another one to the planner, and what was measured under the old one is kept and measured again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

FLAT = ("text", "text_sha256", "sequence_length", "windows", "prompt_tokens", "new_tokens", "repeats", "warmup")
MOST_LOADS = 3

V_RESULTS = """
CREATE VIEW v_results AS
SELECT
    models.repo_id AS base_model,
    models.sha AS base_sha,
    COALESCE(variants.label, models.repo_id || '@' || substr(models.sha, 1, 8)) AS variant,
    COALESCE(variants.recipe_name, 'base') AS recipe,
    COALESCE(variants.method, 'none') AS method,
    COALESCE(variants.scheme, 'none') AS scheme,
    COALESCE(variants.format, 'dense') AS format,
    measurements.metric AS metric,
    measurements.value AS value,
    measurements.unit AS unit,
    measurements.ci_low AS ci_low,
    measurements.ci_high AS ci_high,
    measurements.higher_is_better AS higher_is_better,
    protocols.name AS protocol,
    measurements.engine AS engine,
    environments.hardware AS hardware,
    measurements.measured_at AS measured_at,
    measurements.conditions AS conditions,
    measurements.basis AS basis,
    measurements.percentiles AS percentiles
FROM measurements
JOIN models ON models.id = measurements.model_id
JOIN protocols ON protocols.id = measurements.protocol_id
JOIN environments ON environments.id = measurements.environment_id
LEFT JOIN variants ON variants.id = measurements.variant_id
"""

V_SCORES = """
CREATE VIEW v_scores AS
SELECT
    models.repo_id AS base_model,
    models.sha AS base_sha,
    COALESCE(variants.label, models.repo_id || '@' || substr(models.sha, 1, 8)) AS variant,
    COALESCE(variants.recipe_name, 'base') AS recipe,
    protocols.name AS protocol,
    scores.source AS source,
    scores.samples AS samples,
    scores.fingerprint AS fingerprint,
    scores.tokenizer_sha256 AS tokenizer_sha256,
    jobs.started_at AS measured_at
FROM scores
JOIN jobs ON jobs.id = scores.job_id
JOIN models ON models.id = scores.model_id
JOIN protocols ON protocols.id = scores.protocol_id
LEFT JOIN variants ON variants.id = scores.variant_id
"""


def upgrade() -> None:
    """Add the columns, the table and the views, and write protocols in sections."""
    op.execute("DROP VIEW v_results")
    with op.batch_alter_table("measurements") as measurements:  # SQLite cannot change a constraint: the table is made anew there
        measurements.add_column(sa.Column("conditions", sa.Text(), nullable=False, server_default="{}"))
        measurements.add_column(sa.Column("percentiles", sa.Text(), nullable=False, server_default="{}"))
        measurements.add_column(sa.Column("basis", sa.Text(), nullable=False, server_default="measured"))
        measurements.drop_constraint("uq_measurements_job_id_metric_engine", type_="unique")
        measurements.create_unique_constraint(
            "uq_measurements_job_id_metric_engine_conditions", ["job_id", "metric", "engine", "conditions"]
        )
    op.add_column("jobs", sa.Column("notes", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("machine", sa.Text(), nullable=True))
    op.create_table(
        "scores",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("variant_id", sa.String(length=40), nullable=True),
        sa.Column("protocol_id", sa.String(length=40), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("tokenizer_sha256", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_scores_job_id_jobs"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_scores_model_id_models"),
        sa.ForeignKeyConstraint(["protocol_id"], ["protocols.id"], name="fk_scores_protocol_id_protocols"),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_scores_variant_id_variants"),
        sa.PrimaryKeyConstraint("id", name="pk_scores"),
        sa.UniqueConstraint("job_id", "source", name="uq_scores_job_id_source"),
    )
    op.create_index("ix_scores_model_id_source", "scores", ["model_id", "source"], unique=False)
    op.create_index("ix_scores_variant_id_source", "scores", ["variant_id", "source"], unique=False)
    op.execute(V_RESULTS)
    op.execute(V_SCORES)
    _rewrite("protocols", in_sections)
    _rewrite("jobs", _job_in_sections)


def in_sections(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a flat protocol in sections; one that has them comes back as it is.

    Memory was taken over as many loads as there were repeats, three at most, at the length of prompt and new tokens alone.
    """
    if not all(name in flat for name in FLAT):
        return flat
    return {
        "name": flat["name"],
        "text": {
            "name": flat["text"], "sha256": flat["text_sha256"],
            "dataset": "", "revision": "", "file": "", "column": "", "joiner": "",
        },
        "quality": {"sequence_length": flat["sequence_length"], "windows": flat["windows"]},
        "tasks": None,
        "speed": {
            "batches": [1], "contexts": [flat["prompt_tokens"]], "modes": ["eager"], "new_tokens": flat["new_tokens"],
            "repeats": flat["repeats"], "seconds": 0.0, "warmup": flat["warmup"],
        },
        "memory": {"contexts": [], "loads": min(flat["repeats"], MOST_LOADS)},
    }  # fmt: skip


def _job_in_sections(job: dict[str, Any]) -> dict[str, Any]:
    return {**job, "protocol": in_sections(job["protocol"])} if job.get("protocol") else job


def _rewrite(name: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change each document of a table."""
    table = sa.table(name, sa.column("id", sa.String), sa.column("document", sa.Text))
    connection = op.get_bind()
    rows = connection.execute(sa.select(table.c.id, table.c.document).where(table.c.document.is_not(None))).all()
    for key, document in rows:
        changed = json.dumps(change(json.loads(document)), sort_keys=True)
        connection.execute(sa.update(table).where(table.c.id == key).values(document=changed))
