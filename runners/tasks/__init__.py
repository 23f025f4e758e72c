"""Tasks for lm-eval on local copies of their documents: one YAML each, with the prompts and targets of lm-eval's own task of that name.

Multiple choice and cloze tasks read JSON Lines of the form that llm-foundry ships; `wikitext2` reads WikiText-2's test split, its rows
joined with two newlines. A YAML more, and its line in `OWN`, is a task more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hub.errors import BadDocument

FOLDER = Path(__file__).resolve().parent

# Where lm-eval has its own definition of each, in its folder of tasks.
OWN = {
    "arc_easy": "arc/arc_easy.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "piqa": "piqa/piqa.yaml",
    "wikitext2": "wikitext/wikitext.yaml",
}
_FILES = {"wikitext2": "wikitext-2-raw-v1.test.joined.txt"}


def names() -> list[str]:
    """Return the names of the tasks defined here, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def file_name(task: str) -> str:
    """Return the name of the file that a task's documents are read from."""
    return _FILES.get(task, f"{task}.jsonl")


def find(task: str, data_dir: Path | None) -> Path | None:
    """Return the local copy of a task's documents: in the folder or one level below; None where there is none."""
    if data_dir is None or task not in names():
        return None
    name = file_name(task)
    return next((path for path in (data_dir / name, *sorted(data_dir.glob(f"*/{name}"))) if path.is_file()), None)


def documents(*, task: str, paths: Mapping[str, str], **_: Any) -> dict[str, Any]:
    """Return a task's documents as a `datasets.Dataset` under `test`, as lm-eval asks for them; `paths` has each task's file.

    Raises `BadDocument` where the file is empty or a document is not of the task's form.
    """
    from datasets import Dataset

    path = Path(paths[task])
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadDocument(f"{path} cannot be read: {error}", hint="Restore the file.") from error
    rows = [{"page": page} for page in pages(text, where=str(path))] if task in _FILES else list(_rows(text, path))
    if not rows:
        raise BadDocument(f"{path} holds no documents.", hint="Restore the file.")
    return {"test": Dataset.from_list(rows)}


def pages(joined: str, *, where: str = "The text") -> list[str]:
    """Return the documents of a WikiText split, given its rows joined with two newlines, as EleutherAI/wikitext_document_level cuts them.

    A row is empty, or a line with its newline; in the original file an empty row is a line of one space. A document begins at each
    heading of the first level.
    """
    lines = "".join(row or " \n" for row in _split(joined, where)).split("\n")
    found: list[list[str]] = [[]]
    for line in lines:
        level = line.replace("= = =", "===").replace("= =", "==").strip()
        if level.startswith("= ") and level.endswith(" ="):
            found.append([])
        found[-1].append(line)
    return [page for page in ("\n".join(part) for part in found) if page.strip()]


def _split(joined: str, where: str) -> Iterator[str]:
    """Yield the rows; what joins two of them cannot be told by splitting, as a row's own newline stands before it."""
    place = 0
    while place < len(joined):
        end = place if joined[place] == "\n" else joined.find("\n", place) + 1 or len(joined)
        yield joined[place:end]
        if end < len(joined) and joined[end : end + 2] != "\n\n":
            raise BadDocument(
                f"{where} is not the rows of WikiText joined with two newlines: see character {end}.", hint="Join the dataset's rows again."
            )
        place = end + 2
        if place == len(joined):
            yield ""


def _rows(text: str, path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BadDocument(f"Line {number} of {path} is no JSON: {error}.", hint="Restore the file.") from error
        if wrong := _fault(row):
            raise BadDocument(f"Line {number} of {path} is no document of this task: {wrong}.", hint="Restore the file.")
        yield row


def _fault(row: Any) -> str:
    """Return what is wrong with a document; empty where nothing is. lm-eval's templates would take a missing field for an empty one."""
    if not isinstance(row, dict):
        return "no JSON object"
    texts, choices, gold = ("context", "continuation"), row.get("choices"), row.get("gold")
    if set(row) == set(texts):
        return "" if all(isinstance(row[name], str) and row[name].strip() for name in texts) else "an empty context or continuation"
    if set(row) != {"query", "choices", "gold"}:
        return "its fields are neither context and continuation nor query, choices and gold"
    if not isinstance(row["query"], str) or not row["query"].strip():
        return "an empty query"
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) and choice for choice in choices):
        return "choices are not two texts or more"
    return "" if type(gold) is int and 0 <= gold < len(choices) else f"gold is {gold!r}, of {len(choices)} choices"
