"""What each step of a press did (`artifacts.steps`), the errors of single layers, and the view `v_layers` (docs/results.md)."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

V_LAYERS = """
CREATE VIEW v_layers AS
SELECT
    models.repo_id AS base_model,
    models.sha AS base_sha,
    variants.label AS variant,
    variants.recipe_name AS recipe,
    variants.method AS method,
    variants.scheme AS scheme,
    variants.format AS format,
    layer_errors.layer AS layer,
    layer_errors.error AS error,
    layer_errors.tokens AS tokens,
    layer_errors.protocol AS protocol,
    environments.hardware AS hardware,
    jobs.started_at AS measured_at
FROM layer_errors
JOIN jobs ON jobs.id = layer_errors.job_id
JOIN models ON models.id = jobs.model_id
JOIN variants ON variants.id = layer_errors.variant_id
JOIN environments ON environments.id = jobs.environment_id
"""


def upgrade() -> None:
    """Add the column, the table and the view; what was made before has no record of its steps."""
    op.add_column("artifacts", sa.Column("steps", sa.Text(), nullable=True))
    op.create_table(
        "layer_errors",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("variant_id", sa.String(length=40), nullable=False),
        sa.Column("layer", sa.Text(), nullable=False),
        sa.Column("error", sa.Double(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("protocol", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_layer_errors_job_id_jobs"),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_layer_errors_variant_id_variants"),
        sa.PrimaryKeyConstraint("id", name="pk_layer_errors"),
        sa.UniqueConstraint("job_id", "layer", name="uq_layer_errors_job_id_layer"),
    )
    op.create_index("ix_layer_errors_variant_id", "layer_errors", ["variant_id"], unique=False)
    op.execute(V_LAYERS)
