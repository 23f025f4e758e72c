"""`bench.json`: every number behind a card, of the variant and of its exact base, with all that makes it one.

docs/cards.md has the schema.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from hub.codec import to_json
from hub.domain import Environment
from hub.history import BaseRecord, VariantRecord
from leaderboard.gate import artifact_verdict

if TYPE_CHECKING:
    from leaderboard.cards import Extras

NAME = "bench.json"
SCHEMA = "modelpress-bench/1"


def document(record: VariantRecord, base: BaseRecord, *, repo_id: str, hub_url: str, extras: Extras) -> str:
    """Return the JSON document; a number that is not finite (a perplexity that overflowed) is `null`."""
    artifact, verdict = record.artifact, artifact_verdict(record)
    environments: dict[str, Environment] = {}
    body = {
        "schema": SCHEMA,
        "repo_id": repo_id,
        "url": f"{hub_url}/{repo_id}",
        "base": record.base,
        "variant": {
            "id": record.variant_id,
            "recipe": record.recipe,
            "artifact": artifact.digest if artifact else None,
            "bytes": artifact.bytes if artifact else None,
            "parameters": artifact.parameters if artifact else None,
            "made_at": artifact.made_at if artifact else None,
            "libraries": artifact.libraries if artifact else {},
            "steps": artifact.steps if artifact else (),
        },
        "checks": verdict.checks if verdict else (),
        "protocols": extras.protocols,
        "results": _results(record, environments),
        "base_results": _results(base, environments),
        "layers": sorted(record.layers, key=lambda one: (one.protocol, one.layer)),
        "environments": environments,
    }
    return json.dumps(to_jsonable_python(body, inf_nan_mode="null"), indent=1, sort_keys=True, allow_nan=False) + "\n"


def _results(measured: VariantRecord | BaseRecord, environments: dict[str, Environment]) -> list[Mapping[str, Any]]:
    """Return all measurements in a fixed order, each with the id of its environment, which is put into `environments`."""
    found = []
    for one in measured.measurements:
        under = measured.environment_under(one.protocol)
        if under:
            environments[under.id] = under
        found.append({**asdict(one), "environment": under.id if under else None})
    return sorted(found, key=lambda one: (one["protocol"], one["metric"], to_json(one["conditions"]), one["measured_at"], one["engine"]))
