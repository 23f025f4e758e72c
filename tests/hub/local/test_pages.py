"""The pages for people, and answers to what the client would not send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

pytestmark = pytest.mark.integration


def test_front_page_lists_models(raw: Any, api: Any, name: str) -> None:
    api.create_repo(name, private=True)
    status, headers, body = raw("GET", "/")
    assert status == 200
    assert headers["content-type"].startswith("text/html")
    assert b"modelpress-refusals/gated-llama" in body
    assert name.encode() not in body


def test_a_repositorys_page_escapes_what_others_wrote(raw: Any, api: Any, repo: str) -> None:
    evil = b"---\nlicense: mit\n---\n<script>alert(1)</script>"
    operations = [CommitOperationAdd("README.md", evil), CommitOperationAdd("<img src=x>.txt", b"x")]
    made = api.create_commit(repo, operations, commit_message="<b>bold</b>")
    for path in (f"/{repo}", f"/{repo}/tree/{made.oid}", made.commit_url.removeprefix(api.endpoint)):
        status, headers, body = raw("GET", path)
        assert status == 200
        assert "default-src 'none'" in headers["content-security-policy"]
        assert b"&lt;script&gt;" in body
        assert b"<script" not in body
        assert b"<img" not in body
        assert b"<b>" not in body
    assert raw("GET", f"/{repo}/resolve/main/%3Cimg%20src%3Dx%3E.txt")[2] == b"x"
    status, headers, _ = raw("GET", f"/{repo}/blob/main/README.md")
    assert (status, headers["location"]) == (302, f"/{repo}/resolve/main/README.md")


def test_a_gated_card_is_not_shown(raw: Any) -> None:
    status, _, body = raw("GET", "/modelpress-refusals/gated-llama")
    assert status == 200
    assert b"placeholder of a few bytes" not in body


def test_unknown_places(raw: Any) -> None:
    assert raw("GET", "/nobody/nothing")[0] == 401
    assert raw("GET", "/api/planets")[0] == 404
    assert raw("GET", "/api/planets/a/b")[0] == 404
    assert raw("PUT", "/api/models")[0] == 405


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff", b"[" * 100_000])
def test_bodies_that_are_no_object(raw: Any, hub: Any, body: bytes) -> None:
    status, _, answer = raw("POST", "/api/repos/create", body, token=hub.write_token)
    assert status == 400
    assert "error" in json.loads(answer)


def test_anybody_with_a_write_token_may_propose_but_not_change(api: Any, reader: Any) -> None:
    foreign = "modelpress-refusals/no-licence"
    made = api.create_commit(foreign, [CommitOperationAdd("w.safetensors", b"x" * 50)], commit_message="Proposal", create_pr=True)
    assert made.pr_num is not None
    assert api.create_discussion(foreign, "Which licence?").num == made.pr_num + 1
    for attempt in (
        lambda: api.merge_pull_request(foreign, made.pr_num),
        lambda: api.create_tag(foreign, tag="x"),
        lambda: reader.create_commit(foreign, [CommitOperationAdd("a", b"x")], commit_message="No", create_pr=True),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            attempt()
        assert error.value.response.status_code == 403
    api.change_discussion_status(foreign, made.pr_num, "closed")
