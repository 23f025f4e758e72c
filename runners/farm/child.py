"""What a forked child does: one job, its output in a log file, its result in a file that appears whole or not at all."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from runners.farm.processes import die_with_parent, go_first


def run(parent: int, order: str, log: str, result: str) -> NoReturn:
    """Do the order (JobOrder as JSON) and end this process; the exit code is 0 or that of the error."""
    code = 1
    try:
        os.setsid()
        die_with_parent(parent)
        go_first()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the farm decides when a job ends
        _redirect(log)
        code = _work(order, Path(result))
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)  # no clean-up that libraries registered in the parent, and no waiting for their threads


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644)
    for source, target in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(file)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _work(text: str, result: Path) -> int:
    from hub.codec import from_json, to_json
    from hub.domain import JobOrder
    from runners import failures, work

    start = time.monotonic()
    job_id, workspace, code = "", None, 0
    try:
        order = from_json(JobOrder, text, where="the order")
        job_id, workspace = order.job.id, order.workspace
        answer = to_json(work.execute(order))
    except Exception as error:
        traceback.print_exc()
        answer = to_json(failures.failure(job_id, error, seconds=time.monotonic() - start, workspace=workspace))
        code = failures.exit_code(error)
    try:
        beside = result.with_suffix(".tmp")
        beside.write_text(answer, encoding="utf-8")
        beside.replace(result)
    except OSError as error:  # a full disk: the exit code still says so
        traceback.print_exc()
        return failures.exit_code(error)
    return code
