"""One atomic commit, sent until it is known whether it landed: a lost answer never makes a second one."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hub import names, transfer
from hub.errors import HubConflict, HubUnreachable, PolicyRefusal
from hub.transport import library, patiently

if TYPE_CHECKING:
    from hub.client import HubClient

Content = Path | bytes
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """Files that go to a repository, and paths that go from it, in one commit after `parent` (None: the repository is empty)."""

    repo_id: str
    files: Mapping[str, Content]
    deleted: Collection[str]
    message: str
    parent: str | None

    def send(self, client: HubClient, patience_s: float) -> str:
        """Make the commit and return its sha; `HubConflict` where the repository moved on, `HubUnreachable` after `patience_s` of waiting.

        Where the answer was lost, the head is compared with what was sent before anything is sent again.
        """
        _require_plain(self.files)

        def once() -> str:
            try:
                return self._sent(client)
            except (HubUnreachable, HubConflict):
                landed = self._landed(client)
                if landed is None:
                    raise
                _log.info("the commit to %s had landed although its answer was lost", self.repo_id)
                return landed

        return patiently(once, patience_s=patience_s, lengthy=True)

    def _sent(self, client: HubClient) -> str:
        hub = library(client.endpoint)
        added = [
            hub.CommitOperationAdd(path, content if isinstance(content, bytes) else str(content)) for path, content in self.files.items()
        ]
        gone = [hub.CommitOperationDelete(path, is_folder=False) for path in self.deleted]
        made = client.once(
            f"the commit to {self.repo_id}",
            lambda api: api.create_commit(self.repo_id, [*added, *gone], commit_message=self.message, parent_commit=self.parent),
        )
        return str(made.oid)

    def _landed(self, client: HubClient) -> str | None:
        """Return the head's sha where it is another than the parent and holds just what was sent, else None."""
        head = client.head(self.repo_id)
        if head is None or head == self.parent:
            return None
        there = {file.path: file for file in client.files(self.repo_id, head)}
        same = all(path in there and transfer.sums(content).match(there[path]) for path, content in self.files.items())
        return head if same and not there.keys() & set(self.deleted) else None


def _require_plain(files: Mapping[str, Content]) -> None:
    """Let up only plain files with names that we would take ourselves: a linked file may be one that nobody meant to publish."""
    if fault := names.paths_fault(files):
        raise PolicyRefusal(f"the commit is refused: {fault}", hint="Rename the file.")
    for content in files.values():
        if isinstance(content, Path) and (content.is_symlink() or not content.is_file()):
            raise PolicyRefusal(f"{content} is not a regular file, so it is not published", hint="Publish regular files only, no links.")
