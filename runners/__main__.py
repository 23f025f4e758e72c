"""`python -m runners`: a JobOrder as JSON on stdin, a JobResult or a Failure as JSON on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys
import time
import traceback

from hub.codec import from_json, to_json
from hub.domain import JobOrder
from runners import failures, work


def main() -> int:
    """Read, do and report one job; return 0, or the exit code of the error."""
    answer = os.dup(1)
    os.dup2(2, 1)  # libraries print to stdout, some of them from C
    start = time.monotonic()
    job_id, workspace = "", None
    try:
        order = from_json(JobOrder, sys.stdin.buffer.read(), where="the order on stdin")
        job_id, workspace = order.job.id, order.workspace
        text, code = to_json(work.execute(order)), 0
    except Exception as error:
        traceback.print_exc()
        text = to_json(failures.failure(job_id, error, seconds=time.monotonic() - start, workspace=workspace))
        code = failures.exit_code(error)
    with os.fdopen(answer, "w") as stream:
        stream.write(text + "\n")
    return code


if __name__ == "__main__":
    sys.stdout.flush()
    sys.exit(main())
