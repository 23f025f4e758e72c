"""onnxruntime: runs ONNX graphs that take their cache in and give it back, on a CPU, in float32 but where weights are packed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hub.errors import BadCheckpoint
from runners import failures
from runners.engines import transformers as plain
from runners.engines._stepping import Stepping
from runners.readers import engine_file

TITLE = "ONNX Runtime"
REQUIRES = ("onnxruntime", "numpy", "torch", "transformers")
INSTALL = 'pip install "modelpress[export]"'
FORMATS = ("onnx",)

_PAST, _PRESENT = "past_key_values.", "present."

count_parameters = plain.count_parameters  # of config.json, which is the base's


class Loaded(Stepping):
    """A session, and the cache of the sequences that it reads."""

    def __init__(self, folder: Path, session: Any) -> None:
        """Keep the session."""
        super().__init__(folder)
        self._session = session
        self._inputs = {entry.name: entry for entry in session.get_inputs()}
        self._outputs = [entry.name for entry in session.get_outputs()]
        self._cache: dict[str, Any] = {}

    @property
    def label(self) -> str:
        """Engine, version and dtype."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__} {self.dtype}"

    def begin(self, tokens: int, batch: int = 1) -> None:  # noqa: ARG002 - the cache grows by itself
        """Empty the cache."""
        import numpy as np

        empty = ((name, entry.shape) for name, entry in self._inputs.items() if name.startswith(_PAST))
        self._cache = {name: np.zeros((batch, shape[1], 0, shape[3]), np.float32) for name, shape in empty}

    def forget(self) -> None:
        """Let go of the last sequences' cache."""
        self._cache = {}

    def read(self, rows: Sequence[Sequence[int]], *, start: int, all_logits: bool) -> Any:  # noqa: ARG002 - the graph gives all of them
        """Append tokens; see `Stepping.read`."""
        import numpy as np

        ids = np.array([list(row) for row in rows], np.int64)
        end = start + ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((len(rows), end), np.int64),
            "position_ids": np.tile(np.arange(start, end, dtype=np.int64), (len(rows), 1)),
        }
        found = dict(zip(self._outputs, self._session.run(None, given | self._cache), strict=True))
        self._cache = {name: found[name.replace(_PAST, _PRESENT)] for name in self._cache}
        return found["logits"]


def dtype_of(folder: Path) -> str:  # noqa: ARG001 - one signature for all engines
    """Return float32: what the graph computes in."""
    return "float32"


def load(folder: Path, *, dtype: str | None = None) -> Loaded:  # noqa: ARG001 - one signature for all engines
    """Open the folder's ONNX model with as many threads as torch has; raise `BadCheckpoint` where onnxruntime refuses it."""
    import onnxruntime
    import torch

    path = engine_file(folder)
    if path is None:
        raise BadCheckpoint(f"{folder.name} holds no ONNX model.", hint="Press it again.")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises classes of its own for each fault
        if failures.out_of_memory(error):
            raise
        raise BadCheckpoint(f"onnxruntime cannot load {path.name}: {failures.one_line(error)}", hint="Press it again.") from error
    return Loaded(folder, session)
