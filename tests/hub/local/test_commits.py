"""Commits, branches, tags, pull requests and trees through the real client."""

from __future__ import annotations

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

pytestmark = pytest.mark.integration


def add(path: str, data: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, data)


def read(api: Any, repo: str, path: str, cache: Path, revision: str | None = None) -> bytes:
    return Path(api.hf_hub_download(repo, path, revision=revision, cache_dir=cache)).read_bytes()


def test_upload_folder_and_unchanged_files_are_skipped(api: Any, repo: str, folder: Path) -> None:
    first = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="All of it", commit_description="At once")
    assert api.model_info(repo).sha == first.oid
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(api.list_repo_files(repo)) == files | {".gitattributes"}
    again = api.upload_folder(repo_id=repo, folder_path=folder)
    assert again.oid == first.oid
    history = api.list_repo_commits(repo)
    assert [(commit.title, commit.message) for commit in history] == [("All of it", "At once"), ("initial commit", "")]
    assert history[0].authors == ["modelpress"]


def test_gitignore_of_the_upload_is_respected(api: Any, repo: str, folder: Path) -> None:
    (folder / ".gitignore").write_text("*.txt\n!keep.txt\nnested/\n")
    (folder / "keep.txt").write_text("kept")
    api.upload_folder(repo_id=repo, folder_path=folder)
    assert set(api.list_repo_files(repo)) == {
        ".gitattributes",
        ".gitignore",
        "README.md",
        "keep.txt",
        "large.safetensors",
        "small.safetensors",
    }


def test_stale_parent_is_refused(api: Any, repo: str) -> None:
    start = api.model_info(repo).sha
    first = api.create_commit(repo, [add("a.txt", b"1")], commit_message="one", parent_commit=start)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit(repo, [add("a.txt", b"2")], commit_message="two", parent_commit=start)
    assert error.value.response.status_code == 412
    assert api.model_info(repo).sha == first.oid
    second = api.create_commit(repo, [add("a.txt", b"2")], commit_message="two", parent_commit=first.oid)
    assert api.model_info(repo).sha == second.oid


def test_of_many_at_once_with_one_parent_exactly_one_lands(api: Any, repo: str) -> None:
    start = api.model_info(repo).sha

    def attempt(number: int) -> int:
        try:
            api.create_commit(repo, [add("a.txt", str(number).encode())], commit_message=f"{number}", parent_commit=start)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(attempt, range(8)))
    assert outcomes == [200] + [412] * 7
    assert len(api.list_repo_commits(repo)) == 2


def test_many_at_once_without_a_parent_all_land(api: Any, repo: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda n: api.create_commit(repo, [add(f"{n}.txt", b"x")], commit_message=f"{n}"), range(6)))
    assert len(api.list_repo_commits(repo)) == 7
    assert len(api.list_repo_files(repo)) == 7


def test_delete_and_copy(api: Any, repo: str, tmp_path: Path) -> None:
    operations = [add("a/1.txt", b"1"), add("a/2.txt", b"2"), add("w.safetensors", b"weights"), add("keep.txt", b"keep")]
    api.create_commit(repo, operations, commit_message="start")
    changes = [
        CommitOperationCopy("w.safetensors", "b/w.safetensors"),
        CommitOperationCopy("keep.txt", "b/keep.txt"),
        CommitOperationDelete("a/"),
        CommitOperationDelete("keep.txt"),
    ]
    api.create_commit(repo, changes, commit_message="reorder")
    assert api.list_repo_files(repo) == [".gitattributes", "b/keep.txt", "b/w.safetensors", "w.safetensors"]
    assert read(api, repo, "b/w.safetensors", tmp_path) == b"weights"
    with pytest.raises(EntryNotFoundError):
        api.delete_file("none.txt", repo)


def test_commit_of_lfs_that_was_not_uploaded_is_refused(raw: Any, hub: Any, repo: str) -> None:
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}},
    ]
    status, _, body = raw("POST", f"/api/models/{repo}/commit/main", "\n".join(map(json.dumps, lines)).encode(), token=hub.write_token)
    assert status == 400
    assert "was not uploaded" in json.loads(body)["error"]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["nonsense"],
        [{"key": "header", "value": {}}],
        [{"key": "header", "value": {"summary": "x"}}, {"key": "magic", "value": {}}],
        [{"key": "header", "value": {"summary": "x"}}, {"key": ["file"], "value": {}}],
        [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": {"path": "a", "content": None}}],
        [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": {"path": "a", "content": 7, "encoding": "base64"}}],
        [{"key": "header", "value": {"summary": "x"}}, {"key": "file", "value": {"path": "a", "content": "%%%", "encoding": "base64"}}],
        [{"key": "header", "value": {"summary": "x", "parentCommit": "zz"}}],
        [
            {"key": "header", "value": {"summary": "x"}},
            {"key": "file", "value": {"path": "a", "content": ""}},
            {"key": "file", "value": {"path": "a/b", "content": ""}},
        ],
        [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": {"path": "a", "algo": "md5", "oid": "0" * 64}}],
        [
            {"key": "header", "value": {"summary": "x"}},
            {"key": "file", "value": {"path": "a", "content": "version https://git-lfs.github.com/spec/v1\n"}},
        ],
    ],
)
def test_malformed_commits_change_nothing(api: Any, raw: Any, hub: Any, repo: str, lines: list[Any]) -> None:
    before = api.model_info(repo).sha
    status, _, _ = raw("POST", f"/api/models/{repo}/commit/main", "\n".join(map(json.dumps, lines)).encode(), token=hub.write_token)
    assert status == 400
    assert api.model_info(repo).sha == before


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "a//b",
        "./a",
        ".git/config",
        "a/.GIT/hooks/x",
        "a\\b",
        "a\nb",
        "a\0b",
        "",
        "x" * 256,
        "a/" * 501 + "a",
    ],
)
def test_hostile_paths_are_refused(api: Any, raw: Any, hub: Any, repo: str, path: str) -> None:
    content = base64.b64encode(b"x").decode()
    for key, value in (("file", {"path": path, "content": content, "encoding": "base64"}), ("deletedFile", {"path": path})):
        lines = [{"key": "header", "value": {"summary": "x"}}, {"key": key, "value": value}]
        status, _, body = raw("POST", f"/api/models/{repo}/commit/main", "\n".join(map(json.dumps, lines)).encode(), token=hub.write_token)
        assert status == 400, body
    status, _, _ = raw(
        "POST", f"/api/models/{repo}/preupload/main", {"files": [{"path": path, "sample": "", "size": 1}]}, token=hub.write_token
    )
    assert status == 400
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_an_invalid_readme_is_refused(api: Any, raw: Any, hub: Any, repo: str) -> None:
    text = "---\na: &x [1]\nb: *x\n---\n"
    with pytest.raises(ValueError, match="aliases"):
        api.create_commit(repo, [add("README.md", text.encode())], commit_message="bomb")
    lines = [
        {"key": "header", "value": {"summary": "bomb"}},
        {"key": "file", "value": {"path": "README.md", "content": text, "encoding": "utf-8"}},
    ]
    status, _, body = raw("POST", f"/api/models/{repo}/commit/main", "\n".join(map(json.dumps, lines)).encode(), token=hub.write_token)
    assert status == 400
    assert "aliases" in json.loads(body)["error"]
    assert api.list_repo_files(repo) == [".gitattributes"]


def test_branches(api: Any, repo: str, tmp_path: Path) -> None:
    start = api.model_info(repo).sha
    api.create_branch(repo, branch="try/one")
    api.create_branch(repo, branch="try/one", exist_ok=True)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_branch(repo, branch="try/one")
    assert error.value.response.status_code == 409
    made = api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=repo, revision="try/one")
    assert api.model_info(repo, revision="try/one").sha == made.oid
    assert api.model_info(repo).sha == start
    assert read(api, repo, "b.txt", tmp_path, "try/one") == b"b"
    with pytest.raises(EntryNotFoundError):
        read(api, repo, "b.txt", tmp_path)
    api.create_branch(repo, branch="old", revision=start)
    assert {branch.name: branch.target_commit for branch in api.list_repo_refs(repo).branches} == {
        "main": start,
        "old": start,
        "try/one": made.oid,
    }
    api.delete_branch(repo, branch="try/one")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="try/one")
    assert api.model_info(repo, revision=made.oid).sha == made.oid
    with pytest.raises(HfHubHTTPError):
        api.delete_branch(repo, branch="main")


def test_tags(api: Any, repo: str) -> None:
    start = api.model_info(repo).sha
    api.create_tag(repo, tag="v1.0", tag_message="first")
    api.create_tag(repo, tag="v1.0", exist_ok=True)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo)
    assert api.model_info(repo, revision="v1.0").sha == start
    assert [(tag.name, tag.ref) for tag in api.list_repo_refs(repo).tags] == [("v1.0", "refs/tags/v1.0")]
    with pytest.raises(BadRequestError):
        api.create_commit(repo, [add("y", b"")], commit_message="to a tag", revision="v1.0")
    api.delete_tag(repo, tag="v1.0")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(repo, revision="v1.0")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(repo, tag="v1.0")


@pytest.mark.parametrize("bad", ["a..b", "a b", "-x/", "a.lock", "x~1", "a//b", "0" * 40])
def test_reference_names_that_git_refuses(api: Any, repo: str, bad: str) -> None:
    with pytest.raises(BadRequestError):
        api.create_tag(repo, tag=bad)
    with pytest.raises(BadRequestError):
        api.create_branch(repo, branch=bad)


def test_revisions_by_id_and_prefix(api: Any, repo: str) -> None:
    sha = api.model_info(repo).sha
    assert api.model_info(repo, revision=sha[:8]).sha == sha
    for unknown in ("0" * 40, "nothing", sha[:6]):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(repo, revision=unknown)


def test_pull_request_from_a_commit_is_merged(api: Any, repo: str, tmp_path: Path) -> None:
    start = api.model_info(repo).sha
    made = api.create_commit(repo, [add("new.txt", b"new")], commit_message="Add new", commit_description="Why", create_pr=True)
    assert made.pr_num == 1
    assert made.pr_revision == "refs/pr/1"
    assert api.model_info(repo).sha == start
    assert read(api, repo, "new.txt", tmp_path, "refs/pr/1") == b"new"
    (listed,) = api.get_repo_discussions(repo, discussion_type="pull_request")
    assert (listed.num, listed.status, listed.title, listed.is_pull_request) == (1, "open", "Add new", True)
    api.upload_file(path_or_fileobj=b"meanwhile", path_in_repo="other.txt", repo_id=repo)
    api.merge_pull_request(repo, 1, comment="Thanks")
    details = api.get_discussion_details(repo, 1)
    assert details.status == "merged"
    assert details.merge_commit_oid == api.model_info(repo).sha
    assert details.target_branch == "refs/heads/main"
    assert {event.type for event in details.events} == {"comment", "commit", "status-change"}
    assert api.list_repo_files(repo) == [".gitattributes", "new.txt", "other.txt"]
    assert api.list_repo_commits(repo)[0].title == "Add new (#1)"
    assert [ref.ref for ref in api.list_repo_refs(repo, include_pull_requests=True).pull_requests] == ["refs/pr/1"]
    with pytest.raises(BadRequestError):
        api.merge_pull_request(repo, 1)


def test_a_draft_takes_commits_and_is_opened_before_it_is_merged(api: Any, repo: str) -> None:
    draft = api.create_pull_request(repo, "A draft", description="Words")
    assert (draft.status, draft.events[0].content) == ("draft", "Words")
    api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo, revision=draft.git_reference)
    with pytest.raises(BadRequestError, match="draft"):
        api.merge_pull_request(repo, draft.num)
    api.change_discussion_status(repo, draft.num, "open")
    api.merge_pull_request(repo, draft.num)
    assert "x.txt" in api.list_repo_files(repo)


def test_a_conflict_is_named_and_not_merged(api: Any, repo: str) -> None:
    api.upload_file(path_or_fileobj=b"base", path_in_repo="a.txt", repo_id=repo)
    pull = api.create_commit(repo, [add("a.txt", b"theirs"), add("b.txt", b"b")], commit_message="Theirs", create_pr=True)
    head = api.upload_file(path_or_fileobj=b"ours", path_in_repo="a.txt", repo_id=repo).oid
    assert api.get_discussion_details(repo, pull.pr_num).conflicting_files == ["a.txt"]
    with pytest.raises(HfHubHTTPError) as error:
        api.merge_pull_request(repo, pull.pr_num)
    assert error.value.response.status_code == 409
    assert api.model_info(repo).sha == head


def test_a_name_that_would_be_a_file_and_a_folder_is_a_conflict(api: Any, repo: str) -> None:
    pull = api.create_commit(repo, [add("a/b.txt", b"theirs")], commit_message="Theirs", create_pr=True)
    head = api.upload_file(path_or_fileobj=b"ours", path_in_repo="a", repo_id=repo).oid
    assert api.get_discussion_details(repo, pull.pr_num).conflicting_files == ["a"]
    with pytest.raises(HfHubHTTPError, match="conflicts"):
        api.merge_pull_request(repo, pull.pr_num)
    assert api.model_info(repo).sha == head


def test_discussions(api: Any, reader: Any, repo: str) -> None:
    made = api.create_discussion(repo, "A question", description="How?")
    assert api.comment_discussion(repo, made.num, "So.").content == "So."
    assert api.rename_discussion(repo, made.num, "Answered").new_title == "Answered"
    assert api.change_discussion_status(repo, made.num, "closed", comment="done").new_status == "closed"
    details = api.get_discussion_details(repo, made.num)
    assert (details.title, details.status, details.is_pull_request) == ("Answered", "closed", False)
    assert [event.type for event in details.events] == ["comment", "comment", "title-change", "status-change", "comment"]
    assert [discussion.num for discussion in api.get_repo_discussions(repo, discussion_status="closed")] == [made.num]
    assert list(api.get_repo_discussions(repo, discussion_status="open")) == []
    with pytest.raises(HfHubHTTPError):
        reader.comment_discussion(repo, made.num, "no right")


def test_tree_and_paths_info(api: Any, repo: str, folder: Path) -> None:
    first = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="first")
    second = api.upload_file(path_or_fileobj=b"new", path_in_repo="nested/new.txt", repo_id=repo, commit_message="second")
    top = {entry.path: entry for entry in api.list_repo_tree(repo)}
    assert set(top) == {".gitattributes", "README.md", "empty.txt", "large.safetensors", "nested", "small.safetensors"}
    assert top["large.safetensors"].lfs.size == 456_789
    assert len(top["nested"].tree_id) == 40
    assert {entry.path for entry in api.list_repo_tree(repo, "nested")} == {"nested/deep", "nested/new.txt"}
    every = {entry.path for entry in api.list_repo_tree(repo, recursive=True)}
    assert {"nested/deep/note.txt", "nested/deep", "nested"} <= every
    expanded = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True, expand=True)}
    assert expanded["nested/new.txt"].last_commit.oid == second.oid
    assert expanded["README.md"].last_commit.oid == first.oid
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(repo, "none"))
    found = api.get_paths_info(repo, ["README.md", "nested", "none", "large.safetensors"], expand=True)
    assert [entry.path for entry in found] == ["README.md", "nested", "large.safetensors"]
    assert found[0].last_commit.title == "first"


def test_large_trees_come_in_pages(api: Any, repo: str) -> None:
    api.create_commit(repo, [add(f"f/{number:04d}.txt", b"") for number in range(1500)], commit_message="many")
    assert len([entry for entry in api.list_repo_tree(repo, recursive=True) if entry.path.endswith(".txt")]) == 1500
    assert len(api.list_repo_files(repo)) == 1501


def test_git_itself_gives_the_same_ids(api: Any, repo: str, folder: Path, tmp_path: Path) -> None:
    import subprocess

    (folder / "large.safetensors").unlink()
    (folder / "small.safetensors").unlink()
    api.upload_folder(repo_id=repo, folder_path=folder)
    (folder / ".gitattributes").write_bytes(Path(api.hf_hub_download(repo, ".gitattributes", cache_dir=tmp_path / "cache")).read_bytes())
    for command in (["init", "-q"], ["-c", "core.autocrlf=false", "add", "-A"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    tree = subprocess.run(["git", "write-tree"], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
    listing = subprocess.run(["git", "ls-tree", tree, "nested"], cwd=folder, check=True, capture_output=True, text=True).stdout.split()
    assert {entry.path: getattr(entry, "tree_id", "") for entry in api.list_repo_tree(repo)}["nested"] == listing[2]


def test_squash(api: Any, repo: str) -> None:
    for number in range(3):
        api.upload_file(path_or_fileobj=str(number).encode(), path_in_repo="a.txt", repo_id=repo)
    api.super_squash_history(repo, commit_message="one for all")
    assert [commit.title for commit in api.list_repo_commits(repo)] == ["one for all"]
    assert api.list_repo_files(repo) == [".gitattributes", "a.txt"]


def test_a_reader_may_not_write(reader: Any, repo: str) -> None:
    for attempt in (
        lambda: reader.create_commit(repo, [add("a", b"")], commit_message="x"),
        lambda: reader.create_branch(repo, branch="x"),
        lambda: reader.create_tag(repo, tag="x"),
        lambda: reader.update_repo_settings(repo, gated="auto"),
        lambda: reader.create_discussion(repo, "A question"),
        lambda: reader.super_squash_history(repo),
        lambda: reader.move_repo(repo, "modelpress/elsewhere"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            attempt()
        assert error.value.response.status_code == 403
