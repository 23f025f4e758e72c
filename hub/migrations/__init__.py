"""Alembic migrations of the results database, run by `hub.database` when one is opened."""
