"""Tokens and private keys that got into a checkpoint's files by accident, told by the forms that their makers gave them to be found.

Only forms with a fixed prefix and a fixed length are looked for (https://docs.github.com/en/code-security/secret-scanning): a vocabulary
holds any word that somebody wrote, and a rule on entropy alone would stumble over every tokenizer and checksum.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

# What it is, the plain beginnings that it may have, by which it is found fast, and the whole form.
_RULES: tuple[tuple[str, tuple[bytes, ...], bytes], ...] = (
    ("Hugging Face token", (b"hf_", b"api_org_"), rb"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{34,40}|api_org_[A-Za-z0-9]{34})(?![A-Za-z0-9])"),
    ("AWS access key", (b"AKIA", b"ASIA"), rb"(?<![A-Za-z0-9])(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
    (
        "private key",
        (b"-----BEGIN ",),
        rb"-----BEGIN (?:[A-Z0-9]{2,10} ){0,2}PRIVATE KEY(?: BLOCK)?-----\s{0,4}(?:\\[nr]){0,2}[A-Za-z0-9+/=:\s\\]{40}",
    ),
    (
        "GitHub token",
        (b"ghp_", b"gho_", b"ghu_", b"ghs_", b"ghr_", b"github_pat_"),
        rb"(?<![A-Za-z0-9])(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59})(?![A-Za-z0-9])",
    ),
    ("GitLab token", (b"glpat-",), rb"(?<![A-Za-z0-9-])glpat-[A-Za-z0-9_-]{20}(?![A-Za-z0-9_-])"),
    ("Google API key", (b"AIza",), rb"(?<![A-Za-z0-9_-])AIza[A-Za-z0-9_-]{35}(?![A-Za-z0-9_-])"),
    (
        "OpenAI key",
        (b"sk-",),
        rb"(?<![A-Za-z0-9_-])sk-(?:(?:proj|svcacct|admin)-[A-Za-z0-9_-]{74,200}|[A-Za-z0-9]{48})(?![A-Za-z0-9_-])",
    ),
    ("Anthropic key", (b"sk-ant-",), rb"(?<![A-Za-z0-9_-])sk-ant-(?:api|admin)\d\d-[A-Za-z0-9_-]{80,120}(?![A-Za-z0-9_-])"),
    ("Slack token", (b"xox",), rb"(?<![A-Za-z0-9])xox[abprs]-(?:\d{10,13}-){2,3}[A-Za-z0-9]{24,32}(?![A-Za-z0-9])"),
    ("PyPI token", (b"pypi-",), rb"(?<![A-Za-z0-9])pypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}"),
    ("npm token", (b"npm_",), rb"(?<![A-Za-z0-9])npm_[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    (
        "Weights & Biases key",
        (b"wandb", b"WANDB"),
        rb"(?:wandb|WANDB)[A-Za-z_]{0,12}[\"']?\s{0,3}[:=]\s{0,3}[\"']?[0-9a-f]{40}(?![0-9a-f])",
    ),
)
_PATTERNS = tuple((what, starts, re.compile(form)) for what, starts, form in _RULES)
# `hf_xxxxxxxx…` and `AKIAIOSFODNN7EXAMPLE` stand in documentation and are nobody's: a real one is drawn at random.
_LEAST_ENTROPY, _PLACEHOLDER = 3.0, re.compile(rb"(?i)example|x{6}|(.)\1{7}|abcdef|1234567")
_CHUNK, _OVERLAP = 1 << 20, 4096
_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".onnx_data", ".bin")
_HEAD = 16 << 20  # of a file of weights its metadata are looked at, which stand first


def find(files: Mapping[str, Path]) -> Iterator[str]:
    """Yield `path: what, line n` for each file (by its path in the repository) that holds something of a secret's form, never the secret.

    Links are not followed. Of weights only the first 16 MiB are read, where their metadata are.
    """
    for name, path in files.items():
        if path.is_file() and not path.is_symlink():
            for what, line in _in_file(path, _HEAD if path.suffix.lower() in _WEIGHTS else None):
                yield f"{name}: {what}, line {line}"


def _in_file(path: Path, limit: int | None) -> Iterator[tuple[str, int]]:
    """Yield each kind of secret once, with the line where it first stands."""
    seen: set[str] = set()
    lines, read, kept = 1, 0, b""
    with path.open("rb") as stream:
        while (limit is None or read < limit) and (chunk := stream.read(_CHUNK)):
            read += len(chunk)
            window = kept + chunk
            for what, starts, form in _PATTERNS:
                if what in seen or not any(start in window for start in starts):
                    continue
                if match := next((one for one in form.finditer(window) if _drawn(one.group())), None):
                    seen.add(what)
                    yield what, lines + window.count(b"\n", 0, match.start())
            kept = window[-_OVERLAP:]
            lines += window.count(b"\n", 0, len(window) - len(kept))


def _drawn(secret: bytes) -> bool:
    """Whether a match looks drawn at random rather than written down as an example."""
    counts = Counter(secret)
    entropy = -sum(count / len(secret) * math.log2(count / len(secret)) for count in counts.values())
    return entropy >= _LEAST_ENTROPY and not _PLACEHOLDER.search(secret)
