"""The model card's YAML front matter: only keys that the Hub understands, written by a YAML dumper."""

from __future__ import annotations

import re
from typing import Any

import yaml

from hub.domain import Measurement, Recipe
from hub.history import BaseRecord, VariantRecord
from leaderboard import stats, text
from leaderboard.families import DISTILLATION, EXPORT, LOW_RANK, PRUNING, QUANTIZATION, RECOVERY, bits, families

TAG = "modelpress"
_SPARSITY = re.compile(r"(?:unstructured|\d+:\d+)\Z", re.ASCII)
_INDEXED = ("perplexity", "perplexity_ratio", "kl_divergence", "same_top_token", "prefill_tokens_per_second", "decode_tokens_per_second")
_LONGEST = 200
# What the Hub calls the family of a step; quantization has the relation and its formats' tags.
_DONE = {PRUNING: "pruned", DISTILLATION: "distilled", LOW_RANK: "low-rank", RECOVERY: "fine-tuned"}
_FLOATS = ("fp8", "nvfp4", "mxfp4")
# The library that opens a format; transformers where nothing else is named, none where no library does by itself.
_LIBRARIES: dict[str, str | None] = {"gguf": "gguf", "onnx": "onnx", "openvino": "openvino", "low-rank": None}
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*|code|multilingual)\Z", re.ASCII)


def relation(recipe: Recipe) -> str:
    """Return the Hub's `base_model_relation`: `quantized` for fewer bits or another engine's file, else `finetune`.

    The Hub knows no relation of its own for pruned, factorized or distilled models: those are `finetune` with a tag.
    """
    return "quantized" if {QUANTIZATION, EXPORT} & set(families(recipe)) else "finetune"


def tags(recipe: Recipe, base: BaseRecord) -> list[str]:
    """Return the card's tags: what was done, with which method and format, and the scheme where it is a number format or a sparsity."""
    wanted = [TAG, *(_DONE[family] for family in families(recipe) if family in _DONE)]
    for step in recipe.steps:
        if bits(step.method) in (None, bits(step.scheme)):  # the method w8a8 makes W4A8 too, which its name would belie
            wanted.append(step.method)
        if width := bits(step.scheme):
            wanted += [*(name for name in _FLOATS if step.scheme.lower().startswith(name)), step.scheme.lower(), f"{width}-bit"]
        elif _SPARSITY.match(step.scheme):
            wanted.append(step.scheme)
        elif step.method == "mixed":
            wanted.append("mixed-precision")
    if recipe.format != "dense":
        wanted.append(recipe.format)
    if recipe.track == "research":
        wanted.append("research")
    if "conversational" in base.candidate.tags:
        wanted.append("conversational")
    return list(dict.fromkeys(text.plain(tag) for tag in wanted))


def front_matter(record: VariantRecord, base: BaseRecord, *, repo_id: str, hub_url: str) -> str:
    """Return the YAML between the card's two `---` lines."""
    candidate = base.candidate
    data: dict[str, Any] = {
        "license": _clip(candidate.license),
        "license_name": _clip(candidate.license_name),
        "license_link": license_link(record, base, hub_url),
        "library_name": _LIBRARIES.get(record.recipe.format, "transformers"),
        "pipeline_tag": _clip(candidate.pipeline_tag) or "text-generation",
        "base_model": [record.base.repo_id],
        "base_model_relation": relation(record.recipe),
        "quantized_by": repo_id.split("/")[0] if relation(record.recipe) == "quantized" else None,
        "language": [language for language in candidate.languages if _LANGUAGE.match(language)],
        "tags": tags(record.recipe, base),
        "model-index": _model_index(record, base, repo_id=repo_id, hub_url=hub_url),
    }
    kept = {key: value for key, value in data.items() if value}
    return yaml.safe_dump(kept, sort_keys=False, allow_unicode=False, default_flow_style=False, width=1000)


def license_link(record: VariantRecord, base: BaseRecord, hub_url: str) -> str | None:
    """Return the base's licence link, nothing unsafe; a file that is not in the artifact is linked where the base has it."""
    shipped = {file.path for file in record.artifact.files} if record.artifact else set()
    address = text.safe_link(base.candidate.license_link)
    if address is None and base.candidate.license == "other" and "LICENSE" in shipped:
        return "LICENSE"
    if address is None or "://" in address or address in shipped:
        return address
    return f"{hub_url}/{record.base.repo_id}/blob/{record.base.sha}/{address}"


def _clip(value: str | None) -> str | None:
    return text.plain(value)[:_LONGEST] if value else None


def _model_index(record: VariantRecord, base: BaseRecord, *, repo_id: str, hub_url: str) -> list[dict[str, Any]]:
    protocol = stats.shared_protocol(record.measurements, base.measurements)
    found = [stats.find(record.measurements, metric, protocol) for metric in _INDEXED] if protocol else []
    metrics = [_metric(measurement, record) for measurement in found if measurement]
    if not metrics or protocol is None:
        return []
    result = {
        "task": {"type": "text-generation", "name": "Text generation"},
        "dataset": {"type": text.plain(protocol.split("@")[0]), "name": text.plain(protocol)},
        "metrics": metrics,
        "source": {"name": "ModelPress", "url": f"{hub_url}/{repo_id}"},
    }
    return [{"name": repo_id.split("/")[-1], "results": [result]}]


def _metric(found: Measurement, record: VariantRecord) -> dict[str, Any]:
    name = f"{found.metric.replace('_', ' ')}, interval {found.ci_low:.6g} to {found.ci_high:.6g} ({found.interval})"
    if found.metric.endswith("per_second") and record.environment:
        name += f", on {record.environment.hardware}"
    return {"type": found.metric, "value": float(f"{found.value:.6g}"), "name": text.plain(name)}
