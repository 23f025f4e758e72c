"""The first tables, and the view `v_results` (docs/results.md).

A later change is a new file beside this one with the next number; `hub.tables.HEAD` names the newest.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

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
    measurements.measured_at AS measured_at
FROM measurements
JOIN models ON models.id = measurements.model_id
JOIN protocols ON protocols.id = measurements.protocol_id
JOIN environments ON environments.id = measurements.environment_id
LEFT JOIN variants ON variants.id = measurements.variant_id
"""


def upgrade() -> None:
    """Make the tables and the view."""
    op.create_table(
        "environments",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_environments"),
    )
    op.create_table(
        "models",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("sha", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("repo_id", "sha", name="uq_models_repo_id_sha"),
    )
    op.create_table(
        "protocols",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_protocols"),
    )
    op.create_table(
        "refusals",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("sha", sa.Text(), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_refusals"),
        sa.UniqueConstraint("repo_id", "sha", "recipe", name="uq_refusals_repo_id_sha_recipe"),
    )
    op.create_table(
        "popularity",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("taken_at", sa.String(length=32), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("downloads", sa.BigInteger(), nullable=False),
        sa.Column("likes", sa.BigInteger(), nullable=False),
        sa.Column("trending_score", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_popularity_model_id_models"),
        sa.PrimaryKeyConstraint("id", name="pk_popularity"),
        sa.UniqueConstraint("model_id", "taken_at", name="uq_popularity_model_id_taken_at"),
    )
    op.create_index("ix_popularity_taken_at", "popularity", ["taken_at"], unique=False)
    op.create_table(
        "variants",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("recipe_name", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("scheme", sa.Text(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_variants_model_id_models"),
        sa.PrimaryKeyConstraint("id", name="pk_variants"),
        sa.UniqueConstraint("label", name="uq_variants_label"),
    )
    op.create_index("ix_variants_model_id", "variants", ["model_id"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("variant_id", sa.String(length=40), nullable=True),
        sa.Column("protocol_id", sa.String(length=40), nullable=True),
        sa.Column("environment_id", sa.String(length=40), nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("process_started_at", sa.Double(), nullable=True),
        sa.Column("started_at", sa.String(length=32), nullable=True),
        sa.Column("updated_at", sa.String(length=32), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True),
        sa.Column("stages", sa.Text(), nullable=True),
        sa.Column("facts", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("hint", sa.Text(), nullable=True),
        sa.Column("log_tail", sa.Text(), nullable=True),
        sa.Column("retryable", sa.Boolean(), nullable=True),
        sa.ForeignKeyConstraint(["environment_id"], ["environments.id"], name="fk_jobs_environment_id_environments"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_jobs_model_id_models"),
        sa.ForeignKeyConstraint(["protocol_id"], ["protocols.id"], name="fk_jobs_protocol_id_protocols"),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_jobs_variant_id_variants"),
        sa.PrimaryKeyConstraint("number", name="pk_jobs"),
        sa.UniqueConstraint("id", name="uq_jobs_id"),
    )
    op.create_index("ix_jobs_state", "jobs", ["state"], unique=False)
    op.create_index("ix_jobs_variant_id", "jobs", ["variant_id"], unique=False)
    op.create_table(
        "releases",
        sa.Column("variant_id", sa.String(length=40), nullable=False),
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("sha", sa.Text(), nullable=False),
        sa.Column("artifact_digest", sa.String(length=40), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("released_at", sa.String(length=32), nullable=False),
        sa.Column("verified_at", sa.String(length=32), nullable=True),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_releases_variant_id_variants"),
        sa.PrimaryKeyConstraint("variant_id", name="pk_releases"),
    )
    op.create_table(
        "verdicts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("variant_id", sa.String(length=40), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("judged_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_verdicts_variant_id_variants"),
        sa.PrimaryKeyConstraint("id", name="pk_verdicts"),
        sa.UniqueConstraint("variant_id", "stage", "subject", name="uq_verdicts_variant_id_stage_subject"),
    )
    op.create_table(
        "artifacts",
        sa.Column("variant_id", sa.String(length=40), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("digest", sa.String(length=40), nullable=False),
        sa.Column("parameters", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("made_at", sa.String(length=32), nullable=False),
        sa.Column("libraries", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_artifacts_job_id_jobs"),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_artifacts_variant_id_variants"),
        sa.PrimaryKeyConstraint("variant_id", name="pk_artifacts"),
    )
    op.create_table(
        "checks",
        sa.Column("verdict_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["verdict_id"], ["verdicts.id"], name="fk_checks_verdict_id_verdicts"),
        sa.PrimaryKeyConstraint("verdict_id", "position", name="pk_checks"),
    )
    op.create_table(
        "measurements",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=False),
        sa.Column("variant_id", sa.String(length=40), nullable=True),
        sa.Column("protocol_id", sa.String(length=40), nullable=False),
        sa.Column("environment_id", sa.String(length=40), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("higher_is_better", sa.Boolean(), nullable=False),
        sa.Column("ci_low", sa.Double(), nullable=False),
        sa.Column("ci_high", sa.Double(), nullable=False),
        sa.Column("ci_method", sa.Text(), nullable=False),
        sa.Column("samples", sa.BigInteger(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("measured_at", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["environment_id"], ["environments.id"], name="fk_measurements_environment_id_environments"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_measurements_job_id_jobs"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_measurements_model_id_models"),
        sa.ForeignKeyConstraint(["protocol_id"], ["protocols.id"], name="fk_measurements_protocol_id_protocols"),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_measurements_variant_id_variants"),
        sa.PrimaryKeyConstraint("id", name="pk_measurements"),
        sa.UniqueConstraint("job_id", "metric", "engine", name="uq_measurements_job_id_metric_engine"),
    )
    op.create_index("ix_measurements_model_id_metric", "measurements", ["model_id", "metric"], unique=False)
    op.create_index("ix_measurements_variant_id_metric", "measurements", ["variant_id", "metric"], unique=False)
    op.create_table(
        "artifact_files",
        sa.Column("variant_id", sa.String(length=40), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["variant_id"], ["artifacts.variant_id"], name="fk_artifact_files_variant_id_artifacts"),
        sa.PrimaryKeyConstraint("variant_id", "position", name="pk_artifact_files"),
        sa.UniqueConstraint("variant_id", "path", name="uq_artifact_files_variant_id_path"),
    )
    op.execute(V_RESULTS)
