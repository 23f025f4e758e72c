"""Fixtures for all tests: where the real models and texts lie, and what this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SHARED = REPO.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real models and data that nobody here wrote; tests that ask for it skip where it is absent."""
    if not (SHARED / "models").is_dir():
        pytest.skip(f"no real models and data at {SHARED.name}/ beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder with the sample models of the embedded hub."""
    return REPO / "hub" / "local" / "samples" / "modelpress-samples"
