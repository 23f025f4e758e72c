"""What became of releases: their cards, changelogs, retirement, and what audits found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the columns and tables; earlier releases have no changelog but the line that is made from the release itself."""
    op.add_column("releases", sa.Column("card_sha256", sa.Text(), nullable=True))
    op.add_column("releases", sa.Column("retired_at", sa.String(length=32), nullable=True))
    op.add_column("releases", sa.Column("retired_why", sa.Text(), nullable=True))
    op.add_column("releases", sa.Column("new_version", sa.Text(), nullable=True))
    op.create_table(
        "release_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("sha", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_release_changes"),
    )
    op.create_index("ix_release_changes_repo_id", "release_changes", ["repo_id"])
    op.create_table(
        "audits",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("variant_id", sa.String(length=40), nullable=False),
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("sha", sa.Text(), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.Column("passed", sa.Boolean(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("libraries", sa.Text(), nullable=False),
        sa.Column("measurements", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["variant_id"], ["variants.id"], name="fk_audits_variant_id_variants"),
        sa.PrimaryKeyConstraint("id", name="pk_audits"),
    )
    op.create_index("ix_audits_variant_id", "audits", ["variant_id"])
    op.execute(
        "INSERT INTO release_changes (repo_id, at, kind, what, content, sha) "
        "SELECT repo_id, released_at, 'released', 'artifact ' || artifact_digest || ' released', '', sha FROM releases"
    )
