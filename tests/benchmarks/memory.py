"""Memory by context length on this machine: weights, KV cache, activations and peak of a model of random weights, and the formula's error.

python tests/benchmarks/memory.py                                 # 2k and 8k, estimates to 32k: minutes on two cores
python tests/benchmarks/memory.py --contexts 2048 8192 32768      # 32k too, where the pass is expected to take 300 s at most
python tests/benchmarks/memory.py --folder press/artifacts/NAME   # another model
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from hub.protocol import Memory
from runners import engines, environment, memory_use
from runners.intervals import Estimate

REPO = Path(__file__).resolve().parent.parent.parent
MIB = 2**20


def maker() -> ModuleType:
    """Load scripts/make_random_model.py, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location("make_random_model", REPO / "scripts" / "make_random_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(one: Estimate | None) -> str:
    """Return MiB with the interval's ends."""
    return f"{one.value / MIB:9.1f} ({one.low / MIB:.1f}–{one.high / MIB:.1f})" if one else "not told"


def report(folder: Path, contexts: tuple[int, ...]) -> None:
    """Load a model twice, measure it, print the table and the notes."""
    engine = engines.for_folder(folder)
    ids = list(range(3, 1003))
    start = time.monotonic()
    loads = memory_use.load_repeatedly(engine, folder, ids[:128], 8, 2)
    used = memory_use.by_context(loads.loaded, folder, Memory(contexts=contexts, loads=2), ids)
    print(f"{loads.loaded.label}; {environment.current().hardware}; {time.monotonic() - start:.0f} s")
    print(f"weights in memory: {shown(used.weights)} MiB, {used.weights.interval if used.weights else ''}")
    print(f"{'context':>8} {'KV cache':>28} {'activations':>28} {'peak':>28}  in MiB")
    for point in used.points:
        basis = point.activations.basis if point.activations else ""
        print(f"{point.context:>8} {shown(point.kv_cache):>28} {shown(point.activations):>28} {shown(point.peak):>28}  {basis}")
    print(*used.notes, sep="\n")


def main() -> None:
    """Make the model where none is given, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if given.folder:
        report(given.folder, tuple(given.contexts))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "random"
        print(f"{maker().make(folder):,} random parameters: for speed, memory and pressing time only")
        report(folder, tuple(given.contexts))


if __name__ == "__main__":
    main()
