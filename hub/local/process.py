"""Starts the embedded hub as a child process that never outlives its starter, or finds the one that serves the folder already."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from hub.errors import HubError, HubUnreachable, ModelPressError, OutOfDisk, StoreError, WorkFolderBusy
from hub.local import accounts
from hub.local.config import HubConfig

START_TIMEOUT_S = 60.0
LOG_LIMIT = 5 * 1024 * 1024
_CHILD_ERRORS = {kind.exit_code: kind for kind in (HubError, OutOfDisk, StoreError)}


class LocalHub:
    """A running embedded hub: `with LocalHub(folder, port=8757) as hub:` then `hub.endpoint`, `hub.write_token`, `hub.read_token`.

    A hub that serves the folder already is used and left running at the end. Raises `HubUnreachable` if none comes up,
    and before that what keeps the folder from being served: `StoreError`, `OutOfDisk`, `HubError`.
    """

    def __init__(
        self, root: Path, *, port: int = 8757, samples: bool = True, faults: bool = False, config: HubConfig | None = None
    ) -> None:
        self.root = Path(root)
        self._port = port
        self._samples = samples
        self._config = replace(config or HubConfig(), faults=faults or (config is not None and config.faults))
        self._process: subprocess.Popen[bytes] | None = None
        self._endpoint = ""

    @property
    def endpoint(self) -> str:
        """The address, such as http://127.0.0.1:8757; only while it runs."""
        if not self._endpoint:
            raise HubUnreachable(f"The embedded hub of {self.root} is not running", hint="Use it inside `with LocalHub(...)`.")
        return self._endpoint

    @property
    def write_token(self) -> str:
        """The token that may write."""
        return accounts.load(self.root).write_token

    @property
    def read_token(self) -> str:
        """The token that may only read."""
        return accounts.load(self.root).read_token

    @property
    def pid(self) -> int | None:
        """The server's process id; None where another process started it."""
        return self._process.pid if self._process else None

    def __enter__(self) -> LocalHub:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, or find the one that is there, and wait until it answers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        self.root.mkdir(parents=True, exist_ok=True)
        if self._adopt(0):
            return
        while time.monotonic() < deadline:
            self._process = self._launch()
            try:
                outcome = self._await(self._process, deadline)
            except BaseException:
                self._reap()
                raise
            if outcome == "answers":
                return
            self._reap()
            if outcome == "busy" and self._adopt(10):
                return
        raise HubUnreachable(f"The embedded hub of {self.root} did not start in {START_TIMEOUT_S:.0f} s", hint=self._log_end())

    def stop(self) -> None:
        """Stop the server if this object started it."""
        self._endpoint = ""
        self._reap()

    def _launch(self) -> subprocess.Popen[bytes]:
        log = self.root / "server.log"
        if log.exists() and log.stat().st_size > LOG_LIMIT:
            log.replace(log.with_suffix(".log.1"))
        config = self._config
        command = [
            sys.executable,
            "-P",
            "-m",
            "hub.local",
            "--root",
            str(self.root),
            "--port",
            str(self._port),
            "--child-of",
            str(os.getpid()),
        ]
        command += ["--multipart-threshold", str(config.multipart_threshold), "--chunk-size", str(config.chunk_size)]
        command += ["--faults"] if config.faults else []
        command += [] if self._samples else ["--no-samples"]
        # Linux ties the signal to the starting thread, not to the process: a short-lived one would take the hub with it.
        command += ["--signal-with-parent"] if threading.current_thread() is threading.main_thread() else []
        with log.open("ab") as output:
            return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, start_new_session=True)

    def _await(self, process: subprocess.Popen[bytes], deadline: float) -> str:
        """Wait until the child answers (`answers`), finds the folder taken (`busy`), or fails, which raises."""
        while time.monotonic() < deadline:
            code = process.poll()
            if code == WorkFolderBusy.exit_code:
                return "busy"
            if code is not None:
                raise self._ended(process, code)
            card = self._card()
            if card is not None and card["pid"] == process.pid and self._answers(card):
                return "answers"
            time.sleep(0.02)
        return "slow"

    def _ended(self, process: subprocess.Popen[bytes], code: int) -> ModelPressError:
        """Return the error with which the child ended: its own, or, where it had no time for one, the end of its log."""
        try:
            said = json.loads(process.stdout.read() if process.stdout else b"")
            return _CHILD_ERRORS[code](said["message"], hint=said["hint"])
        except (ValueError, LookupError):
            return HubUnreachable(f"The embedded hub of {self.root} ended with exit code {code} as it started", hint=self._log_end())

    def _adopt(self, patience_s: float) -> bool:
        """Use the server that holds the folder, once it answers; False if none does in the given time."""
        until = time.monotonic() + patience_s
        while True:
            card = self._card()
            if card is not None and self._answers(card):
                if self._config.faults and not card.get("faults"):
                    self._endpoint = ""
                    raise WorkFolderBusy(f"The hub that serves {self.root} runs without fault injection", hint="Stop it first.")
                return True
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)

    def _card(self) -> dict[str, Any] | None:
        try:
            value = json.loads((self.root / "server.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def _answers(self, card: dict[str, Any]) -> bool:
        """Tell whether the hub on the card answers as itself, and take its address then."""
        address = urlsplit(str(card.get("endpoint", "")))
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=2)
        try:
            connection.request("GET", "/health")
            answer = json.loads(connection.getresponse().read(10_000))
        except (OSError, ValueError, http.client.HTTPException):
            return False
        finally:
            connection.close()
        if answer.get("instance") != card.get("instance"):
            return False
        self._endpoint = str(card["endpoint"])
        return True

    def _reap(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()

    def _log_end(self) -> str:
        try:
            text = (self.root / "server.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "It left no log."
        return "The end of its log:\n" + "\n".join(text.splitlines()[-10:])
