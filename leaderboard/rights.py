"""Whether a base's rights allow what was made of it to be published, by what the Hub says of it today."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hub import policy
from hub.errors import HubNotFound, PolicyRefusal
from hub.history import BaseRecord, VariantRecord

if TYPE_CHECKING:
    from hub.client import HubClient
    from hub.settings import Settings

# Of the rules for what is pulled, those that say what may be given on; the others say what is worth pulling.
_RIGHTS = ("banned", "private", "gated", "license")


def gated_today(record: VariantRecord, base: BaseRecord, client: HubClient, settings: Settings) -> bool:
    """Return whether a variant's base is gated now.

    Raises `PolicyRefusal` where its rights, of today or of the variant's commit, allow no release.
    """
    what = f"{record.recipe.name} of {record.base.repo_id} is not published"
    try:
        today = client.candidate(record.base.repo_id)
    except HubNotFound as error:
        raise PolicyRefusal(
            f"{what}: its base is gone from the Hub, or private, so nobody can say what its rights are now",
            hint="modelpress publish tries again once the base is there",
        ) from error
    unknown = [rule for rule in policy.RULES if rule not in _RIGHTS]
    for candidate in (today, replace(base.candidate, gated=today.gated, private=today.private)):
        if refusal := policy.screen(candidate, settings, unknown=unknown):
            raise PolicyRefusal(f"{what}: {refusal.reason}", hint="what may be published stands under [policy] in modelpress.toml")
    return today.gated is not None
