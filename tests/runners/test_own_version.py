"""A manifest says which ModelPress pressed it, down to the commit where that can be told."""

from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from runners import environment


def git(folder: Path, *words: str) -> str:
    name = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    return subprocess.run(["git", "-C", str(folder), *name, *words], capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_of_a_work_tree_is_told_and_that_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = version("modelpress")
    package = tmp_path / "runners"
    package.mkdir()
    assert environment.own_version(package) == plain, "no work tree"
    git(tmp_path, "init", "-q")
    assert environment.own_version(package) == plain, "no commit yet"
    (package / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "v9")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert environment.own_version(package) == f"{plain}+g{commit[:12]}"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    (package / "a.py").write_text("a = 2\n")
    assert environment.own_version(package) == f"{plain}+g{commit[:12]}.dirty"
    monkeypatch.setenv("PATH", "")
    assert environment.own_version(package) == plain, "no git"


def test_an_installation_from_a_repository_notes_its_commit() -> None:
    noted = '{"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": "%s"}}'
    assert environment._commit_installed(noted % ("3b0e708c" * 5)) == "3b0e708c3b0e"
    for other in ("{}", "[]", "no JSON", '{"vcs_info": null}', '{"dir_info": {"editable": true}}'):
        assert environment._commit_installed(other) == ""
