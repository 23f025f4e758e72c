"""llm-compressor's oneshot, as several methods use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hub.domain import Calibration
from runners import dense, texts


def run(modifier: Any, model: Any, target: Path, *, calibration: Calibration | None = None, base_folder: Path | None = None) -> None:
    """Apply one modifier to a loaded model, shown calibration windows where the method needs them, and save it compressed."""
    from llmcompressor import oneshot

    extra: dict[str, Any] = {}
    if calibration is not None and base_folder is not None:
        extra["dataset"] = _batches(calibration, base_folder)
    oneshot(model=model, recipe=modifier, **extra)
    model.save_pretrained(target)


def _batches(calibration: Calibration, base_folder: Path) -> Any:
    import torch
    from torch.utils.data import DataLoader

    windows = torch.tensor(texts.windows(calibration, dense.tokenizer(base_folder)))
    rows: Any = [{"input_ids": window, "attention_mask": torch.ones_like(window)} for window in windows]
    return DataLoader(rows, batch_size=min(8, len(rows)))
