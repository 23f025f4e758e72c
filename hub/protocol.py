"""Protocols as frozen types: exactly how numbers are taken. A protocol measures what it has a section for, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Text:
    """A text by the SHA-256 of its UTF-8 bytes (lines end in a newline alone), and where it comes from.

    `name` is that of a shipped text, or of a local file. With `dataset` (`owner/name` on the Hub), `revision` (a 40-digit commit) and
    `file` it can be fetched; of a Parquet or JSON Lines file, the rows of `column` are joined with `joiner`.
    """

    name: str
    sha256: str
    dataset: str = ""
    revision: str = ""
    file: str = ""
    column: str = ""
    joiner: str = ""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Non-overlapping windows of `sequence_length` tokens of the protocol's text, `windows` of them at even distances (0: all), no tail."""

    sequence_length: int
    windows: int


@dataclass(frozen=True, kw_only=True)
class Tasks:
    """Tasks of lm-eval by name, `limit` documents of each (0: all), `shots` examples before each question, drawn with `seed`."""

    names: tuple[str, ...]
    limit: int
    shots: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class Speed:
    """`context` tokens read, then `new_tokens` written greedily, in each mode, for each batch and context.

    The first batch, context and mode make the headline numbers; the others the curve around it. At least `repeats` runs of each point,
    and more until they took `seconds`, after `warmup` runs that do not count. A point that does not fit the model, or takes a machine too
    long, is left out or has fewer runs, and that is noted.
    """

    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    modes: tuple[str, ...]
    new_tokens: int
    repeats: int
    seconds: float
    warmup: int


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory by context length in tokens, batch 1: measured where the model and the machine allow it, else estimated, and marked so."""

    contexts: tuple[int, ...]
    loads: int


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Exactly how numbers are taken: on which text, and the sections of what is measured."""

    name: str
    text: Text | None = None
    quality: Quality | None = None
    tasks: Tasks | None = None
    speed: Speed | None = None
    memory: Memory | None = None
