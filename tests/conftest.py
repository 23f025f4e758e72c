"""Fixtures for all tests: where the real models and texts lie, and what this machine has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# An example may take long on a busy machine; what hangs is ended by the run's own limit.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
# One thread a test process: several of them on few cores, each with a pool that spins, take minutes for what takes seconds.
os.environ.setdefault("OMP_NUM_THREADS", "1")

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data that nobody here wrote; tests that ask for it skip where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip(f"no real models and data at {SHARED.name}/ beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database that holds nothing, to be copied: to make one takes longer than most tests do with it."""
    from hub.store import Store

    file = tmp_path_factory.mktemp("database") / "modelpress.db"
    Store(file).close()
    return file


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder with the sample models of the embedded hub."""
    return REPO / "hub" / "local" / "samples" / "modelpress-samples"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep tests that share dear fixtures in one worker (`--dist loadgroup`): those of a file, and all that look at one quick run.

    The whole runs of the commands take longest, so they begin first, and no worker waits for them alone at the end.
    """
    items.sort(key=lambda item: "tests/scripts/test_run" not in item.nodeid)
    for item in items:
        shared_run = "quick_run" in getattr(item, "fixturenames", ())
        item.add_marker(pytest.mark.xdist_group("quick run" if shared_run else item.nodeid.split("::")[0]))
