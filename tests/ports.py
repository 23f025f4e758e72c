"""A port for a server of the tests that must come back under the same address."""

from __future__ import annotations

import random
import socket

_FIRST, _END = 20_000, 30_000
_random = random.SystemRandom()


def free_port() -> int:
    """Return a port that nobody uses now, nor takes before it is bound: from below those that systems give to who asks for any."""
    while True:
        port = _random.randrange(_FIRST, _END)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
