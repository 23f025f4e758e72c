"""Runs of the real command in folders of their own, shared by the tests that only look at what a run left."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hub.store import Store

from ..ports import free_port  # noqa: TID252
from .operating import Press


@dataclass(frozen=True)
class Folder:
    """A folder in which a user works: modelpress.toml and what the commands leave."""

    path: Path
    port: int

    @property
    def press(self) -> Path:
        return self.path / "press"

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MODELPRESS_", "HF_"))}
        return {**clean, **(extra or {})}

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "modelpress.cli", *words]

    def run(self, *words: str, timeout: float = 560, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words), cwd=self.path, capture_output=True, text=True, timeout=timeout, env=self.environment(env), check=False
        )

    def json(self, *words: str, timeout: float = 560) -> Any:
        done = self.run(*words, "--json", timeout=timeout)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)


def new_folder(path: Path) -> Folder:
    """Make a user's folder whose embedded hub has a port of its own."""
    port = free_port()
    (path / "modelpress.toml").write_text(f"[hub]\nport = {port}\n[farm]\nthreads = 1\n")
    return Folder(path, port)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return new_folder(tmp_path)


@dataclass(frozen=True)
class QuickRun:
    """A finished `modelpress run --quick`."""

    folder: Folder
    report: dict[str, Any]
    stderr: str


@pytest.fixture(scope="session")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    folder = new_folder(tmp_path_factory.mktemp("quick"))
    done = folder.run("run", "--quick", "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return QuickRun(folder, json.loads(done.stdout), done.stderr)


@pytest.fixture
def work(tmp_path: Path, new_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Press]:
    """A work folder with an empty database, and this process in it as a user would be."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith(("MODELPRESS_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "press").mkdir()
    with Store(shutil.copyfile(new_database, tmp_path / "press" / "modelpress.db")) as store:
        yield Press(tmp_path, store)


@pytest.fixture
def another(work: Press) -> Iterator[None]:
    """Another process at work: it holds the folder's lock."""
    with (work.folder / "lock").open("a+") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        handle.write("4711")
        handle.flush()
        yield
