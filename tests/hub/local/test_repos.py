"""Repositories through the real client: accounts, create, delete, move, settings, gates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

pytestmark = pytest.mark.integration


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_whoami_tells_the_roles_apart(api: Any, reader: Any, anonymous: Any, hub: Any) -> None:
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert api.whoami()["name"] == "modelpress"
    assert [org["name"] for org in api.whoami()["orgs"]] == ["modelpress-lab"]
    with pytest.raises(HfHubHTTPError) as error:
        api.whoami(token="hf_wrong")
    assert status_of(error) == 401


def test_a_wrong_token_is_refused_everywhere(api: Any) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        list(api.list_models(token="hf_wrong"))
    assert status_of(error) == 401


def test_create_repo_twice(api: Any, name: str, hub: Any) -> None:
    url = api.create_repo(name)
    assert str(url) == f"{hub.endpoint}/{name}"
    assert url.repo_id == name
    assert api.create_repo(name, exist_ok=True).repo_id == name
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(name)
    assert status_of(error) == 409
    assert error.value.response.json()["url"] == f"{hub.endpoint}/{name}"
    assert api.repo_exists(name)
    assert api.list_repo_files(name) == [".gitattributes"]


def test_create_repo_without_owner_goes_to_the_account(api: Any, name: str) -> None:
    assert api.create_repo(name.split("/")[1]).repo_id == name


@pytest.mark.parametrize("who", ["reader", "anonymous"])
def test_only_the_write_token_creates(request: pytest.FixtureRequest, who: str, name: str) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        request.getfixturevalue(who).create_repo(name)
    assert status_of(error) == (403 if who == "reader" else 401)


def test_other_namespaces_are_refused(api: Any) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("somebody-else/model")
    assert status_of(error) == 403
    with pytest.raises(HfHubHTTPError) as error:
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="modelpress-refusals/no-licence")
    assert status_of(error) == 403


@pytest.mark.parametrize("bad", ["a--b", "a..b", ".a", "-a", "a.git", "ä", "a b", "x" * 97, "../x", "a\nb"])
def test_hostile_names_are_refused(raw: Any, hub: Any, bad: str) -> None:
    status, _, body = raw("POST", "/api/repos/create", {"name": bad, "organization": None}, token=hub.write_token)
    assert status == 400, body
    status, _, body = raw("POST", "/api/repos/create", {"name": "fine", "organization": bad}, token=hub.write_token)
    assert status == 400, body


@pytest.mark.parametrize("owner", ["api", "datasets", "lfs", "health"])
def test_namespaces_of_the_hub_itself_are_refused(raw: Any, hub: Any, owner: str) -> None:
    assert raw("POST", "/api/repos/create", {"name": "x", "organization": owner}, token=hub.write_token)[0] == 400


def test_delete(api: Any, reader: Any, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        reader.delete_repo(repo)
    assert status_of(error) == 403
    api.delete_repo(repo)
    assert not api.repo_exists(repo)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(repo)
    api.delete_repo(repo, missing_ok=True)


def test_missing_repository(api: Any, anonymous: Any) -> None:
    with pytest.raises(RepositoryNotFoundError) as error:
        api.model_info("modelpress/none")
    assert status_of(error) == 404
    with pytest.raises(RepositoryNotFoundError) as error:
        anonymous.model_info("modelpress/none")
    assert status_of(error) == 401


def test_move_forwards_the_old_name(api: Any, repo: str, tmp_path: Path) -> None:
    api.upload_file(path_or_fileobj=b"here", path_in_repo="a.txt", repo_id=repo)
    target = repo.replace("modelpress/", "modelpress-lab/") + "-moved"
    api.move_repo(repo, target)
    assert api.model_info(target).id == target
    assert api.model_info(repo).id == target
    assert Path(api.hf_hub_download(repo, "a.txt", cache_dir=tmp_path)).read_text() == "here"
    api.create_repo(repo)
    assert api.model_info(repo).id == repo
    with pytest.raises(HfHubHTTPError) as error:
        api.move_repo(repo, target)
    assert status_of(error) == 409


def test_names_differ_by_more_than_case(api: Any, repo: str) -> None:
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(repo.replace("/t-", "/T-"))
    assert status_of(error) == 409


def test_private(api: Any, anonymous: Any, name: str) -> None:
    api.create_repo(name, private=True)
    assert api.model_info(name).private is True
    with pytest.raises(RepositoryNotFoundError):
        anonymous.model_info(name)
    api.update_repo_settings(name, private=False)
    assert anonymous.model_info(name).private is False


@pytest.mark.parametrize("gate", ["auto", "manual"])
def test_gate(api: Any, reader: Any, anonymous: Any, repo: str, gate: str, tmp_path: Path) -> None:
    api.upload_file(path_or_fileobj=b"secret", path_in_repo="a.txt", repo_id=repo)
    api.update_repo_settings(repo, gated=gate)
    assert anonymous.model_info(repo).gated == gate
    with pytest.raises(GatedRepoError) as error:
        anonymous.hf_hub_download(repo, "a.txt", cache_dir=tmp_path / "none")
    assert status_of(error) == 401
    assert Path(reader.hf_hub_download(repo, "a.txt", cache_dir=tmp_path / "own")).read_text() == "secret"
    api.update_repo_settings(repo, gated=False)
    assert anonymous.model_info(repo).gated is False
    assert anonymous.hf_hub_download(repo, "a.txt", cache_dir=tmp_path / "open")


def test_the_gated_sample_refuses_until_access_is_given(hub: Any, reader: Any, anonymous: Any, raw: Any, tmp_path: Path) -> None:
    gated = "modelpress-refusals/gated-llama"
    assert reader.model_info(gated).gated == "manual"
    with pytest.raises(GatedRepoError) as error:
        reader.hf_hub_download(gated, "config.json", cache_dir=tmp_path)
    assert status_of(error) == 403
    status, _, body = raw("POST", f"/{gated}/ask-access", token=hub.read_token)
    assert (status, json.loads(body)["status"]) == (200, "pending")
    with pytest.raises(GatedRepoError):
        reader.hf_hub_download(gated, "config.json", cache_dir=tmp_path)


def test_access_is_granted_and_listed(api: Any, raw: Any, hub: Any, repo: str) -> None:
    api.update_repo_settings(repo, gated="manual")
    base = f"/api/models/{repo}/user-access-request"
    assert raw("POST", f"{base}/grant", {"user": "guest"}, token=hub.write_token)[0] == 200
    (entry,) = json.loads(raw("GET", f"{base}/accepted", token=hub.write_token)[2])
    assert entry["user"]["user"] == "guest"
    assert raw("POST", f"{base}/handle", {"user": "guest", "status": "rejected"}, token=hub.write_token)[0] == 200
    assert len(json.loads(raw("GET", f"{base}/rejected", token=hub.write_token)[2])) == 1
    assert raw("POST", f"{base}/handle", {"user": "nobody", "status": "accepted"}, token=hub.write_token)[0] == 404
    assert raw("GET", f"{base}/accepted", token=hub.read_token)[0] == 403


def test_auth_check(api: Any, reader: Any, repo: str) -> None:
    api.auth_check(repo)
    api.auth_check(repo, write=True)
    with pytest.raises(HfHubHTTPError):
        reader.auth_check(repo, write=True)


def test_a_deleted_repository_leaves_nothing_behind_for_its_name(api: Any, repo: str, tmp_path: Path) -> None:
    api.upload_file(path_or_fileobj=b"old", path_in_repo="a.txt", repo_id=repo)
    api.create_tag(repo, tag="v1")
    api.create_discussion(repo, "A question")
    api.delete_repo(repo)
    api.create_repo(repo)
    assert api.list_repo_files(repo) == [".gitattributes"]
    assert api.list_repo_refs(repo).tags == []
    assert list(api.get_repo_discussions(repo)) == []
