"""What a student is asked to have in common with its teacher: losses on distributions, hidden states, and relations between tokens.

All are means, in nats where they are divergences; teacher's tensors carry no gradient. The plain divergence is `training.divergence`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MEASURES = ("mse", "cosine")
_NEVER = -80.0
"""A log-probability that stands for none; minus infinity times zero would not be a number."""


@dataclass(frozen=True, kw_only=True)
class Top:
    """A teacher's k likeliest tokens: `places` and log-probabilities `logs` (tokens, k); `rest` (tokens,) of all others together."""

    places: Any
    logs: Any
    rest: Any


def top(logits: Any, count: int, *, temperature: float = 1.0) -> Top:
    """Return the `count` likeliest tokens of logits (tokens, vocabulary) at a temperature, and what all others have together."""
    import torch

    logs = torch.log_softmax(logits.float() / temperature, dim=-1)
    found = logs.topk(count, dim=-1)
    return Top(places=found.indices, logs=found.values, rest=_others(logs, found.indices))


def _others(logs: Any, places: Any) -> Any:
    if places.shape[-1] == logs.shape[-1]:
        return logs.new_full(logs.shape[:-1], _NEVER)
    return logs.scatter(-1, places, float("-inf")).logsumexp(dim=-1).clamp(min=_NEVER)


def top_divergence(student: Any, teacher: Top, *, temperature: float = 1.0) -> Any:
    """Return T² KL(teacher ‖ student) over the teacher's top tokens and one more outcome, "any other token"; mean per token.

    Nothing is made up about the others: merging outcomes can only lower a divergence, so this is a lower bound of the whole one, and
    equal to it where the top tokens are the whole vocabulary. `student` are logits (tokens, vocabulary).
    """
    import torch

    logs = torch.log_softmax(student / temperature, dim=-1)
    value = (teacher.logs.exp() * (teacher.logs - logs.gather(-1, teacher.places))).sum(dim=-1)
    if teacher.places.shape[-1] < logs.shape[-1]:
        value = value + teacher.rest.exp() * (teacher.rest - _others(logs, teacher.places))
    return value.mean() * temperature**2


def generalised_divergence(student: Any, teacher: Any, *, beta: float, temperature: float = 1.0) -> Any:
    """Return T² D_β of logits (tokens, vocabulary), mean per token: β KL(P ‖ M) + (1 - β) KL(Q ‖ M), M = βP + (1 - β)Q (GKD, 2306.13649).

    P is the teacher, Q the student. As there, 0 means the forward KL(P ‖ Q) and 1 the reverse KL(Q ‖ P), the limits up to scale.
    """
    import torch

    wanted = torch.log_softmax(teacher / temperature, dim=-1)
    given = torch.log_softmax(student / temperature, dim=-1)
    if beta in (0.0, 1.0):
        left, right = (wanted, given) if beta == 0.0 else (given, wanted)
        value = _kl(left, right)
    else:
        share = torch.tensor([beta, 1 - beta], dtype=given.dtype).log()
        mixture = torch.logsumexp(torch.stack([wanted + share[0], given + share[1]]), dim=0)
        value = beta * _kl(wanted, mixture) + (1 - beta) * _kl(given, mixture)
    return value * temperature**2


def _kl(left: Any, right: Any) -> Any:
    return (left.exp() * (left - right)).sum(dim=-1).mean()


def hidden_difference(student: Any, teacher: Any, *, measure: str) -> Any:
    """Return how far hidden states (…, channels) are apart: squared error relative to the teacher's mean square, or 1 - cosine."""
    import torch.nn.functional as F  # noqa: N812 - the name that everybody uses

    if measure == "cosine":
        return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()
    return F.mse_loss(student, teacher) / teacher.square().mean()


def value_relations(student: Any, teacher: Any, *, heads: int) -> Any:
    """Return KL(teacher ‖ student) of the tokens' relations, softmax(V Vᵀ / √d) by head, mean over heads and tokens (MiniLMv2, 2012.15828).

    Both are (windows, tokens, channels); channels are split into as many heads alike, so that their numbers need not agree.
    """
    import torch

    def relation(values: Any) -> Any:
        by_head = values.unflatten(-1, (heads, -1)).transpose(1, 2)
        return torch.log_softmax(by_head @ by_head.transpose(-1, -2) / by_head.shape[-1] ** 0.5, dim=-1)

    return _kl(relation(teacher), relation(student))


def similarity_difference(student: Any, teacher: Any) -> Any:
    """Return the mean squared difference of the cosine similarities of all pairs of tokens of a window (relational KD, 1904.05068)."""
    import torch.nn.functional as F  # noqa: N812 - the name that everybody uses

    def similarity(states: Any) -> Any:
        unit = F.normalize(states, dim=-1)
        return unit @ unit.transpose(-1, -2)

    return F.mse_loss(similarity(student), similarity(teacher))


def mapped(layers: int, of: int) -> list[int]:
    """Return for each of a student's layers, from 1, which of the teacher's it is compared with: evenly spaced, the last with the last."""
    return [max(1, round(layer * of / layers)) for layer in range(1, layers + 1)]
