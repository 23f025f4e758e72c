"""`python -m hub.local --root FOLDER`: the embedded hub in the foreground. Its starter gets the error that ends it as JSON on stdout."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from hub.errors import ModelPressError
from hub.local.config import MIB, HubConfig
from hub.local.server import Address, die_with_parent, serve, watch_parent


def main() -> int:
    """Read the command line and serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m hub.local", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder of the hub's data")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8757, help="0, or a taken one: a free port is used")
    parser.add_argument("--no-samples", action="store_true", help="start empty")
    parser.add_argument("--faults", action="store_true", help="allow faults to be injected (for tests)")
    parser.add_argument("--multipart-threshold", type=int, default=512 * MIB, help="bytes from which LFS uploads are split")
    parser.add_argument("--chunk-size", type=int, default=64 * MIB, help="bytes of a part of a split upload")
    parser.add_argument("--child-of", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--signal-with-parent", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child_of:
        watch_parent(sys.stdin.fileno())
        if arguments.signal_with_parent:
            die_with_parent(arguments.child_of)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = HubConfig(faults=arguments.faults, multipart_threshold=arguments.multipart_threshold, chunk_size=arguments.chunk_size)
    try:
        serve(arguments.root, address=Address(host=arguments.host, port=arguments.port), samples=not arguments.no_samples, config=config)
    except ModelPressError as error:
        logging.getLogger(__name__).error("%s %s", error.message, error.hint)
        if arguments.child_of:
            sys.stdout.write(json.dumps({"message": error.message, "hint": error.hint}))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
