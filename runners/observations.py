"""What a measurement run sees, before any metric turns it into a number."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


class Chunk:
    """Consecutive scored positions of one window: logits of the model, of its base (None when the base itself is measured), and the truth.

    `logits`, `base_logits`: tensors of shape (positions, vocabulary) in the model's own dtype; `targets`: the token ids that really
    follow, shape (positions,). Log-probabilities are float64 and in nats, computed once however many metrics read them.
    """

    def __init__(self, logits: Any, targets: Any, base_logits: Any = None) -> None:
        """Keep what is given; nothing is computed yet."""
        self.logits = logits
        self.targets = targets
        self.base_logits = base_logits

    @cached_property
    def log_probs(self) -> Any:
        """The model's log-probabilities, float64, shape (positions, vocabulary)."""
        return self.logits.double().log_softmax(-1)

    @cached_property
    def base_log_probs(self) -> Any:
        """The base's log-probabilities, float64, shape (positions, vocabulary)."""
        return self.base_logits.double().log_softmax(-1)

    @cached_property
    def nll(self) -> Any:
        """The model's negative log-likelihood of each true token, float64, shape (positions,)."""
        return -self.log_probs.gather(-1, self.targets[:, None])[:, 0]

    @cached_property
    def base_nll(self) -> Any:
        """The base's negative log-likelihood of each true token, float64, shape (positions,)."""
        return -self.base_log_probs.gather(-1, self.targets[:, None])[:, 0]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything about a checkpoint that is not read from logits: seconds of each run, speed-ups over the base, bytes, parameters.

    `windows` holds, by quality metric, the mean per-token value of each window. `parameters` counts the weights that the checkpoint
    stands for; `tensor_bytes` is what its tensors take, `coded_bytes` what they take Huffman-coded, `disk_bytes` its files.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: tuple[float, ...]
    decode_seconds: tuple[float, ...]
    prefill_speedups: tuple[float, ...]
    decode_speedups: tuple[float, ...]
    load_seconds: tuple[float, ...]
    peak_bytes: tuple[float, ...]
    disk_bytes: int
    tensor_bytes: int
    coded_bytes: int
    parameters: int
    windows: dict[str, tuple[float, ...]] = field(default_factory=dict)
