"""A queue that several dispatchers share: needs, leases, retries, attempts; the popularity of every listed model; what was sent to the Hub.

Jobs that were planned or running when the database is migrated are left out until the next plan names them: nobody wrote down what they
wait for, and the dispatcher of a running one was of an older program, which is gone.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the columns and tables; the popularity known so far becomes that of its models' repositories."""
    _jobs()
    _tables()
    _popularity()


def _jobs() -> None:
    # Added and dropped one by one: SQLite would make the table anew, which other tables refer to.
    for column in (
        sa.Column("position", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("waits_for", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("not_before", sa.Double(), nullable=False, server_default="0"),
        sa.Column("economy", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("cancel", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("expected", sa.Text(), nullable=True),
        sa.Column("owner", sa.Text(), nullable=True),
        sa.Column("lease_until", sa.Double(), nullable=True),
        sa.Column("began", sa.Double(), nullable=True),
        sa.Column("category", sa.Text(), nullable=True),
    ):
        op.add_column("jobs", column)
    op.execute("UPDATE jobs SET state = 'cancelled', started_at = NULL WHERE state IN ('running', 'planned')")
    op.execute("UPDATE jobs SET position = number")
    op.drop_column("jobs", "pid")
    op.drop_column("jobs", "process_started_at")
    op.drop_index("ix_jobs_state", "jobs")
    op.create_index("ix_jobs_state_waits_for_position", "jobs", ["state", "waits_for", "position"])
    op.create_index("ix_jobs_model_id_state_waits_for_position", "jobs", ["model_id", "state", "waits_for", "position"])


def _tables() -> None:
    op.create_table(
        "job_needs",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("needs", sa.String(length=40), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_job_needs_job_id_jobs"),
        sa.ForeignKeyConstraint(["needs"], ["jobs.id"], name="fk_job_needs_needs_jobs"),
        sa.PrimaryKeyConstraint("job_id", "needs", name="pk_job_needs"),
    )
    op.create_index("ix_job_needs_needs", "job_needs", ["needs"])
    op.create_table(
        "attempts",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("began", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("hardware", sa.Text(), nullable=False),
        sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("gpus", sa.Double(), nullable=False, server_default="0"),
        sa.Column("cost", sa.Double(), nullable=False, server_default="0"),
        sa.Column("expected", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_attempts_job_id_jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
    )
    op.create_index("ix_attempts_began", "attempts", ["began"])
    op.create_index("ix_attempts_job_id", "attempts", ["job_id"])
    op.create_table(
        "controls",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_controls"),
    )
    op.create_table(
        "hub_writes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.PrimaryKeyConstraint("id", name="pk_hub_writes"),
    )
    op.create_index("ix_hub_writes_at", "hub_writes", ["at"])


def _popularity() -> None:
    """Key listings by repository. Two commits of a repository in one listing could not be, so nothing is lost."""
    op.rename_table("popularity", "popularity_by_model")
    op.drop_index("ix_popularity_taken_at", "popularity_by_model")
    if op.get_bind().dialect.name == "postgresql":  # there the names of constraints outlive the table's
        op.execute("ALTER INDEX pk_popularity RENAME TO pk_popularity_by_model")
        op.execute("ALTER SEQUENCE popularity_id_seq RENAME TO popularity_by_model_id_seq")
    op.create_table(
        "popularity",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("repo_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Integer(), nullable=True),
        sa.Column("taken_at", sa.String(length=32), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("score", sa.Double(), nullable=True),
        sa.Column("downloads", sa.BigInteger(), nullable=False),
        sa.Column("likes", sa.BigInteger(), nullable=False),
        sa.Column("trending_score", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_popularity_model_id_models"),
        sa.PrimaryKeyConstraint("id", name="pk_popularity"),
        sa.UniqueConstraint("repo_id", "taken_at", name="uq_popularity_repo_id_taken_at"),
    )
    op.execute(
        "INSERT INTO popularity (repo_id, model_id, taken_at, rank, downloads, likes, trending_score) "
        "SELECT models.repo_id, old.model_id, old.taken_at, old.rank, old.downloads, old.likes, old.trending_score "
        "FROM popularity_by_model AS old JOIN models ON models.id = old.model_id "
        "WHERE old.id IN (SELECT max(o.id) FROM popularity_by_model AS o JOIN models AS m ON m.id = o.model_id "
        "GROUP BY m.repo_id, o.taken_at)"
    )
    op.drop_table("popularity_by_model")
    op.create_index("ix_popularity_taken_at", "popularity", ["taken_at"])
    op.create_index("ix_popularity_model_id", "popularity", ["model_id"])
