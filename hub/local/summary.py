"""What the Hub derives from a tree: card data, config, tags, library, task, parameter counts.

A summary depends on the tree alone, so it is worked out once and kept. The rules follow the Hub's recorded answers;
tags about services that the embedded hub does not have (endpoints_compatible and the like) are left out.
"""

from __future__ import annotations

import json
import re
import sqlite3
import struct
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any

from hub.local import cards, commits
from hub.local.blobs import BlobStore
from hub.local.gitids import File

MAX_TEXT = 4 * 1024 * 1024
MAX_HEADER = 64 * 1024 * 1024
_ARXIV = re.compile(r"arxiv\.org/(?:abs|pdf)/(\d{4}\.\d{4,5})", re.IGNORECASE)
_FORMATS = {"safetensors": (".safetensors",), "pytorch": (".bin", ".pt", ".pth"), "gguf": (".gguf",), "onnx": (".onnx",)}
_TASKS = {
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
    "ForObjectDetection": "object-detection",
    "ForCTC": "automatic-speech-recognition",
}
Summary = Mapping[str, Any]


def of(connection: sqlite3.Connection, blobs: BlobStore, tree: str) -> Summary:
    """Return the summary of a tree, from the table where it is known."""
    row = connection.execute("SELECT summary FROM summaries WHERE tree = ?", (tree,)).fetchone()
    return _parsed(row["summary"]) if row else make(commits.files(connection, tree), blobs)


def keep(connection: sqlite3.Connection, blobs: BlobStore, tree: str) -> None:
    """Work out the summary of a tree and store it, if it is not known."""
    if connection.execute("SELECT 1 FROM summaries WHERE tree = ?", (tree,)).fetchone() is None:
        summary = make(commits.files(connection, tree), blobs)
        connection.execute("INSERT INTO summaries VALUES (?, ?)", (tree, json.dumps(summary)))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Summary:
    value: dict[str, Any] = json.loads(text)
    return value


def make(files: Mapping[str, File], blobs: BlobStore) -> Summary:
    """Work out the summary from the files; whatever cannot be read is simply not known."""
    readme = _text(files, blobs, "README.md")
    try:
        card = cards.parse(readme)
    except cards.CardError:
        card = {}
    config = _config(files, blobs)
    library = card.get("library_name") if isinstance(card.get("library_name"), str) else ("transformers" if config else None)
    task = card.get("pipeline_tag") if isinstance(card.get("pipeline_tag"), str) else _task(config)
    found: dict[str, Any] = {
        "cardData": card or None,
        "config": config,
        "library_name": library,
        "pipeline_tag": task,
        "safetensors": _parameters(files, blobs),
        "usedStorage": sum(file.size for file in files.values()),
    }
    found["tags"] = _tags(files, card, config, library, task, readme)
    found["baseModels"] = _base_models(card, files, config)
    return found


def _config(files: Mapping[str, File], blobs: BlobStore) -> dict[str, Any] | None:
    config = _json(files, blobs, "config.json")
    if not config:
        return None
    kept: dict[str, Any] = {key: config[key] for key in ("architectures", "model_type", "auto_map") if key in config}
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict):
        kept["quantization_config"] = {
            key: quantization[key] for key in ("quant_method", "bits", "load_in_4bit", "load_in_8bit") if key in quantization
        }
    tokenizer = _json(files, blobs, "tokenizer_config.json")
    special = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "use_default_system_prompt")
    kept["tokenizer_config"] = {key: tokenizer[key] for key in special if tokenizer.get(key) is not None}
    template = _text(files, blobs, "chat_template.jinja")
    if template:
        kept["tokenizer_config"].setdefault("chat_template", template)
    return kept


def _task(config: Mapping[str, Any] | None) -> str | None:
    for architecture in cards.texts((config or {}).get("architectures")):
        for ending, task in _TASKS.items():
            if architecture.endswith(ending):
                return task
    return None


def _tags(
    files: Mapping[str, File], card: Mapping[str, Any], config: Mapping[str, Any] | None, library: str | None, task: str | None, readme: str
) -> list[str]:
    tags = [library] if library else []
    tags += [name for name, endings in _FORMATS.items() if any(path.endswith(endings) for path in files)]
    tags += cards.texts((config or {}).get("model_type"))
    tags += [name for name in (task, _task(config)) if name]
    tags += cards.texts(card.get("tags"))
    if config and config["tokenizer_config"].get("chat_template"):
        tags.append("conversational")
    if config and config.get("auto_map"):
        tags.append("custom_code")
    tags += cards.texts(card.get("language"))
    tags += [f"dataset:{name}" for name in cards.texts(card.get("datasets"))]
    tags += [f"arxiv:{number}" for number in _ARXIV.findall(readme)]
    bases = cards.texts(card.get("base_model"))
    tags += [f"base_model:{base}" for base in bases]
    tags += [f"base_model:{_relation(card, files, config)}:{base}" for base in bases]
    tags += [f"license:{name}" for name in cards.texts(card.get("license"))]
    quantization = (config or {}).get("quantization_config") or {}
    tags += cards.texts(quantization.get("quant_method"))
    tags += [f"{quantization['bits']}-bit"] if isinstance(quantization.get("bits"), int) else []
    tags += ["model-index"] if card.get("model-index") else []
    tags.append("region:us")
    return list(dict.fromkeys(tags))


def _relation(card: Mapping[str, Any], files: Mapping[str, File], config: Mapping[str, Any] | None) -> str:
    stated = card.get("base_model_relation")
    if isinstance(stated, str):
        return stated
    if "adapter_config.json" in files:
        return "adapter"
    if any(path.endswith(".gguf") for path in files) or (config or {}).get("quantization_config"):
        return "quantized"
    return "merge" if len(cards.texts(card.get("base_model"))) > 1 else "finetune"


def _base_models(card: Mapping[str, Any], files: Mapping[str, File], config: Mapping[str, Any] | None) -> dict[str, Any] | None:
    bases = cards.texts(card.get("base_model"))
    return {"relation": _relation(card, files, config), "models": [{"id": base} for base in bases]} if bases else None


def _parameters(files: Mapping[str, File], blobs: BlobStore) -> dict[str, Any] | None:
    """Count the numbers in model.safetensors or in the shards that its index names, by dtype."""
    names = ["model.safetensors"] if "model.safetensors" in files else []
    if not names:
        weights = _json(files, blobs, "model.safetensors.index.json").get("weight_map")
        names = sorted(set(map(str, weights.values()))) if isinstance(weights, dict) else []
    counts: Counter[str] = Counter()
    for name in names:
        header = _header(files, blobs, name)
        if header is None:
            return None
        counts.update(header)
    return {"parameters": dict(counts), "total": sum(counts.values())} if counts else None


def _header(files: Mapping[str, File], blobs: BlobStore, path: str) -> dict[str, int] | None:
    file = files.get(path)
    if file is None or file.size < 8 or not blobs.has(file.sha256):
        return None
    (length,) = struct.unpack("<Q", blobs.read(file.sha256, 8))
    if length > min(MAX_HEADER, file.size - 8):
        return None
    counts: Counter[str] = Counter()
    try:
        header = json.loads(blobs.read(file.sha256, 8 + length)[8:])
        for name, tensor in header.items():
            if name != "__metadata__":
                counts[str(tensor["dtype"])] += prod(int(dimension) for dimension in tensor["shape"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return dict(counts)


def _text(files: Mapping[str, File], blobs: BlobStore, path: str) -> str:
    file = files.get(path)
    if file is None or not blobs.has(file.sha256):
        return ""
    return blobs.read(file.sha256, MAX_TEXT).decode("utf-8", "replace")


def _json(files: Mapping[str, File], blobs: BlobStore, path: str) -> dict[str, Any]:
    try:
        value = json.loads(_text(files, blobs, path) or "{}")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
