"""From what the Hub lists to our own types: every field is foreign, may be missing, and may be of another type than documented."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from hub.domain import Candidate, HubFile, ModelRef

# The tag with which the Hub marks models that bring their own Python code.
CUSTOM_CODE = "custom_code"
_MAX_ITEMS = 500
_MAX_TEXT = 200
_MAX_PATH = 1000
_MAX_COUNT = 2**53


def candidate(info: Any, *, config: Mapping[str, Any] | None = None, trending_score: float | None = None) -> Candidate:
    """Return a candidate from the library's `ModelInfo`.

    `config` is the model's config.json where the Hub's own summary of it lacks the architecture;
    `trending_score` comes from the listing, since a model's details do not repeat it.
    """
    card = _card(info)
    summary = {**(config or {}), **_mapping(info.config)}
    tags = _texts(info.tags)
    if CUSTOM_CODE not in tags and (summary.get("auto_map") or _mapping(summary.get("tokenizer_config")).get("auto_map")):
        tags = (*tags, CUSTOM_CODE)
    score = trending_score if trending_score is not None else info.trending_score
    return Candidate(
        ref=ModelRef(repo_id=_sound(info.id), sha=_sound(info.sha or "")),
        downloads=_count(info.downloads),
        likes=_count(info.likes),
        trending_score=_number(score),
        created_at=_stamp(info.created_at),
        last_modified=_stamp(info.last_modified),
        license=_license(card, tags),
        license_name=_text(card.get("license_name")),
        license_link=_address(card.get("license_link")),
        gated=(_text(info.gated) or "auto") if info.gated else None,
        private=bool(info.private),
        library_name=_text(info.library_name),
        pipeline_tag=_text(info.pipeline_tag),
        architecture=next(iter(_texts(summary.get("architectures"))), None),
        base_models=_texts(card.get("base_model")),
        tags=tags,
        languages=_texts(card.get("language")),
        parameters=_parameters(info.safetensors),
        files=tuple(hub_file(sibling) for sibling in info.siblings or ()),
    )


def unreadable(repo_id: str) -> Candidate:
    """Return a candidate for a listed model whose details the Hub does not give: no commit and no files, so policy refuses it."""
    unknown: dict[str, Any] = dict.fromkeys(
        ("license", "license_name", "license_link", "gated", "library_name", "pipeline_tag", "architecture", "parameters")
    )
    empty: dict[str, Any] = dict.fromkeys(("base_models", "tags", "languages", "files"), ())
    return Candidate(
        ref=ModelRef(repo_id=_sound(repo_id), sha=""),
        downloads=0,
        likes=0,
        trending_score=0.0,
        created_at="",
        last_modified="",
        private=False,
        **unknown,
        **empty,
    )


def hub_file(entry: Any) -> HubFile:
    """Return a file from the library's `RepoSibling` (of a model's details) or `RepoFile` (of a tree); an unknown size is -1."""
    size = entry.lfs.size if entry.lfs is not None and entry.lfs.size is not None else entry.size
    path = entry.rfilename if hasattr(entry, "rfilename") else entry.path
    return HubFile(
        path=_sound(path, _MAX_PATH),  # longer than any that policy lets in
        size=-1 if size is None else int(size),
        blob_id=_sound(entry.blob_id or ""),
        sha256=entry.lfs.sha256 if entry.lfs else None,
    )


def has_architecture(info: Any) -> bool:
    """Tell whether the Hub's own summary of config.json names an architecture."""
    return bool(_texts(_mapping(info.config).get("architectures")))


def _card(info: Any) -> dict[str, Any]:
    data = info.card_data
    if data is None:
        return {}
    return dict(data.to_dict()) if hasattr(data, "to_dict") else _mapping(data)


def _license(card: Mapping[str, Any], tags: Iterable[str]) -> str | None:
    named = _texts(card.get("license"))
    if not named:
        named = tuple(tag.removeprefix("license:") for tag in tags if tag.startswith("license:"))
    return named[0].lower() if named else None


def _parameters(safetensors: Any) -> int | None:
    total = getattr(safetensors, "total", None)
    return _count(total) or None


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _sound(value: Any, most: int = _MAX_TEXT) -> str:
    """Return so much of a text as there is room for, without NUL and halves of surrogate pairs, which no file or database takes."""
    return str(value)[:most].replace("\0", "\ufffd").encode("utf-8", "replace").decode()


def _text(value: Any) -> str | None:
    return _sound(value) if isinstance(value, str) and value else None


def _address(value: Any) -> str | None:
    """Return a link that fits; a part of one would lead elsewhere."""
    return _text(value) if isinstance(value, str) and len(value) <= _MAX_TEXT else None


def _texts(value: Any) -> tuple[str, ...]:
    """Return a text or a list of them as a tuple; YAML reads `no` as false and `1.0` as a number, so what is no text is left out."""
    values = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return tuple(_sound(item) for item in values[:_MAX_ITEMS] if isinstance(item, str) and item)


def _count(value: Any) -> int:
    return min(value, _MAX_COUNT) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _number(value: Any) -> float:
    """Return a finite number; no true one of a listing comes near the limit."""
    known = isinstance(value, int | float) and abs(value) <= _MAX_COUNT  # NaN is not
    return float(value) if known else 0.0


def _stamp(value: Any) -> str:
    if not isinstance(value, datetime):
        return ""
    return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")
