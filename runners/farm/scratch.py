"""A cluster's machine lends a folder to a farm: `<temp>/modelpress-<user>/<farm>-<node>`, removed with its last user, however that ends.

All who use it hold a shared lock on its file `lock`; a keeper (`python -m runners.farm.scratch ROOT`) lives as long as the pipe to its
stdin, then waits for the others and removes the folder. What machines that lost their power left behind, the next keeper removes.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from hub.errors import SettingsError

_LAST_USERS_S = 30.0


def folder(farm: str, node: str) -> Path:
    """Return where this machine's scratch folder of a farm lies; several nodes of one machine have one each."""
    return Path(tempfile.gettempdir()) / f"modelpress-{os.getuid()}" / f"{farm}-{node}"


def use(root: Path) -> TextIO:
    """Make the folder, for this user alone, and hold it until the returned file is closed; raise `SettingsError` where it is another's."""
    while True:  # another farm's keeper may remove an empty parent, or a folder that nobody holds yet, just now
        with suppress(FileNotFoundError):
            _make(root)
            handle = (root / "lock").open("a")
            fcntl.flock(handle, fcntl.LOCK_SH)
            if _still(handle, root / "lock"):
                return handle
            handle.close()


def join(root: Path) -> TextIO:
    """Hold a folder that a keeper made until the returned file is closed; raise `FileNotFoundError` where it is gone with its keeper.

    It is not made again: nobody would remove it.
    """
    handle = (root / "lock").open("r+")
    fcntl.flock(handle, fcntl.LOCK_SH)
    if not _still(handle, root / "lock"):
        handle.close()
        raise FileNotFoundError(root)
    return handle


def _make(root: Path) -> None:
    root.parent.mkdir(mode=0o700, exist_ok=True)
    status = root.parent.lstat()
    if root.parent.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise SettingsError(f"{root.parent} is not this user's alone", hint="Remove it, or give this machine another TMPDIR.")
    root.mkdir(mode=0o700, exist_ok=True)


def _still(handle: TextIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(handle.fileno()), path.stat())


def keep(root: Path) -> None:
    """Make the folder, say so, and remove it when stdin ends and nobody else holds it; else the next sweep does."""
    handle = use(root)
    sweep(root.parent)
    os.write(1, b"kept\n")
    while os.read(0, 4096):
        pass
    until = time.monotonic() + _LAST_USERS_S
    while not _alone(handle) and time.monotonic() < until:
        time.sleep(0.1)
    if _alone(handle):
        shutil.rmtree(root, ignore_errors=True)
    with suppress(OSError):  # other farms have theirs in it
        root.parent.rmdir()


def sweep(parent: Path) -> None:
    """Remove the folders of farms that nobody holds any more."""
    for lock in parent.glob("*/lock"):
        with suppress(OSError), lock.open("a") as handle:
            if _alone(handle):
                shutil.rmtree(lock.parent, ignore_errors=True)


def _alone(handle: TextIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    if os.fork():
        os._exit(0)  # Ray kills the children of a worker that ends; what cleans up after it is therefore none
    keep(Path(sys.argv[1]))
