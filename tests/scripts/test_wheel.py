"""The wheel, installed where nothing else is: the commands answer, and a site is built from an existing database."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.integration
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "press", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "tests")


@pytest.fixture(scope="module")
def clean_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and its core dependencies, no torch."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(REPO, folder / "source", ignore=LEFT_OUT)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder / "dist", folder / "source"], check=True)
    (wheel,) = (folder / "dist").glob("modelpress-*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    binaries = folder / "env" / "bin"
    subprocess.run([binaries / "python", "-m", "pip", "install", "-q", "-c", REPO / "constraints.txt", wheel], check=True)
    return binaries


def run(binaries: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([binaries / "modelpress", *words], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def test_the_commands_answer_without_torch(clean_bin: Path, tmp_path: Path) -> None:
    absent = subprocess.run([clean_bin / "python", "-c", "import torch"], capture_output=True, check=False)
    assert absent.returncode != 0
    assert run(clean_bin, "--help", cwd=tmp_path).returncode == 0
    listed = run(clean_bin, "recipes", cwd=tmp_path)
    assert listed.returncode == 0, listed.stderr
    assert "bnb-nf4" in listed.stdout


def test_doctor_says_what_is_missing_and_how_to_get_it(clean_bin: Path, tmp_path: Path) -> None:
    done = run(clean_bin, "doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "NO  gptq" in done.stdout
    assert "pip install" in done.stdout


def test_pressing_without_the_libraries_is_refused(clean_bin: Path, tmp_path: Path, samples: Path) -> None:
    done = run(clean_bin, "compress", str(samples / "sample-llama"), "--recipe", "bnb-nf4", "--out", "out", cwd=tmp_path)
    assert done.returncode == 6, done.stderr
    assert "pip install" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_site_is_built_from_a_database(clean_bin: Path, tmp_path: Path, quick_run: object) -> None:
    press = quick_run.folder.press  # type: ignore[attr-defined]
    (tmp_path / "press").mkdir()
    for name in ("modelpress.db", "modelpress.db-wal"):
        if (press / name).exists():
            shutil.copy(press / name, tmp_path / "press" / name)
    done = run(clean_bin, "site", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "press" / "site" / "index.html").read_text(encoding="utf-8")
    assert "sample-" in page
