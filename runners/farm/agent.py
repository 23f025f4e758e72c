"""What runs in a cluster's Ray workers: a thin parent of the processes that do the work."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from runners.farm import scratch


def ray() -> Any:
    """Return the library, whose own types fit neither how it decorates nor how it is called."""
    return importlib.import_module("ray")


class Agent:
    """The Ray actor of a job or of a node's keeper: a thin parent of the process that does the work."""

    def where(self) -> tuple[str, str]:
        """Return the node's id and its host's name."""
        return ray().get_runtime_context().get_node_id(), socket.gethostname()

    def keep(self, farm: str, node: str) -> str:
        """Have the node's scratch folder kept until this worker ends; return the folder."""
        root = scratch.folder(farm, node)
        self._keeper = _start("runners.farm.scratch", root, subprocess.DEVNULL)
        assert self._keeper.stdout is not None
        if not self._keeper.stdout.readline():
            raise RuntimeError(f"{socket.gethostname()} gives no scratch folder {root}")
        return str(root)

    def run(self, task: str, root: str) -> tuple[str, str]:
        """Do a task (JSON) to its end; return its answer (JSON) and what was said on stderr, the one empty where it died."""
        with tempfile.TemporaryFile() as said:
            process = _start("runners.farm.node", Path(root), said)
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.write(task.encode() + b"\n")
                process.stdin.flush()
            answer = process.stdout.read().decode()  # stdin stays open: its end is the end of the job
            said.seek(0)
            return answer, said.read().decode("utf-8", "replace")


def _start(module: str, root: Path, stderr: Any) -> subprocess.Popen[bytes]:
    import runners

    paths = (str(Path(str(runners.__file__)).parents[1]), os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", module, str(root)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, env=environment, start_new_session=True)
