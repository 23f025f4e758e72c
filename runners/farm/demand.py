"""What a job asks of a cluster, and whether its nodes hold it: pure, over nodes as Ray tells of them (amounts by resource)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hub.domain import Job


@dataclass(frozen=True, kw_only=True)
class Demand:
    """Which cluster, and what each job asks of it; `threads` 0: a node's CPUs / `workers`, `memory_bytes` 0: not asked for.

    A job waits for its place for `start_s` at the most. `address` empty: a cluster of this machine alone is started.
    """

    farm: str
    address: str
    threads: int
    workers: int
    memory_bytes: int
    gpus: float
    start_s: float


def resources(demand: Demand, job: Job | None, nodes: list[Mapping[str, float]]) -> dict[str, float]:
    """Return what a job asks for: a measuring job all CPUs of the largest node that has the rest, so that nothing disturbs its times."""
    threads = threads_of(demand, nodes)
    whole = job is not None and job.kind == "measure"
    return {"CPU": float(max(threads, _largest(demand, nodes)) if whole else threads), **_beside(demand)}


def threads_of(demand: Demand, nodes: list[Mapping[str, float]]) -> int:
    """Return the threads of each job."""
    return demand.threads or max(1, _largest(demand, nodes) // demand.workers)


def _beside(demand: Demand) -> dict[str, float]:
    return {"GPU": demand.gpus, "memory": float(demand.memory_bytes)}


def _largest(demand: Demand, nodes: list[Mapping[str, float]]) -> int:
    return max((int(node.get("CPU", 0.0)) for node in nodes if fits(_beside(demand), node)), default=0)


def fits(asked: Mapping[str, float], node: Mapping[str, float]) -> bool:
    """Whether a node could ever hold what is asked for."""
    return all(node.get(name, 0.0) >= amount for name, amount in asked.items())


def slots(demand: Demand, nodes: list[Mapping[str, float]]) -> int:
    """Return how many pressing jobs the nodes hold at once; at least 1, so that the job is sent and its refusal seen."""
    asked = resources(demand, None, nodes)
    holds = (min(int(node.get(name, 0.0) // amount) for name, amount in asked.items() if amount) for node in nodes)
    return max(1, sum(holds))


def shown(amounts: Mapping[str, float]) -> str:
    """Return amounts for people."""
    memory = f"{amounts.get('memory', 0.0) / 2**30:.2f} GiB of memory"
    return f"{amounts.get('CPU', 0.0):g} CPUs, {amounts.get('GPU', 0.0):g} GPUs, {memory}"
