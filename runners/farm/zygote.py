"""The warm parent of jobs: imports torch and transformers once, then forks a child for each order.

It speaks in lines of JSON. In (stdin): `{"ticket", "order", "log", "result"}`. Out (stdout): `{"ready"}` once, for each order
`{"ticket", "pid"}` when its child runs and `{"ticket", "status"}` (a wait status) when that has ended. When stdin ends, because the farm
closed it or was killed, all children are killed and it ends too.

A process can be forked safely only while it has no threads but its own: so nothing is computed here, OpenBLAS is told to start no
threads, and gptqmodel, which starts some at import, is left to the children. A process that has spoken to CUDA cannot fork at all, so
where there is a GPU's driver nothing is imported (`--cold`).
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import sys
from contextlib import suppress
from typing import Any

from runners.farm import child
from runners.farm.processes import kill_tree

WARM = (
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.generation.utils",
    "transformers.quantizers.auto",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen3.modeling_qwen3",
    "huggingface_hub.hf_api",
    "accelerate",
    "datasets",
    "compressed_tensors",
    "bitsandbytes",
    "llmcompressor",
)
_WATCH_S = 0.5


class Zygote:
    """The loop: orders in, children out."""

    def __init__(self, answers: int) -> None:
        """Answer on the file descriptor `answers`."""
        self._answers = answers
        self._tickets: dict[int, int] = {}  # pid -> ticket
        self._buffer = b""
        self._bell, self._ring = os.pipe()
        os.set_blocking(self._ring, False)

    def serve(self) -> None:
        """Serve until stdin ends, then kill what still runs."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._ring, warn_on_full_buffer=False)
        self._say({"ready": True})
        try:
            while True:
                ready, _, _ = select.select([0, self._bell], [], [])
                if self._bell in ready:
                    os.read(self._bell, 4096)
                    self._reap()
                if 0 in ready and not self._read():
                    return
        finally:
            for pid in self._tickets:
                kill_tree(pid)

    def _read(self) -> bool:
        data = os.read(0, 1 << 16)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._start(json.loads(line))
        return bool(data)

    def _start(self, request: dict[str, Any]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for descriptor in (self._bell, self._ring, self._answers):
                os.close(descriptor)
            child.run(parent, request["order"], request["log"], request["result"])
        self._tickets[pid] = request["ticket"]
        self._say({"ticket": request["ticket"], "pid": pid})

    def _reap(self) -> None:
        while self._tickets:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None:
                return
            if ended.si_pid in self._tickets:
                kill_tree(ended.si_pid)  # what the job started and left; the leader is not yet reaped, so the number is still its own
            _, status = os.waitpid(ended.si_pid, 0)
            if (ticket := self._tickets.pop(ended.si_pid, None)) is not None:
                self._say({"ticket": ticket, "status": status})

    def _say(self, message: dict[str, Any]) -> None:
        os.write(self._answers, json.dumps(message).encode() + b"\n")


def warm() -> None:
    """Import what jobs need, as far as it is installed; end the process when the farm goes away meanwhile."""
    poll = select.poll()
    poll.register(0, select.POLLHUP)

    def look(*_: object) -> None:
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            os._exit(0)

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _WATCH_S, _WATCH_S)
    for name in WARM:
        with suppress(Exception):  # a library that is missing or broken here is met again, with its reason, by the job that needs it
            importlib.import_module(name)
    signal.setitimer(signal.ITIMER_REAL, 0)
    gc.collect()
    gc.freeze()  # so that collections in the children do not touch, and so copy, what they share with us


def main() -> None:
    """Move stdout out of the way of chatty imports, warm up, serve."""
    answers = os.dup(1)
    os.dup2(2, 1)
    if "--cold" not in sys.argv[1:]:
        warm()
    with suppress(BrokenPipeError):
        Zygote(answers).serve()


if __name__ == "__main__":
    main()
