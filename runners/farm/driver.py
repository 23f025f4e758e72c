"""`python -m runners.farm.driver`: the process that speaks to Ray for a dispatcher; should Ray end it, the dispatcher lives on.

It speaks in lines of JSON. In (stdin): a `Demand` once, then `{"ticket", "task"}` and `{"cancel": ticket}`. Out (stdout):
`{"ready": slots}` or `{"refused": [error, message, hint]}` once, then for each task `{"ticket", "answer", "slots"}`. A job is an actor of
its own, which holds its CPUs, GPUs and memory until it ends; its worker only starts `runners.farm.node` and passes on what that says. When
stdin ends, all actors are killed, and with them what they started.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from hub.codec import from_json, to_json
from hub.domain import Job
from hub.errors import JobDied, ModelPressError, OutOfMemory, TimedOut, Unavailable
from runners import failures
from runners.farm import agent
from runners.farm.demand import Demand, fits, resources, shown, slots, threads_of
from runners.farm.node import Answer, Task

_LOOK_S = 0.5
_REACH_S = 10.0
_OBJECTS_BYTES = 80 * 2**20  # the least that Ray takes: jobs pass words, not tensors


class Driver:
    """The connection with a cluster: places jobs, waits for them, says what became of each."""

    def __init__(self, demand: Demand, answers: int) -> None:
        """Take what jobs ask for; answer on the file descriptor `answers`."""
        self._demand, self._answers = demand, answers
        self._slots = 1
        self._cancelled: dict[int, threading.Event] = {}
        self._keepers: dict[str, tuple[Any, str]] = {}
        self._seen: dict[str, Mapping[str, float]] = {}
        # Jobs look for a place one by one: else small ones would keep a large one from ever finding a whole node.
        self._turn = threading.Lock()
        self._holding: set[str] = set()  # the jobs that have a place
        self._keeping = threading.Lock()
        self._saying = threading.Lock()

    def serve(self) -> None:
        """Connect, then serve until stdin ends."""
        try:
            connect(self._demand.address)
            self._slots = slots(self._demand, self._nodes())
            self._say({"ready": self._slots})
        except ModelPressError as error:
            self._say({"refused": [error.name, error.message, error.hint]})
            return
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if "cancel" in message:
                if event := self._cancelled.get(message["cancel"]):
                    event.set()
                continue
            self._cancelled[message["ticket"]] = threading.Event()
            threading.Thread(target=self._serve_one, args=(message["ticket"], message["task"]), daemon=True).start()

    def close(self) -> None:
        """Kill the keepers and leave the cluster: Ray ends the actors of a driver that leaves."""
        ray = agent.ray()

        for actor, _ in self._keepers.values():
            with suppress(Exception):
                ray.kill(actor)
        ray.shutdown()

    def _serve_one(self, ticket: int, text: str) -> None:
        began = time.monotonic()
        task = from_json(Task, text, where="the task")
        try:
            answer = self._run(task, self._cancelled[ticket])
        except Exception as error:
            failed = failures.failure(task.order.job.id, error, seconds=time.monotonic() - began)
            answer = to_json(Answer(outcome=failed))
        del self._cancelled[ticket]
        with suppress(Exception):  # a cluster that is gone has no nodes to count; the answer is said all the same
            self._slots = slots(self._demand, self._nodes())
        self._say({"ticket": ticket, "answer": answer, "slots": self._slots})

    def _run(self, task: Task, cancelled: threading.Event) -> str:
        ray = agent.ray()

        actor: Any = None
        host = "no node yet"
        try:
            self._asked(task.order.job)  # what can never be is said at once, not when its turn comes
            with self._in_turn(cancelled):
                asked = self._asked(task.order.job)
                threads = threads_of(self._demand, self._nodes())
                actor = _actor(asked)
                node, host = self._placed(actor, asked, cancelled)
                self._holding.add(task.order.job.id)
            workspace = replace(task.order.workspace, threads=threads, memory_bytes=self._demand.memory_bytes)
            text = to_json(replace(task, order=replace(task.order, workspace=workspace)))
            answer, said = self._wait(actor.run.remote(text, self._kept(node)), cancelled)
        except ModelPressError:
            raise
        except Exception as error:
            print(f"{task.order.job.title} on {host}: {error}", file=sys.stderr, flush=True)  # noqa: T201
            raise explained(error) from error
        finally:
            self._holding.discard(task.order.job.id)
            if actor is not None:
                with suppress(Exception):
                    ray.kill(actor)
        if not answer:
            print(f"{task.order.job.title} on {host}: {said}", file=sys.stderr, flush=True)  # noqa: T201
            raise JobDied(f"The job's parent process on its node died: {_last(said)}", hint="Run it again; logs/ray.log says where it was.")
        return str(answer)

    @contextmanager
    def _in_turn(self, cancelled: threading.Event) -> Iterator[None]:
        while not self._turn.acquire(timeout=_LOOK_S):
            _stop_if(cancelled)
        try:
            yield
        finally:
            self._turn.release()

    def _asked(self, job: Job) -> dict[str, float]:
        """Return what a job asks for; raise where no node could ever hold it."""
        nodes = self._nodes()
        asked = resources(self._demand, job, nodes)
        if any(fits(asked, node) for node in nodes):
            return asked
        if any(fits(asked, node) for node in self._seen.values()):
            raise JobDied(f"{shown(asked)} are asked for, and the nodes that have that are lost.", hint="Start them again.")
        has = "; ".join(shown(node) for node in nodes) or "no nodes at all"
        raise Unavailable(
            f"No node of the cluster can ever hold the job: it asks for {shown(asked)}. The nodes have: {has}.",
            hint="Lower farm.threads, farm.memory_gib or farm.gpus, or add a larger node.",
        )

    def _placed(self, actor: Any, asked: Mapping[str, float], cancelled: threading.Event) -> tuple[str, str]:
        """Wait until the actor runs; return its node's id and host."""
        ray = agent.ray()

        spot, until = actor.where.remote(), time.monotonic() + self._demand.start_s
        while not ray.wait([spot], timeout=_LOOK_S)[0]:
            _stop_if(cancelled)
            if not any(fits(asked, node) for node in self._nodes()):
                raise JobDied("The nodes that could hold the job were lost before it began.", hint="Start them again.")
            if self._holding:  # jobs of this farm have limits of their own, and free their places when they end
                until = time.monotonic() + self._demand.start_s
            if time.monotonic() > until:
                free = shown(ray.available_resources())
                raise TimedOut(
                    f"The job was not given {shown(asked)} within {self._demand.start_s:g} s. Free now: {free}.",
                    hint="See what else runs on the cluster, or add nodes.",
                )
        node, host = ray.get(spot)
        return str(node), str(host)

    def _wait(self, reference: Any, cancelled: threading.Event) -> tuple[str, str]:
        ray = agent.ray()

        while not ray.wait([reference], timeout=_LOOK_S)[0]:
            _stop_if(cancelled)
        answer, said = ray.get(reference)
        return str(answer), str(said)

    def _kept(self, node: str) -> str:
        """Return the node's scratch folder, kept by an actor there that takes no resources."""
        ray = agent.ray()

        with self._keeping:
            if node in self._keepers:
                with suppress(ray.exceptions.RayError):  # else it died meanwhile, and its folder with it
                    ray.get(self._keepers[node][0].where.remote(), timeout=_REACH_S)
                    return self._keepers[node][1]
            actor = (
                ray.remote(agent.Agent)
                .options(num_cpus=0, scheduling_strategy=ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False))
                .remote()
            )
            root = ray.get(actor.keep.remote(self._demand.farm, node[:12]))
            self._keepers[node] = (actor, str(root))
            return str(root)

    def _nodes(self) -> list[Mapping[str, float]]:
        ray = agent.ray()

        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        self._seen.update(alive)
        return [*alive.values()]

    def _say(self, message: dict[str, Any]) -> None:
        with self._saying, os.fdopen(os.dup(self._answers), "wb") as stream:
            stream.write(json.dumps(message).encode() + b"\n")


def connect(address: str) -> None:
    """Join the cluster at `address`, or start one; raise `Unavailable` with what Ray said."""
    try:
        ray = agent.ray()
    except ImportError as error:
        raise Unavailable(f"Ray cannot be imported: {error}.", hint="Run: pip install 'modelpress[ray]'") from error
    _reach(address)
    own = {} if address else {"include_dashboard": False, "object_store_memory": _OBJECTS_BYTES}
    try:
        ray.init(address=address or "local", namespace="modelpress", log_to_driver=False, logging_level="ERROR", **own)
    except Exception as error:
        raise _no_cluster(address, failures.one_line(error)) from error


def _reach(address: str) -> None:
    """Try the door first: Ray itself tries for minutes, then ends the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdigit()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, str(error)) from error


def _no_cluster(address: str, said: str) -> Unavailable:
    where = f"at {address}" if address else "on this machine"
    hint = "Start one (ray start --head) and set farm.ray_address to its address; where it asks for a token, set RAY_AUTH_MODE=token."
    return Unavailable(f"There is no Ray cluster {where}: {said}", hint=hint)


def explained(error: Exception) -> ModelPressError:
    """Return what Ray raised as an error of ours; the addresses of nodes that Ray's words hold stay in the driver's log."""
    exceptions = agent.ray().exceptions
    if isinstance(error, exceptions.OutOfMemoryError):
        hint = "Give a node less to do at once: raise farm.memory_gib or farm.threads."
        return OutOfMemory("The job's node ran out of memory, and Ray ended the job.", hint=hint)
    if isinstance(error, exceptions.RayTaskError | exceptions.RuntimeEnvSetupError) or "ModuleNotFoundError" in str(error):
        return Unavailable(f"A node cannot run jobs: {_last(str(error))}", hint="Install ModelPress and its extras on every node.")
    return JobDied("The job's node or its Ray worker was lost, and the job with it.", hint="Run it again; logs/ray.log says which it was.")


def _actor(asked: Mapping[str, float]) -> Any:
    ray = agent.ray()

    options = {"num_cpus": asked["CPU"], "num_gpus": asked["GPU"], "memory": asked["memory"] or None}
    return ray.remote(agent.Agent).options(**options, max_restarts=0, max_task_retries=0).remote()


def _stop_if(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise on_request()


def on_request() -> JobDied:
    """Return the error of a job that was cancelled."""
    return JobDied("The job was ended on request.", hint="It is as if it had not run: plan it again.")


def _last(text: str) -> str:
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def main() -> None:
    """Move stdout out of the way of Ray's words, connect, serve; end with everything that was started."""
    answers = os.dup(1)
    os.dup2(2, 1)
    driver = Driver(from_json(Demand, sys.stdin.buffer.readline(), where="the demand"), answers)
    try:
        driver.serve()
    finally:
        threading.Timer(_REACH_S, os._exit, (1,)).start()  # a cluster that does not answer holds nobody up
        with suppress(Exception):
            driver.close()
        os._exit(0)


if __name__ == "__main__":
    from runners.farm import driver  # under its own name, so that Ray sends the actor by name, not by value

    driver.main()
