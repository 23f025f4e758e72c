"""Answers that are about no repository: whoami, the README check, the start-up probe, a health check."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse, Response

from hub.local import cards
from hub.local.accounts import ORGANISATIONS
from hub.local.web import ApiError, Call


def whoami(call: Call) -> dict[str, Any]:
    """GET /api/whoami-v2."""
    if call.account is None:
        raise ApiError(401, "Invalid username or password.")
    token = {"displayName": f"embedded hub, {call.account.role}", "role": call.account.role, "createdAt": "1970-01-01T00:00:00.000Z"}
    return {
        "type": "user",
        "id": "0" * 24,
        "name": call.account.name,
        "fullname": call.account.name,
        "email": None,
        "emailVerified": False,
        "canPay": False,
        "isPro": False,
        "avatarUrl": "",
        "orgs": [
            {"type": "org", "id": f"{number:024x}", "name": name, "fullname": name, "roleInOrg": "admin", "isEnterprise": False}
            for number, name in enumerate(ORGANISATIONS, 1)
        ],
        "auth": {"type": "access_token", "accessToken": token},
    }


def validate_yaml(call: Call) -> Response:
    """POST /api/validate-yaml {content, repoType}: 400 where there are errors."""
    errors, warnings = cards.validate(call.text("content"))
    answer = {"errors": [{"message": error} for error in errors], "warnings": [{"message": warning} for warning in warnings]}
    return JSONResponse(answer, 400 if errors else 200)


def agent_harnesses(_call: Call) -> dict[str, Any]:
    """GET /api/agent-harnesses: asked by the client's command line at its start; a list would break it."""
    return {}


def health(call: Call) -> dict[str, Any]:
    """GET /health: tells which hub answers, so that its starter can be sure of it."""
    return {"hub": "modelpress", "instance": call.hub.instance, "faults": call.hub.config.faults}
