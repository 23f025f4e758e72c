"""Run by Alembic. The store hands over its open connection and transaction; nothing is configured here, logging least of all."""

from __future__ import annotations

from alembic import context

from hub.tables import Table

context.configure(connection=context.config.attributes["connection"], target_metadata=Table.metadata)
context.run_migrations()
