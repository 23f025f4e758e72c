"""llm-compressor's oneshot, as several methods use it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run(modifier: Any, model: Any, target: Path) -> None:
    """Apply one modifier that needs no calibration to a loaded model, and save it compressed."""
    from llmcompressor import oneshot

    oneshot(model=model, recipe=modifier)
    model.save_pretrained(target)
