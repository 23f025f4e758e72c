"""Texts to measure on: shipped, local copies, and files of a Hub dataset fetched from the embedded hub."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hub import transport
from hub.client import HubClient
from hub.errors import BadDocument, HubNotFound, PolicyRefusal, UnknownName, UsageError
from hub.local.process import LocalHub
from hub.protocol import Text
from runners import protocols, texts

ROWS = ["", " = Heading = \n", "One line of text .\n", "日本 <unk>\n", "\u2028 ends a line for some \x85, not in JSON Lines\n"]
JOINED = "\n\n".join(ROWS)
NAMED = Text(name="copy.txt", sha256=hashlib.sha256(JOINED.encode()).hexdigest())


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub"), port=0, samples=False) as running:
        yield running


@pytest.fixture(scope="module")
def dataset(hub: LocalHub) -> Text:
    """The rows as Parquet and as JSON Lines in a dataset of the embedded hub, put there by the real library."""
    import pyarrow
    from pyarrow import parquet

    table = io.BytesIO()
    parquet.write_table(pyarrow.table({"text": ROWS}), table)
    lines = "".join(json.dumps({"text": row}, ensure_ascii=False) + "\n" for row in ROWS)
    api = transport.library(hub.endpoint).HfApi(endpoint=hub.endpoint, token=hub.write_token)
    api.create_repo("modelpress/rows", repo_type="dataset")
    for path, data in (("data/test.parquet", table.getvalue()), ("test.jsonl", lines.encode()), ("plain.txt", JOINED.encode())):
        made = api.upload_file(path_or_fileobj=data, path_in_repo=path, repo_id="modelpress/rows", repo_type="dataset")
    return replace(NAMED, dataset="modelpress/rows", revision=made.oid, file="data/test.parquet", column="text", joiner="\n\n")


@pytest.fixture
def client(hub: LocalHub, tmp_path: Path) -> HubClient:
    return HubClient(endpoint=hub.endpoint, token=None, cache_dir=tmp_path / "cache", patience_s=6)


def test_a_shipped_text_needs_no_place() -> None:
    protocol = protocols.load(protocols.DEFAULT)
    assert protocol.text
    assert hashlib.sha256(texts.content(protocol.text, []).encode()).hexdigest() == protocol.text.sha256


@pytest.mark.parametrize("below", [".", "some-folder"])
def test_a_local_copy_is_found_by_name_and_proved_by_checksum(tmp_path: Path, below: str) -> None:
    path = tmp_path / below / "copy.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text(JOINED, "utf-8")
    assert texts.content(NAMED, [tmp_path]) == JOINED
    path.write_bytes(JOINED.replace("\n", "\r\n").encode())
    assert texts.content(NAMED, [tmp_path]) == JOINED, "a copy that went through Windows is the same text"
    path.write_text(JOINED + "!", "utf-8")
    with pytest.raises(BadDocument, match="is another one: "):
        texts.content(NAMED, [tmp_path])


def test_a_text_that_is_nowhere_says_what_to_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="The text copy") as caught:
        texts.content(replace(NAMED, dataset="owner/rows"), [tmp_path])
    assert "--data" in caught.value.hint
    assert "owner/rows" in caught.value.hint


@pytest.mark.integration
@pytest.mark.parametrize(("file", "column"), [("data/test.parquet", "text"), ("test.jsonl", "text"), ("plain.txt", "")])
def test_a_dataset_of_the_hub_gives_the_text_once(client: HubClient, dataset: Text, tmp_path: Path, file: str, column: str) -> None:
    wanted = replace(dataset, file=file, column=column)
    assert texts.fetch(wanted, client, tmp_path / "texts") == wanted
    assert texts.content(wanted, [tmp_path / "texts"]) == JOINED


@pytest.mark.integration
def test_the_newest_revision_is_pinned_when_none_is_named(client: HubClient, dataset: Text, tmp_path: Path) -> None:
    found = texts.fetch(texts.parse("hub:modelpress/rows/data/test.parquet#text"), client, tmp_path)
    assert (found.revision, found.sha256) == (dataset.revision, dataset.sha256)


@pytest.mark.integration
def test_wrong_bytes_columns_files_and_names_are_refused(client: HubClient, dataset: Text, tmp_path: Path) -> None:
    with pytest.raises(BadDocument, match="gives a text of SHA-256"):
        texts.fetch(replace(dataset, joiner="\n"), client, tmp_path)
    for file in ("data/test.parquet", "test.jsonl"):
        with pytest.raises(BadDocument, match="has no column 'page'"):
            texts.fetch(replace(dataset, file=file, column="page"), client, tmp_path)
    with pytest.raises(UsageError, match="holds columns, and none is named"):
        texts.fetch(replace(dataset, column=""), client, tmp_path)
    for file in ("train.parquet", "data"):
        with pytest.raises(HubNotFound):
            texts.fetch(replace(dataset, file=file), client, tmp_path)
    with pytest.raises(PolicyRefusal):
        texts.fetch(replace(dataset, file="../../etc/passwd"), client, tmp_path)
    assert not list(tmp_path.glob("*.txt"))


def test_a_text_of_nothing_or_of_too_much_is_refused() -> None:
    texts.check(" a word ")
    for text, words in (("", "empty"), (" \n\t", "empty"), ("ab" * 2**23 + "c", "has 16777217 characters; at most 16777216")):
        with pytest.raises(BadDocument, match=words):
            texts.check(text)


def test_processes_may_keep_the_same_text_at_once(tmp_path: Path) -> None:
    code = "import sys, pathlib, runners.texts as t; [t.keep(sys.argv[1].encode(), pathlib.Path(sys.argv[2])) for _ in range(300)]"
    running = [subprocess.Popen([sys.executable, "-c", code, JOINED, str(tmp_path)]) for _ in range(3)]
    assert [one.wait(timeout=300) for one in running] == [0, 0, 0]
    assert texts.content(NAMED, [tmp_path]) == JOINED
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_person_names(tmp_path: Path) -> None:
    path = tmp_path / "my.txt"
    path.write_text("words", "utf-8")
    assert texts.parse(str(path)) == Text(name="my.txt", sha256=hashlib.sha256(b"words").hexdigest())
    assert texts.parse("stdlib-heldout").sha256 == texts.sha256("stdlib-heldout")
    given = texts.parse("hub:owner/rows@main/a/b.jsonl#text")
    assert (given.dataset, given.revision, given.file, given.column) == ("owner/rows", "main", "a/b.jsonl", "text")
    with pytest.raises(UsageError, match="names no file of a dataset"):
        texts.parse("hub:owner/rows")
    with pytest.raises(UnknownName):
        texts.parse("no-such-file.txt")


def test_another_text_or_length_is_another_protocol() -> None:
    paper = protocols.load("wikitext2-paper@2048")
    short = protocols.load("wikitext2-paper@512")
    assert paper.quality
    assert short == replace(paper, name="wikitext2-paper@512", quality=replace(paper.quality, sequence_length=512))
    assert protocols.on_text(short, NAMED).name == f"wikitext2-paper@512:copy.txt-{NAMED.sha256[:8]}"
    default, quick = (protocols.on_text(protocols.load(name), NAMED).name for name in (protocols.DEFAULT, protocols.QUICK))
    assert default != quick, "their windows differ, so their numbers do"
    assert paper.text
    assert protocols.on_text(paper, replace(paper.text, name="my-copy.txt", dataset="")) == paper, "the same text is the same protocol"
    with pytest.raises(UnknownName, match="no protocol named 'tasks@512'"):
        protocols.load("tasks@512")


@pytest.mark.shared
def test_the_papers_text_is_the_one_in_the_field(shared: Path) -> None:
    text = protocols.load("wikitext2-paper@2048").text
    assert text
    found = texts.content(text, [shared / "data"])
    assert found.startswith("\n\n = Robert Boulter = \n")
    assert "\r" not in found
