"""The quality pass: a model, and its base beside it, over windows of held-out text; only per-window means are kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType

from hub.domain import Protocol
from hub.errors import BadCheckpoint, BadDocument, UnfitModel
from runners.engines import Loaded
from runners.observations import Chunk

_CHUNK_ELEMENTS = 2**22  # float64 log-probabilities of a chunk take 32 MiB, whatever the vocabulary


def read_text(protocol: Protocol) -> str:
    """Return the protocol's text; raise `BadDocument` when its bytes are not those that the protocol names."""
    from runners import texts

    found = texts.sha256(protocol.text)
    if found != protocol.text_sha256:
        raise BadDocument(
            f"The text {protocol.text} has SHA-256 {found[:16]}…, the protocol {protocol.name} names {protocol.text_sha256[:16]}….",
            hint="Restore the text, or give the changed protocol another name: numbers of different texts cannot be compared.",
        )
    return texts.read(protocol.text)


def windows(ids: Sequence[int], protocol: Protocol) -> list[Sequence[int]]:
    """Cut a text into the protocol's windows.

    The text is encoded once as a whole, so a start token stands only at its very start, and cut into adjacent windows of
    `sequence_length`; the tail is dropped. Of these, `windows` are taken at even distances over the whole text (0: all of them).
    """
    length = protocol.sequence_length
    total = len(ids) // length
    count = protocol.windows or total
    if total < max(count, 2):
        raise UnfitModel(
            f"The text {protocol.text} gives {total} windows of {length} tokens here; {protocol.name} needs {max(count, 2)}.",
            hint="Measure with a protocol of fewer windows or a longer text.",
        )
    return [ids[start : start + length] for start in (index * total // count * length for index in range(count))]


def score(
    loaded: Loaded, base: Loaded | None, parts: Sequence[Sequence[int]], metrics: Mapping[str, ModuleType]
) -> dict[str, tuple[float, ...]]:
    """Return, for each metric, the mean per-token value of each window.

    The first token of a window is context only: `sequence_length - 1` positions are scored, each given all before it in its window.
    """
    scores: dict[str, list[float]] = {name: [] for name in metrics}
    for ids in parts:
        logits = loaded.logits(ids)
        base_logits = base.logits(ids) if base else None
        if base_logits is not None and base_logits.shape != logits.shape:
            raise BadCheckpoint(
                f"The variant predicts {logits.shape[-1]} tokens, its base {base_logits.shape[-1]}.",
                hint="A variant must keep its base's vocabulary: press it again with another recipe.",
            )
        for name, total in _sums(logits, base_logits, ids, metrics).items():
            scores[name].append(total / (len(ids) - 1))
    return {name: tuple(values) for name, values in scores.items()}


def _sums(logits: object, base_logits: object, ids: Sequence[int], metrics: Mapping[str, ModuleType]) -> dict[str, float]:
    import torch

    assert isinstance(logits, torch.Tensor)
    targets = torch.tensor(ids[1:], device=logits.device)
    step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
    sums = dict.fromkeys(metrics, 0.0)
    with torch.inference_mode():
        for start in range(0, len(targets), step):
            stop = min(start + step, len(targets))
            beside = base_logits[start:stop] if isinstance(base_logits, torch.Tensor) else None
            chunk = Chunk(logits[start:stop], targets[start:stop], beside)
            for name, metric in metrics.items():
                sums[name] += float(metric.per_token(chunk).sum())
    return sums
