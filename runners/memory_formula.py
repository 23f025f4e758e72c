"""Memory as a function of the context length: the KV cache by its formula, activations by a curve through what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CACHE = "layers × KV heads × head dimension × 2 × bytes × tokens"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A polynomial by least squares: `coefficients` from the constant up, bytes by tokens.

    `error` is how far, relative to what was measured, a curve without the largest context missed it; `held_out` is that context, `points`
    how many contexts the curve goes through.
    """

    coefficients: tuple[float, ...]
    points: int
    held_out: int
    error: float

    def at(self, tokens: int) -> float:
        """Return the bytes at a context length, never below zero."""
        return _value(self.coefficients, tokens)

    @property
    def words(self) -> str:
        """The curve's name: `a + b·T`."""
        return " + ".join(("a", "b·T", "c·T²")[: len(self.coefficients)])


def cache_bytes(config: Mapping[str, Any], tokens: int, item: int) -> int | None:
    """Return the bytes of keys and values of `tokens` tokens, `item` bytes each; None where config.json does not tell the shape.

    Sliding windows and latent attention keep less than this; what was measured shows whether it holds.
    """
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    layers, heads, width = (_number(config, *names) for names in _SHAPE)
    size = _number(config, "head_dim") or (width // heads if width and heads else None)
    shared = _number(config, "num_key_value_heads") or heads
    return layers * shared * size * 2 * item * tokens if layers and shared and size else None


def first_guess(config: Mapping[str, Any], tokens: int, *, scores: bool, all_logits: bool) -> int:
    """Return about how many bytes of activations a pass takes, rather too many: for the decision whether a first context is run at all.

    `scores`: attention may keep its weights as a matrix of tokens × tokens for each head. `all_logits`: logits after each token.
    """
    inner = config.get("text_config")
    config = inner if isinstance(inner, dict) else config
    _, heads, width = (_number(config, *names) or 0 for names in _SHAPE)
    between = _number(config, "intermediate_size", "n_inner") or 4 * width
    wide = 4  # bytes: norms and softmax compute in float32
    by_token = 10 * width + 4 * between + (2 * (_number(config, "vocab_size") or 0) if all_logits else 0)
    return wide * (by_token * tokens + (2 * heads * tokens * tokens if scores else 0))


def curve(points: Mapping[int, float], degrees: Sequence[int]) -> Curve | None:
    """Return the curve through bytes by context length; None where there are too few for any degree and one more to try it on.

    Each degree is fitted without the largest context and predicts it; the one that comes nearest is fitted again to all.
    """
    found: list[Curve] = []
    for degree in degrees:
        if len(points) < degree + 2:
            continue
        largest = max(points)
        without = _fit({tokens: value for tokens, value in points.items() if tokens != largest}, degree)
        error = abs(_value(without, largest) - points[largest]) / max(points[largest], 1.0)
        found.append(Curve(coefficients=_fit(points, degree), points=len(points), held_out=largest, error=error))
    return min(found, key=lambda one: one.error, default=None)


_SHAPE = (("num_hidden_layers", "n_layer"), ("num_attention_heads", "n_head"), ("hidden_size", "n_embd"))


def _fit(points: Mapping[int, float], degree: int) -> tuple[float, ...]:
    import numpy as np

    tokens = np.array(list(points), np.float64)
    unit = tokens.max()  # powers of a token count and of one differ by orders of magnitude
    columns = np.stack([(tokens / unit) ** power for power in range(degree + 1)], axis=1)
    found = np.linalg.lstsq(columns, np.array(list(points.values()), np.float64), rcond=None)[0]
    return tuple(float(value / unit**power) for power, value in enumerate(found))


def _value(coefficients: Sequence[float], tokens: int) -> float:
    return max(0.0, sum(value * float(tokens) ** power for power, value in enumerate(coefficients)))


def _number(config: Mapping[str, Any], *names: str) -> int | None:
    found = (config.get(name) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), None)
