"""`sbom.cdx.json`: a bill of materials for a release, in CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/), as an ML-BOM.

What it is made of (files by hash, the base model at its commit, the texts that the steps were shown), what made it and what opens it, and
what was measured, with intervals. It holds no time of writing, and its serial number comes from its content: the same record gives the
same bytes.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from hub.domain import Artifact, Measurement, ModelRef
from hub.history import BaseRecord, VariantRecord
from hub.licences import demands, effective
from leaderboard import stats, text, words
from leaderboard.text import Markdown

NAME = "sbom.cdx.json"
_TOOL = "modelpress"
# The Hub's licence ids that name the same licence as an SPDX id; all others are told by name.
_SPDX = {
    name.lower(): name
    for name in (
        "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0",
        "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0", "CDLA-Permissive-2.0", "MPL-2.0", "PSF-2.0", "Unlicense",
    )
}  # fmt: skip


def document(record: VariantRecord, base: BaseRecord, *, repo_id: str, hub_url: str) -> str:
    """Return the bill of materials as JSON; an empty string for a variant without an artifact."""
    if record.artifact is None:
        return ""
    artifact = record.artifact
    model = _model(record, base, artifact, repo_id, hub_url)
    files = [_file(file.path, file.sha256) for file in sorted(artifact.files, key=lambda file: file.path)]
    libraries = _libraries(record, artifact)
    body: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"tools": {"components": [_tool(artifact)]}, "component": model},
        "components": [*files, *libraries],
        "dependencies": [
            {
                "ref": model["bom-ref"],
                "dependsOn": [one["bom-ref"] for one in (*files, *libraries) if one.get("scope") != "excluded"],
            }
        ],
    }
    body["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body, sort_keys=True))}"
    return json.dumps(body, indent=1, sort_keys=True, allow_nan=False) + "\n"


def _model(record: VariantRecord, base: BaseRecord, artifact: Artifact, repo_id: str, hub_url: str) -> dict[str, Any]:
    owner, name = repo_id.split("/")
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "group": owner,
        "name": name,
        "version": artifact.digest,
        "description": text.plain(f"{record.recipe.title}. {record.recipe.summary}"),
        "licenses": _licenses(base),
        "purl": f"pkg:huggingface/{quote(owner)}/{quote(name)}",
        "pedigree": {
            "ancestors": [_base(record.base, base, hub_url)],
            "notes": text.plain(
                f"Changed by {' -> '.join(f'{step.method} {step.scheme}' for step in record.recipe.steps)}; README.md says how."
            ),
        },
        "externalReferences": [{"type": "distribution", "url": f"{hub_url}/{repo_id}"}],
        "modelCard": _card(record, base),
    }


def _base(ref: ModelRef, base: BaseRecord, hub_url: str) -> dict[str, Any]:
    owner, name = ref.repo_id.split("/")
    return {
        "type": "machine-learning-model",
        "bom-ref": "base-model",
        "group": owner,
        "name": name,
        "version": ref.sha,
        "licenses": _licenses(base),
        "purl": f"pkg:huggingface/{quote(owner)}/{quote(name)}@{quote(ref.sha)}",
        "externalReferences": [{"type": "distribution", "url": f"{hub_url}/{ref.repo_id}/tree/{ref.sha}"}],
    }


def _licenses(base: BaseRecord) -> list[dict[str, Any]]:
    candidate = base.candidate
    named = effective(candidate.license, candidate.license_name)
    if named is None:
        return []
    if named in _SPDX:
        return [{"license": {"id": _SPDX[named]}}]
    link = demands(candidate.license, candidate.license_name).link
    return [{"license": {"name": text.plain(named)[:200]} | ({"url": link} if link else {})}]


def _card(record: VariantRecord, base: BaseRecord) -> dict[str, Any]:
    parameters: dict[str, Any] = {"task": text.plain(base.candidate.pipeline_tag or "text-generation"), "datasets": _datasets(record)}
    if base.candidate.architecture:
        parameters["modelArchitecture"] = text.plain(base.candidate.architecture)
    limits = words.limits(record, stats.compare(record, base))
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": [_metric(one) for one in _ordered(record.measurements)]},
        "considerations": {"technicalLimitations": [_unmarked(limit) for limit in limits]},
    }


def _unmarked(sentence: str) -> str:
    """Return a sentence of the card without its Markdown."""
    return text.plain(re.sub(r"\\(\W)|`", r"\1", sentence) if isinstance(sentence, Markdown) else sentence)


def _datasets(record: VariantRecord) -> list[dict[str, Any]]:
    """Return the texts that the steps were shown, each once, with the hash of the text and of the token windows."""
    told = record.artifact.steps if record.artifact else ()
    found: dict[str, dict[str, Any]] = {}
    for place, step in enumerate(record.recipe.steps):
        shown = step.calibration
        if shown is None:
            continue
        facts = {"samples": str(shown.samples), "sequence_length": str(shown.sequence_length), "seed": str(shown.seed)}
        if place < len(told) and told[place].samples_sha256:
            facts |= {"text_sha256": told[place].text_sha256, "samples_sha256": told[place].samples_sha256}
        data = {
            "type": "dataset",
            "name": text.plain(shown.text),
            "description": text.plain(f"Shown to {step.method}"),
            "contents": {"properties": [{"name": f"{_TOOL}:{key}", "value": value} for key, value in sorted(facts.items())]},
        }
        found.setdefault(json.dumps(data, sort_keys=True), data)
    return list(found.values())


def _ordered(measurements: Sequence[Measurement]) -> list[Measurement]:
    return sorted(
        (one for one in measurements if math.isfinite(one.value)),
        key=lambda one: (one.protocol, one.metric, _slice(one.protocol, one.conditions), one.measured_at),
    )


def _metric(one: Measurement) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": f"{one.metric} [{one.unit}]",
        "value": f"{one.value:.6g}",
        "slice": _slice(one.protocol, one.conditions),
    }
    if math.isfinite(one.ci_low) and math.isfinite(one.ci_high):
        found["confidenceInterval"] = {"lowerBound": f"{one.ci_low:.6g}", "upperBound": f"{one.ci_high:.6g}"}
    return found


def _slice(protocol: str, conditions: Mapping[str, object]) -> str:
    return text.plain("; ".join((f"protocol {protocol}", *(f"{key} {value}" for key, value in sorted(conditions.items())))))


def _file(path: str, sha256: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{path}", "name": path, "hashes": [{"alg": "SHA-256", "content": sha256}]}


def _tool(artifact: Artifact) -> dict[str, Any]:
    version = artifact.libraries.get(_TOOL)
    return {"type": "application", "name": _TOOL} | ({"version": text.plain(version)} if version else {})


def _libraries(record: VariantRecord, artifact: Artifact) -> list[dict[str, Any]]:
    """Return the libraries: those that open the model are required, those that only made it are excluded from running it."""
    opens = words.needed(record)
    versions = {**artifact.libraries, **{name: version for name, version in opens.items() if version or name not in artifact.libraries}}
    found = []
    for name, version in sorted(versions.items()):
        if name == _TOOL:
            continue
        package = name.lower().replace("_", "-")
        purl = f"pkg:pypi/{quote(package)}" + (f"@{quote(version)}" if version else "")
        one = {"type": "library", "bom-ref": purl, "name": package, "scope": "required" if name in opens else "excluded", "purl": purl}
        found.append(one | ({"version": text.plain(version)} if version else {}))
    return found
