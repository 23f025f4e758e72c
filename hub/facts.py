"""What an inspection of a checkpoint's bytes found, as a frozen type of its own: it is read by the gate and kept with the job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CODE, LINK, STRAY = "pickle or code", "symbolic link", "not in the manifest"
"""Why a file is not expected, as it stands behind its name in `Facts.unexpected_files`."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an inspection in a clean process found on a checkpoint's bytes; `leaderboard.gate` judges them.

    `engine` is what loaded them, by name and version; empty where nothing did or where that was not noted.
    `packed_expected` counts the linear layers that the recipe promises to change (quantized, or sparse as promised), `packed_found`
    those that are; `not_packed` names the others (20 at most); `layers` has both counts by decoder layer. `tensor_bytes_expected` is
    Σ bits / 8 by the scheme, scales included. Without a recipe nothing is expected.

    `config` is config.json's text and `outlines` dtype and shape of every tensor by name, so that what a card claims can be compared;
    `keys` are the metadata's keys of a GGUF file. `unlike_base` names files that should be the base's own and are not; `secrets` says in
    which file and line something has the form of a token or a private key, never what. `looked_at` counts the tensors in which NaN and
    infinity were sought (None: not noted), and `template_fault` says which limit the rendering of a chat template broke.
    """

    loads: bool
    load_error: str
    tensors: int
    packed_expected: int
    packed_found: int
    not_packed: tuple[str, ...]
    non_finite: tuple[str, ...]
    tensor_bytes_expected: int
    tensor_bytes_found: int
    missing_files: tuple[str, ...]
    unexpected_files: tuple[str, ...]
    checksum_errors: tuple[str, ...]
    prompt: str
    generated_ids: tuple[int, ...]
    generated_text: str
    engine: str = ""
    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    unlike_base: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()
    config: str = ""
    outlines: Mapping[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    looked_at: int | None = None
    template_fault: str = ""
