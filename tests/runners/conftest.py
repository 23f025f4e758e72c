from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

OneShot = Callable[[Any, Any, Path, Sequence[list[int]]], None]


@pytest.fixture(scope="session")
def small(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of three layers with the sample's tokenizer: every method takes it, and within a second or two."""
    import torch
    import transformers

    from runners import checkpoint

    folder = tmp_path_factory.mktemp("models") / "small"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, vocab_size=2048,
        max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    checkpoint.carry_over(samples / "sample-llama", folder)
    return folder


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
