"""A publisher of its own process, to be killed: publishes one variant, or renews its card, as told in the arguments."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hub.client import HubClient
from hub.settings import Settings
from hub.store import Store
from leaderboard.publish import Publisher


def main(endpoint: str, folder: str, variant: str, action: str) -> None:
    """Do it with the token from the environment."""
    client = HubClient(endpoint=endpoint, token=os.environ["PUBLISHER_TOKEN"], cache_dir=Path(folder) / "cache", patience_s=60)
    with Store(f"sqlite:///{folder}/first.db") as store:
        publisher = Publisher(store=store, client=client, settings=Settings(), artifacts_dir=Path(folder) / "artifacts")
        record = store.variant(variant)
        assert record is not None
        getattr(publisher, action)(record)


if __name__ == "__main__":
    main(*sys.argv[1:])
