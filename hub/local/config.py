"""How a hub's server behaves; kept apart because its starter needs it too."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """Fault injection on or off; from which size and in which parts LFS uploads are split (bytes); names it answers to (none: any)."""

    faults: bool = False
    multipart_threshold: int = 512 * MIB
    chunk_size: int = 64 * MIB
    allowed_hosts: tuple[str, ...] = ("127.0.0.1", "localhost", "[::1]", "::1")
