"""Whether a number that was taken again agrees with the first: within its interval, or within what its metric states as tolerance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from hub.codec import to_json
from hub.domain import Environment, Measurement
from hub.errors import ModelPressError
from runners import metrics

_ROUNDING = 1e-12
"""By how much, relative to the value, the same number may differ for being summed in another order; below any stated tolerance."""


@dataclass(frozen=True, kw_only=True)
class Repeat:
    """A number then and now (None: it was not taken again), the tolerance of its metric, and whether and why the two agree."""

    then: Measurement
    now: Measurement | None
    tolerance: float
    agrees: bool
    reason: str

    @property
    def difference(self) -> float | None:
        """(now - then) / |then|; None where there is no second number, or the first is 0 and the second is not."""
        if self.now is None or (self.then.value == 0 and self.now.value != 0):
            return None
        return (self.now.value - self.then.value) / abs(self.then.value or 1.0)


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something of the environment that is not as it was; empty where it was not there or not noted."""

    name: str
    then: str
    now: str


def tolerance(metric: str) -> float:
    """Return by how much, relative to the value, a repeat of a metric may differ; 0 where it states nothing or is there no more."""
    try:
        return float(getattr(metrics.load(metric), "TOLERANCE", 0.0))
    except ModelPressError:
        return 0.0


def repeats(then: Sequence[Measurement], now: Sequence[Measurement], allowed: Callable[[str], float] = tolerance) -> tuple[Repeat, ...]:
    """Set each number beside its repeat: the same metric, conditions and engine (its version aside), in the order given."""
    again = {_key(one): one for one in now}
    return tuple(_repeat(one, again.get(_key(one)), allowed(one.metric)) for one in then)


def changes(then: Environment, now: Environment) -> tuple[Change, ...]:
    """Return in what two environments differ: hardware, drivers, threads, system, then libraries."""
    plain = [field.name for field in fields(Environment) if field.name != "libraries"]
    pairs = [(name, _word(getattr(then, name)), _word(getattr(now, name))) for name in plain]
    names = sorted({*then.libraries, *now.libraries})
    pairs += [(name, then.libraries.get(name, ""), now.libraries.get(name, "")) for name in names]
    return tuple(Change(name=name, then=before, now=after) for name, before, after in pairs if before != after)


def _word(value: object) -> str:
    return str(value or "")


def _key(one: Measurement) -> tuple[str, str, str]:
    return one.metric, to_json(one.conditions), one.engine.partition(" ")[0]


def _repeat(then: Measurement, now: Measurement | None, allowed: float) -> Repeat:
    agrees, reason = (False, "not measured again") if now is None else _verdict(then, now, allowed)
    return Repeat(then=then, now=now, tolerance=allowed, agrees=agrees, reason=reason)


def _verdict(then: Measurement, now: Measurement, allowed: float) -> tuple[bool, str]:
    gap = abs(now.value - then.value)
    if gap <= _ROUNDING * abs(then.value):
        return True, "the same"
    if then.ci_low <= now.value <= then.ci_high:
        return True, "within the interval"
    if now.ci_low <= then.ci_high and then.ci_low <= now.ci_high:
        return True, "intervals overlap"
    if allowed and gap <= allowed * abs(then.value):
        return True, f"within {allowed:.2g} of the value"
    stated = f"more than {allowed:.2g} of the value" if allowed else "no difference is allowed"
    return False, f"differs: intervals apart, {stated}"
