"""Keeps what libraries print away from the command's own output, at the level of file descriptors."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def quiet(log: Path | None) -> Iterator[None]:
    """Send stdout and stderr of this process, native code included, to `log`, or to a file that is thrown away."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with log.open("ab") if log else tempfile.TemporaryFile() as target:
        try:
            os.dup2(target.fileno(), 1)
            os.dup2(target.fileno(), 2)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in enumerate(kept, 1):
                os.dup2(original, number)
                os.close(original)
