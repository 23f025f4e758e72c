"""llm-compressor's oneshot on a model in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run(modifier: Any, model: Any, target: Path, *, windows: Sequence[list[int]] = ()) -> None:
    """Apply one modifier to a loaded model, showing it the calibration's windows where it asks for some, and save the model."""
    import torch
    from llmcompressor import oneshot

    loader = torch.utils.data.DataLoader([{"input_ids": torch.tensor(window)} for window in windows], batch_size=1) if windows else None
    oneshot(model=model, recipe=modifier, dataset=loader)
    model.save_pretrained(target)
