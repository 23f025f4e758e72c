"""A dispatcher as a process, for the tests: claims jobs, notes beside them when each began and ended, records them, until none is left.

python claimer.py DATABASE JOURNAL GO

Its job number `PAUSE` lasts until the file GO is there, so that nothing is over before the test has looked.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from hub import owners
from hub.domain import Environment, Job, JobResult, Measurement
from hub.store import Store

PAUSE = 120


def result(job: Job) -> JobResult:
    """Return one number: what is tested is who takes which job, not what it gives."""
    here = Environment(hardware="any", device="cpu", cores=1, memory_bytes=1, system="any", python="any", libraries={})
    at = datetime.now(UTC).isoformat(timespec="seconds")
    number = Measurement(
        metric="disk_size",
        value=1.0,
        unit="B",
        higher_is_better=False,
        ci_low=1.0,
        ci_high=1.0,
        interval="exact",
        samples=1,
        protocol=job.protocol.name if job.protocol else "",
        engine="none",
        measured_at=at,
    )
    return JobResult(job_id=job.id, environment=here, started_at=at, seconds=0.1, stages={}, peak_memory_bytes=1, measurements=(number,))


def main() -> None:
    """Work until nothing is left that could become ready."""
    address, journal, go = sys.argv[1:]
    owner, begun = owners.own(), 0
    with Store(address) as store, Path(journal).open("a", encoding="utf-8") as lines:
        while True:
            claim = store.queue.claim(owner, kinds=("press", "measure"))
            if claim is None:
                seen = store.queue.outlook(owner, kinds=("press", "measure"))
                if not seen.ready and not seen.elsewhere:
                    return
                store.recover()
                time.sleep(0.01)
                continue
            # One write of a line to a file opened for appending is whole, whoever writes beside.
            lines.write(f"{time.monotonic()} begin {claim.job.id} {owner}\n")
            lines.flush()
            time.sleep(0.002)
            begun += 1
            while begun == PAUSE and not Path(go).exists():
                time.sleep(0.01)
            lines.write(f"{time.monotonic()} end {claim.job.id} {owner}\n")
            lines.flush()
            store.finish(claim.job, result(claim.job), owner=owner)


if __name__ == "__main__":
    main()
