"""OpenVINO: runs models that keep their cache as state, on a CPU.

Computing is in float32: left to itself OpenVINO takes bfloat16 where the processor has it, and predictions differ by processor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hub.errors import BadCheckpoint
from runners import failures, openvino_graph
from runners.engines import transformers as plain
from runners.engines._stepping import Stepping
from runners.readers import engine_file

TITLE = "OpenVINO"
REQUIRES = ("openvino", "numpy", "torch", "transformers")
INSTALL = 'pip install "modelpress[export]"'
FORMATS = ("openvino",)

count_parameters = plain.count_parameters  # of config.json, which is the base's


class Loaded(Stepping):
    """A compiled model with its state."""

    def __init__(self, folder: Path, compiled: Any) -> None:
        """Make a request, which holds the state."""
        super().__init__(folder)
        self._request = compiled.create_infer_request()

    @property
    def label(self) -> str:
        """Engine, version and dtype."""
        return f"openvino {openvino_graph.library().__version__.split('-')[0]} {self.dtype}"

    def begin(self, tokens: int, batch: int = 1) -> None:  # noqa: ARG002 - the state grows by itself
        """Empty the state."""
        self._request.reset_state()

    def forget(self) -> None:
        """Let go of the last sequences' state."""
        self._request.reset_state()

    def read(self, rows: Sequence[Sequence[int]], *, start: int, all_logits: bool) -> Any:  # noqa: ARG002 - the model gives all of them
        """Append tokens; see `Stepping.read`."""
        import numpy as np

        ids = np.array([list(row) for row in rows], np.int64)
        end = start + ids.shape[1]
        given = {
            "input_ids": ids,
            "attention_mask": np.ones((len(rows), end), np.int64),
            "position_ids": np.tile(np.arange(start, end, dtype=np.int64), (len(rows), 1)),
            "beam_idx": np.arange(len(rows), dtype=np.int32),
        }
        self._request.infer(given, share_inputs=False)
        return self._request.get_tensor("logits").data


def dtype_of(folder: Path) -> str:  # noqa: ARG001 - one signature for all engines
    """Return float32: what the model is computed in."""
    return "float32"


def load(folder: Path, *, dtype: str | None = None) -> Loaded:  # noqa: ARG001 - one signature for all engines
    """Compile the folder's model for the CPU with as many threads as torch has; raise `BadCheckpoint` where OpenVINO refuses it."""
    import torch

    path = engine_file(folder)
    if path is None:
        raise BadCheckpoint(f"{folder.name} holds no OpenVINO model.", hint="Press it again.")
    openvino = openvino_graph.library()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    try:
        return Loaded(folder, openvino.Core().compile_model(path, "CPU", settings))
    except Exception as error:  # OpenVINO raises plain RuntimeErrors
        if failures.out_of_memory(error):
            raise
        raise BadCheckpoint(f"OpenVINO cannot load {path.name}: {failures.one_line(error)}", hint="Press it again.") from error
