"""What a measurement run sees, before any metric turns it into a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from runners.intervals import Estimate


class Room:
    """Float64 work space that chunks of one score use in turn: fresh memory for each would cost more than the arithmetic on it."""

    def __init__(self) -> None:
        """Take nothing yet."""
        self._taken: dict[str, Any] = {}

    def take(self, name: str, like: Any) -> Any:
        """Return a float64 tensor of the shape and on the device of `like`; what the same name held before is overwritten."""
        held = self._taken.get(name)
        if held is None or held.shape[1] != like.shape[1] or len(held) < len(like) or held.device != like.device:
            held = self._taken[name] = like.new_empty(like.shape).double()
        return held[: len(like)]


class Chunk:
    """Consecutive scored positions of one window: logits of the model, of its base (None when the base itself is measured), and the truth.

    `logits`, `base_logits`: tensors of shape (positions, vocabulary) in the model's own dtype; `targets`: the token ids that really
    follow, shape (positions,). All else is float64 and in nats, computed once however many metrics read it, and only if one does.
    What has a vocabulary's width lies in `room` and holds until the next chunk; what has one value a position is a metric's to keep.
    """

    def __init__(self, logits: Any, targets: Any, base_logits: Any = None, room: Room | None = None) -> None:
        """Keep what is given; nothing is computed yet."""
        self.logits = logits
        self.targets = targets
        self.base_logits = base_logits
        self._room = room or Room()

    @cached_property
    def log_probs(self) -> Any:
        """The model's log-probabilities, shape (positions, vocabulary)."""
        return self._log_softmax("model", self.logits)

    @cached_property
    def base_log_probs(self) -> Any:
        """The base's log-probabilities, shape (positions, vocabulary)."""
        return self._log_softmax("base", self.base_logits)

    @cached_property
    def base_probs(self) -> Any:
        """The base's probabilities, shape (positions, vocabulary)."""
        import torch

        return torch.exp(self.base_log_probs, out=self._room.take("probs", self.base_logits))

    @cached_property
    def nll(self) -> Any:
        """The model's negative log-likelihood of each true token, shape (positions,)."""
        return -self.log_probs.gather(-1, self.targets[:, None])[:, 0]

    @cached_property
    def base_nll(self) -> Any:
        """The base's negative log-likelihood of each true token, shape (positions,)."""
        return -self.base_log_probs.gather(-1, self.targets[:, None])[:, 0]

    @cached_property
    def top(self) -> Any:
        """The model's most likely token at each position, the first of equals."""
        return self.log_probs.argmax(-1)

    @cached_property
    def base_top(self) -> Any:
        """The base's most likely token at each position, the first of equals."""
        return self.base_log_probs.argmax(-1)

    @cached_property
    def divergence(self) -> Any:
        """KL(base || model) at each position, shape (positions,): exactly 0 for equal logits, never under 0.

        A token that the base gives no chance adds nothing, whatever the model gives it (masked tokens have logits of minus infinity).
        """
        import torch

        gaps = torch.sub(self.base_log_probs, self.log_probs, out=self._room.take("work", self.logits))
        found = gaps.mul_(self.base_probs).sum(-1)
        strange = ~found.isfinite()
        if strange.any():  # 0 · infinity is among the terms, or a model says what is not a number
            chances = self.base_probs[strange]
            terms = chances * (self.base_log_probs[strange] - self.log_probs[strange])
            found[strange] = terms.where(chances != 0, 0.0).sum(-1)
        return found.clamp(min=0.0)

    def _log_softmax(self, name: str, logits: Any) -> Any:
        import torch

        wide = self._room.take("work", logits).copy_(logits)
        return torch.log_softmax(wide, -1, out=self._room.take(name, logits))


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What a window metric's `per_token` gave, over all windows of a text.

    `means`: the mean of each window over its scored positions; where `per_token` gives k columns, a tuple of k means. `tokens`: every
    position's value, one float64 numpy array a window, only for metrics with `KEEPS_TOKENS`. `scored`, `bytes`: by window, how many tokens
    were scored and how many UTF-8 bytes they stand for.
    """

    means: tuple[Any, ...]
    scored: tuple[int, ...]
    bytes: tuple[int, ...]
    tokens: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One timed run: seconds to the first new token (the prompt's pass), then of each further token of the batch; joules where metered.

    `tokens`: the token ids that were written, by sequence of the batch, the first one among them.
    """

    prefill_seconds: float
    token_seconds: tuple[float, ...]
    joules: float | None = None
    tokens: tuple[tuple[int, ...], ...] = ()

    @property
    def decode_seconds(self) -> float:
        """Seconds of all tokens after the first."""
        return sum(self.token_seconds)


@dataclass(frozen=True, kw_only=True)
class SpeedPoint:
    """Timed runs of a model, and of its base in turns with it (empty without a base), at one point of the curve.

    `base_runs[i]` is the neighbour in time of `runs[i]`. `headline`: the point whose numbers stand for the model.
    """

    mode: str
    batch: int
    context: int
    headline: bool
    runs: tuple[Run, ...]
    base_runs: tuple[Run, ...] = ()

    @property
    def conditions(self) -> dict[str, str | int]:
        """The point as a measurement's conditions; none for the headline."""
        return {} if self.headline else {"mode": self.mode, "batch": self.batch, "context": self.context}


@dataclass(frozen=True, kw_only=True)
class MemoryPoint:
    """Bytes at one context length, batch 1, as estimates; None where the machine does not tell.

    `kv_cache`, `activations` (the peak less weights and cache), `peak` (above what was held before loading); on a GPU also what torch
    `reserved`, the whole `process` and the whole `device`.
    """

    context: int
    kv_cache: Estimate | None = None
    activations: Estimate | None = None
    peak: Estimate | None = None
    reserved: Estimate | None = None
    process: Estimate | None = None
    device: Estimate | None = None


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """What lm-eval found on one task: its name, its definition's version, and estimates by lm-eval's name of the metric (`acc`, …)."""

    task: str
    version: str
    estimates: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Everything about a checkpoint that is not read from logits.

    `parameters` counts the weights that the checkpoint stands for; `tensor_bytes` is what its tensors take, `coded_bytes` what they take
    Huffman-coded, `disk_bytes` its files. `load_seconds`, `peak_bytes`: of each load with a short run; `peak_grain` is by how many bytes
    such peaks differ between processes. `weight_bytes`: what the weights take in memory. Parts whose section the protocol lacks are empty.
    """

    disk_bytes: int = 0
    tensor_bytes: int = 0
    coded_bytes: int = 0
    parameters: int = 0
    load_seconds: tuple[float, ...] = ()
    peak_bytes: tuple[float, ...] = ()
    peak_grain: int = 0
    weight_bytes: Estimate | None = None
    speed: tuple[SpeedPoint, ...] = ()
    memory: tuple[MemoryPoint, ...] = ()
    tasks: tuple[TaskResult, ...] = ()
