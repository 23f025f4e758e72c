"""The model card's YAML front matter: only keys that the Hub understands, written by a YAML dumper."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from hub.domain import Measurement, Recipe
from hub.history import BaseRecord, VariantRecord
from hub.names import repo_id_fault
from hub.protocol import Protocol
from leaderboard import notices, points, stats, text
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
_HUB_TEXT = re.compile(r"hub:([^/@#]+/[^/@#]+)[/@]", re.ASCII)
_LANGUAGE = re.compile(r"(?:[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*|code|multilingual)\Z", re.ASCII)


class _Plain(yaml.SafeDumper):
    """SafeDumper that writes what stands in two places twice: the Hub's readers need not take aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's own signature
        return True


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


def front_matter(record: VariantRecord, base: BaseRecord, *, repo_id: str, hub_url: str, protocols: Mapping[str, Protocol]) -> str:
    """Return the YAML between the card's two `---` lines; `protocols` are those known in full, by name."""
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
        "datasets": datasets(record.recipe),
        "tags": tags(record.recipe, base),
        "new_version": notices.successor(record),
        "model-index": _model_index(record, base, repo_id=repo_id, hub_url=hub_url, protocols=protocols),
    }
    kept = {key: value for key, value in data.items() if value}
    return yaml.dump(kept, Dumper=_Plain, sort_keys=False, allow_unicode=False, default_flow_style=False, width=1000)


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


def datasets(recipe: Recipe) -> list[str]:
    """Return the Hub's datasets that the steps were shown (`hub:owner/name@revision/file`); other texts are none."""
    named = (_HUB_TEXT.match(step.calibration.text) for step in recipe.steps if step.calibration)
    return list(dict.fromkeys(match[1] for match in named if match and not repo_id_fault(match[1])))


def _model_index(
    record: VariantRecord, base: BaseRecord, *, repo_id: str, hub_url: str, protocols: Mapping[str, Protocol]
) -> list[dict[str, Any]]:
    """Return the Hub's `model-index`: the headline numbers beside the base's, then each task under its own protocol."""
    protocol = stats.shared_protocol(record.measurements, base.measurements)
    found = [stats.find(record.measurements, metric, protocol) for metric in _INDEXED] if protocol else []
    results = [_result(_dataset(protocol or "", protocols), [one for one in found if one], record)]
    tasks: dict[tuple[str, str], list[Measurement]] = {}
    for metric in points.TASKS:
        for one in stats.curve(record.measurements, metric):
            if set(one.conditions) == {"task"}:
                tasks.setdefault((str(one.conditions["task"]), one.protocol), []).append(one)
    for (task, name), measured in sorted(tasks.items()):
        results.append(_result({"type": text.plain(task), "name": text.plain(f"{task} ({name})")}, measured, record))
    source = {"name": "ModelPress", "url": f"{hub_url}/{repo_id}"}
    told = [{**result, "source": source} for result in results if result["metrics"]]
    return [{"name": repo_id.split("/")[-1], "results": told}] if told else []


def _dataset(protocol: str, protocols: Mapping[str, Protocol]) -> dict[str, str]:
    """Return what the numbers were taken on: the Hub's dataset at its revision where the text is of one, else the text's name."""
    source = protocols[protocol].text if protocol in protocols else None
    if source is None or not source.dataset:
        return {"type": text.plain(protocol.split("@")[0]), "name": text.plain(protocol)}
    known = {"type": text.plain(source.dataset), "name": text.plain(protocol)}
    return known | ({"revision": text.plain(source.revision)} if source.revision else {})


def _result(dataset: dict[str, str], measured: Sequence[Measurement], record: VariantRecord) -> dict[str, Any]:
    return {
        "task": {"type": "text-generation", "name": "Text generation"},
        "dataset": dataset,
        "metrics": [_metric(one, record) for one in measured if math.isfinite(one.value)],
    }


def _metric(found: Measurement, record: VariantRecord) -> dict[str, Any]:
    name = f"{found.metric.replace('_', ' ')}, interval {found.ci_low:.6g} to {found.ci_high:.6g} ({found.interval})"
    if found.metric.endswith("per_second") and record.environment:
        name += f", on {record.environment.hardware}"
    return {"type": found.metric, "value": float(f"{found.value:.6g}"), "name": text.plain(name)}
