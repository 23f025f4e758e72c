from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

OneShot = Callable[[Any, Any, Path, Sequence[list[int]]], None]


@pytest.fixture(scope="session")
def one_shot() -> OneShot:
    """Return what applies one of llm-compressor's modifiers to a model in memory, shown windows of tokens if any, and saves the model."""

    def run(modifier: Any, model: Any, target: Path, windows: Sequence[list[int]]) -> None:
        import torch
        from llmcompressor import oneshot

        loader = torch.utils.data.DataLoader([{"input_ids": torch.tensor(window)} for window in windows], batch_size=1) if windows else None
        oneshot(model=model, recipe=modifier, dataset=loader)
        model.save_pretrained(target)

    return run
