"""list_models: filters, search, sorting and pages, as the client sends them."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlencode

from starlette.responses import JSONResponse, Response

from hub.local import commits, info, repos
from hub.local.web import ApiError, Call

PAGE = 1000
SORTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "downloads": lambda model: model["downloads"],
    "likes": lambda model: model["likes"],
    "trendingScore": lambda model: model["trendingScore"],
    "lastModified": lambda model: model["lastModified"],
    "createdAt": lambda model: model["createdAt"],
}
BRIEF = ["likes", "trendingScore", "private", "downloads", "tags", "pipeline_tag", "library_name", "createdAt"]
FULL = (*BRIEF, *["author", "sha", "lastModified", "gated", "disabled", "siblings"])
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_COUNT = re.compile(r"(min|max):(\d+(?:\.\d+)?)([KMBT]?)", re.IGNORECASE)
# Which formats the applications of the `apps` filter read: the Hub's own rules are finer and change.
_GGUF_APPS = frozenset(["llama.cpp", "ollama", "lmstudio", "jan", "koboldcpp", "node-llama-cpp", "llamafile", "gpt4all", "msty"])


def models(call: Call) -> Response:
    """GET /api/models (and datasets, spaces): newest rules of the Hub, always in descending order."""
    kind = repos.kind_of(call)
    sort = call.one("sort", "trendingScore")
    if sort not in SORTS:
        raise ApiError(400, f'"sort" must be one of [{", ".join(SORTS)}], not {sort!r:.60}')
    limit = _limit(call)
    wanted = info.expansions(call)
    fits = _filter(call)
    with call.hub.database.read() as connection:
        found = [model for model in _all(connection, call, kind) if fits(model)]
        found.sort(key=lambda model: (SORTS[sort](model), model["_id"]), reverse=True)
        after = _after(call)
        if after is not None:
            found = [model for model in found if [SORTS[sort](model), model["_id"]] < after]
        page = found[:limit]
        answer = [_shown(connection, call, model, wanted) for model in page]
    headers = {}
    if len(found) > limit:
        headers["Link"] = _next(call, [SORTS[sort](page[-1]), page[-1]["_id"]])
    return JSONResponse(answer, headers=headers)


def _all(connection: sqlite3.Connection, call: Call, kind: str) -> Iterator[dict[str, Any]]:
    for row in connection.execute("SELECT * FROM repos WHERE kind = ?", (kind,)).fetchall():
        repo = repos.from_row(row)
        head = commits.ref(connection, repo, commits.MAIN)
        commit = commits.get(connection, repo, head) if head else None
        if commit is not None and repos.may_see(call, repo):
            yield info.identity(repo) | info.properties(connection, call, repo, commit) | {"_tree": commit.tree, "_kind": repo.kind}


def _shown(connection: sqlite3.Connection, call: Call, model: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    names = list(wanted) or list(FULL if call.flag("full") else BRIEF)
    if not wanted:
        names += [name for flag, name in (("config", "config"), ("cardData", "cardData")) if call.flag(flag)]
    if "siblings" in names:
        model["siblings"] = info.siblings(commits.files(connection, model["_tree"]).values(), blobs=False)
    shown = {key: model[key] for key in ("_id", "id")} | info.pick(model, names)
    return shown | ({"modelId": model["id"]} if model["_kind"] == "model" and not wanted else {})


def _limit(call: Call) -> int:
    text = call.one("limit", str(PAGE))
    if not (text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) > 0):
        raise ApiError(400, f'"limit" must be a positive number, not {text!r:.60}')
    return min(int(text), PAGE)


def _filter(call: Call) -> Callable[[dict[str, Any]], bool]:
    """Return a function that tells whether a model fits every condition of the query."""
    tags = [tag for value in call.query.get("filter", []) for tag in value.split(",") if tag]
    words = [word.lower() for value in call.query.get("search", []) for word in value.split()]
    author, task, gated = call.one("author").lower(), call.one("pipeline_tag"), call.one("gated").lower()
    least, most = _bounds(call)
    served = bool(call.one("inference") or call.one("inference_provider"))
    apps = [app.lower() for value in call.query.get("apps", []) for app in value.split(",") if app]
    if gated not in ("", "true", "false"):
        raise ApiError(400, f'"gated" must be true or false, not {gated!r:.60}')

    def fits(model: dict[str, Any]) -> bool:
        total = (model["safetensors"] or {}).get("total")
        return (
            all(tag in model["tags"] for tag in tags)
            and all(word in model["id"].lower() for word in words)
            and (not author or model["author"].lower() == author)
            and (not task or model["pipeline_tag"] == task)
            and (not gated or bool(model["gated"]) == (gated == "true"))
            and (least is None or (total is not None and total >= least))
            and (most is None or (total is not None and total <= most))
            and not served  # no inference provider serves the models of this hub
            and all(_runs(app, model) for app in apps)
        )

    return fits


def _runs(app: str, model: dict[str, Any]) -> bool:
    if app in _GGUF_APPS:
        return "gguf" in model["tags"]
    return "safetensors" in model["tags"] and model["library_name"] == "transformers"


def _bounds(call: Call) -> tuple[float | None, float | None]:
    text = call.one("num_parameters")
    bounds: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        match = _COUNT.fullmatch(part.strip())
        if match is None:
            raise ApiError(400, f'"num_parameters" must look like min:1B,max:9B, not {text!r:.60}')
        bounds[match[1].lower()] = float(match[2]) * _UNITS[match[3].upper()]
    return bounds.get("min"), bounds.get("max")


def _after(call: Call) -> list[Any] | None:
    cursor = call.one("cursor")
    if not cursor:
        return None
    try:
        value = json.loads(base64.urlsafe_b64decode(cursor))
        is_time = call.one("sort") in ("lastModified", "createdAt")
        if (
            isinstance(value, list)
            and len(value) == 2
            and isinstance(value[0], str if is_time else int | float)
            and isinstance(value[1], str)
        ):
            return value
    except ValueError:
        pass
    raise ApiError(400, f"Invalid cursor {cursor!r:.60}")


def _next(call: Call, last: list[Any]) -> str:
    cursor = base64.urlsafe_b64encode(json.dumps(last).encode()).decode()
    pairs = [(key, value) for key, values in call.query.items() for value in values if key != "cursor"]
    return f'<{call.base}{call.path}?{urlencode([*pairs, ("cursor", cursor)])}>; rel="next"'
