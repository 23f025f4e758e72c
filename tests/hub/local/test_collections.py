"""Collections through the real client."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from huggingface_hub.errors import HfHubHTTPError

pytestmark = pytest.mark.integration


def test_collection_from_making_to_deleting(api: Any, anonymous: Any, repo: str) -> None:
    title = f"Pressed {uuid.uuid4().hex[:8]}"
    made = api.create_collection(title, description="Small ones", private=False)
    assert made.slug.startswith("modelpress/pressed-")
    assert api.create_collection(title, exists_ok=True).slug == made.slug
    with pytest.raises(HfHubHTTPError) as error:
        api.create_collection(title)
    assert error.value.response.status_code == 409

    api.add_collection_item(made.slug, "modelpress-refusals/no-licence", "model")
    full = api.add_collection_item(made.slug, repo, "model", note="the best")
    assert [(item.item_id, item.position) for item in full.items] == [("modelpress-refusals/no-licence", 0), (repo, 1)]
    assert full.items[1].note == "the best"
    with pytest.raises(HfHubHTTPError) as error:
        api.add_collection_item(made.slug, repo, "model")
    assert error.value.response.status_code == 409
    assert len(api.add_collection_item(made.slug, repo, "model", exists_ok=True).items) == 2
    with pytest.raises(HfHubHTTPError) as error:
        api.add_collection_item(made.slug, "modelpress/none", "model")
    assert error.value.response.status_code == 404

    api.update_collection_item(made.slug, full.items[1].item_object_id, position=0, note="first now")
    assert [(item.item_id, item.note) for item in anonymous.get_collection(made.slug).items] == [
        (repo, "first now"),
        ("modelpress-refusals/no-licence", None),
    ]
    renamed = api.update_collection_metadata(made.slug, title=f"{title} again")
    assert renamed.slug != made.slug
    assert api.get_collection(made.slug).title == f"{title} again"
    assert made.slug[-24:] in [collection.slug[-24:] for collection in api.list_collections(owner="modelpress", item=f"models/{repo}")]

    api.delete_collection_item(made.slug, full.items[0].item_object_id)
    api.delete_collection_item(made.slug, full.items[0].item_object_id, missing_ok=True)
    assert [item.item_id for item in api.get_collection(made.slug).items] == [repo]
    api.delete_collection(made.slug)
    api.delete_collection(made.slug, missing_ok=True)
    with pytest.raises(HfHubHTTPError):
        api.get_collection(made.slug)


def test_private_and_foreign_collections(api: Any, reader: Any, anonymous: Any) -> None:
    made = api.create_collection(f"Hidden {uuid.uuid4().hex[:8]}", private=True)
    with pytest.raises(HfHubHTTPError):
        anonymous.get_collection(made.slug)
    with pytest.raises(HfHubHTTPError):
        reader.update_collection_metadata(made.slug, title="mine")
    with pytest.raises(HfHubHTTPError):
        api.create_collection("Theirs", namespace="somebody-else")
    assert made.slug not in [collection.slug for collection in anonymous.list_collections(owner="modelpress")]


def test_items_follow_their_repositories(api: Any, anonymous: Any, repo: str, name: str) -> None:
    made = api.create_collection(f"Moving {uuid.uuid4().hex[:8]}")
    api.add_collection_item(made.slug, repo, "model", note="n" * 500)
    api.move_repo(repo, f"{name}-moved")
    assert [item.item_id for item in anonymous.get_collection(made.slug).items] == [f"{name}-moved"]
    api.update_repo_settings(f"{name}-moved", private=True)
    assert [len(one.get_collection(made.slug).items) for one in (api, anonymous)] == [1, 0]
    api.delete_repo(f"{name}-moved")
    assert api.get_collection(made.slug).items == []
    api.create_repo(f"{name}-moved")
    assert api.get_collection(made.slug).items == []


def test_what_is_longer_than_the_hub_takes_is_refused(api: Any, repo: str) -> None:
    title = f"Long {uuid.uuid4().hex}"
    made = api.create_collection(title, description="d" * 150)
    added = api.add_collection_item(made.slug, repo, "model")
    for wrong in (
        lambda: api.create_collection("t" * 61),
        lambda: api.create_collection(f"{title} more", description="d" * 151),
        lambda: api.update_collection_metadata(made.slug, title="t" * 61),
        lambda: api.update_collection_metadata(made.slug, description="d" * 151),
        lambda: api.add_collection_item(made.slug, "modelpress-refusals/no-licence", "model", note="n" * 501),
        lambda: api.update_collection_item(made.slug, added.items[0].item_object_id, note="n" * 501),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            wrong()
        assert error.value.response.status_code == 400
    assert [(item.item_id, item.note) for item in api.get_collection(made.slug).items] == [(repo, None)]
