"""What `modelpress measure` is asked for in vain: refused before a model is loaded, with what to do next."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Folder, new_folder

PNG = b"\x89PNG\r\n\x1a\n\x00"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = new_folder(tmp_path)
    (tmp_path / "picture.txt").write_bytes(PNG)
    (tmp_path / "texts").mkdir()
    return made


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--data", "nowhere"), 2, "--data names nowhere, which is no folder"),
        (("--limit", "5"), 2, "no task is named"),
        (("--protocol", "tasks", "--tasks", "wikitext2"), 2, "The protocol tasks has tasks of its own: lambada_openai, arc_easy"),
        (("--text", "picture.txt"), 2, "is not UTF-8, from byte 0 on"),
        (("--protocol", "tasks", "--text", "stdlib-heldout"), 2, "The protocol tasks measures on no text"),
        (("--text", "texts"), 5, "There is no text 'texts'"),
        (("--text", "hub:owner/rows"), 2, "names no file of a dataset"),
        (("--protocol", "wikitext2-paper@5"), 5, "There is no protocol named 'wikitext2-paper@5'"),
    ],
)
def test_half_an_order_is_refused(folder: Folder, samples: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = folder.run("measure", str(samples / "sample-llama"), *words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in " ".join(done.stderr.split())


@pytest.mark.integration
def test_a_folder_of_data_that_the_settings_name_must_be_there(folder: Folder, samples: Path) -> None:
    done = folder.run("measure", str(samples / "sample-llama"), env={"MODELPRESS_PRESS__DATA_DIR": "nowhere"})
    assert done.returncode == 3
    assert "press.data_dir names nowhere, which is no folder" in " ".join(done.stderr.split())
