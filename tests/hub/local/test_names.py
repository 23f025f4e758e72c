"""Paths, upload modes, .gitignore rules and git ids, without a server."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.local import gitids, paths
from hub.local.web import ApiError


@given(st.text(max_size=40))
def test_an_accepted_path_stays_inside_its_folder(path: str) -> None:
    try:
        accepted = paths.check_path(path)
    except ApiError:
        return
    target = Path("/base").joinpath(accepted)
    assert target.is_relative_to("/base")
    assert ".." not in target.parts
    assert ".git" not in [part.lower() for part in target.parts]
    assert "\0" not in accepted


@pytest.mark.parametrize(
    ("path", "size", "sample", "mode"),
    [
        ("model.safetensors", 10, b"", "lfs"),
        ("a/b/model.gguf", 10, b"text", "lfs"),
        ("config.json", 10, b"{}", "regular"),
        ("config.json", 11 * 2**20, b"{}", "lfs"),
        ("picture", 10, b"\x89PNG\0", "lfs"),
        ("text", 10, "é".encode()[:1], "regular"),
        ("text", 600, b"a" * 511 + "é".encode()[:1], "regular"),
        ("latin", 10, b"\xe9t\xe9 et autres", "lfs"),
        ("saved_model/v/x.txt", 10, b"x", "lfs"),
    ],
)
def test_upload_mode(path: str, size: int, sample: bytes, mode: str) -> None:
    assert paths.upload_mode(path, size, sample, None) == mode


def test_the_repositorys_own_attributes_decide() -> None:
    assert paths.upload_mode("a.json", 2, b"{}", "*.json filter=lfs diff=lfs merge=lfs -text\n") == "lfs"
    assert paths.upload_mode("a.safetensors", 2, b"{}", "# nothing\n") == "regular"


IGNORE = "*.log\n!keep.log\n/top.txt\nbuild/\ndocs/**/*.tmp\n\n# comment\nfoo?.py\n"


@pytest.mark.parametrize(
    "path",
    [
        "a.log",
        "x/a.log",
        "keep.log",
        "x/keep.log",
        "top.txt",
        "x/top.txt",
        "build/a",
        "x/build/a",
        "build",
        "docs/a.tmp",
        "docs/x/y/a.tmp",
        "foo1.py",
        "foo.py",
        "a",
    ],
)
def test_ignored_as_git_does(path: str, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text(IGNORE)
    git = subprocess.run(["git", "check-ignore", "-q", "--no-index", path], cwd=tmp_path, check=False).returncode == 0
    assert paths.ignored(path, IGNORE) == git


def test_conflicts() -> None:
    assert paths.has_conflict(["a", "b/c", "b/d"]) is None
    assert paths.has_conflict(["a/b", "a/b/c"]) == "a/b"


def test_ids_are_those_of_git(tmp_path: Path) -> None:
    """Against git itself: blobs, nested trees, the sorting of `a.b`, `a/` and `a0`, and a commit."""
    contents = {"a/x": b"1", "a.b": b"2", "a0": b"3", "z/y/w": b"4", "empty": b""}

    def git(*arguments: str, data: bytes | None = None) -> str:
        return subprocess.run(["git", *arguments], cwd=tmp_path, check=True, capture_output=True, input=data).stdout.decode().strip()

    git("init", "-q")
    for path, data in contents.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data)
        assert gitids.blob_id(data) == git("hash-object", path)
    git("-c", "core.autocrlf=false", "add", "-A")
    tree = git("write-tree")
    ids = gitids.folder_ids([gitids.regular_file(path, data) for path, data in contents.items()])
    assert ids[""] == tree
    assert ids["z/y"] == git("rev-parse", f"{tree}:z/y")
    identity = {
        f"{who}_{what}": value
        for who in ("GIT_AUTHOR", "GIT_COMMITTER")
        for what, value in (("NAME", "me"), ("EMAIL", "me@localhost"), ("DATE", "1700000000 +0000"))
    }
    import os

    made = subprocess.run(
        ["git", "commit-tree", tree, "-F", "-"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        input=b"title\n",
        env={**os.environ, **identity},
    )
    assert gitids.commit_id(tree, [], "me", 1700000000, "title\n") == made.stdout.decode().strip()


def test_the_empty_tree() -> None:
    assert gitids.folder_ids([])[""] == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def test_lfs_pointer() -> None:
    file = gitids.lfs_file("w", "0" * 64, 5)
    assert file.pointer_size == len(gitids.lfs_pointer("0" * 64, 5)) == 126
    assert file.etag == "0" * 64
