"""Fixtures for all tests: where the real models and texts lie, and what this machine has."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

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


DEAR = ("scripts/test_unattended", "runners/test_press", "scripts/test_faults", "scripts/test_run", "runners/test_methods")
"""The files that take minutes, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no worker waits for another one alone at the end."""
    items.sort(key=lambda item: next((place for place, name in enumerate(DEAR) if f"tests/{name}.py" in item.nodeid), len(DEAR)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep tests that share dear fixtures in one worker: those of a file, and the files that look at one quick run.

    xdist's own groups (`--dist loadgroup`, `xdist_group`) are lost: it writes them into ids that pytest 9 no longer reads.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(config.rootpath / nodeid.split("::")[0])

    config.option.loadscopereorder = False  # it would begin with the files that hold most tests, which are the cheap ones
    return ByFile(config, log)


@cache
def group(file: Path) -> str:
    """Return what names the group of a test file."""
    return "quick run" if "quick_run" in file.read_text(encoding="utf-8") else str(file)
