"""Where a student's lessons come from, besides a teacher that looks at each batch: its answers kept on disk, and text that is written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hub.codec import content_id
from runners import checkpoint, dense, economy, training
from runners.distillation import Top, top

BATCH = 4


class Cached:
    """A teacher's top tokens for every position of some windows, found once and kept in a safetensors file."""

    def __init__(self, path: Path, windows: list[list[int]]) -> None:
        """Open what `keep` wrote for these windows."""
        from safetensors.torch import load_file

        self._kept = load_file(path)
        self._places = {tuple(window): place for place, window in enumerate(windows)}

    def answers(self, batch: Any) -> Top:
        """Return what was kept for a batch of those windows (windows, tokens), for all tokens but the last of each."""
        rows = [self._places[tuple(window)] for window in batch.tolist()]
        found = {name: tensor[rows].flatten(0, 1) for name, tensor in self._kept.items()}
        return Top(places=found["places"].long(), logs=found["logs"], rest=found["rest"])


def keep(base: Path, windows: list[list[int]], folder: Path, *, count: int, temperature: float) -> Path:
    """Return the file in `folder` with the base model's `count` likeliest tokens at each position of the windows; write it where it lacks.

    Its name is a hash of the model and of all that was asked. Size: 8 bytes for each kept token and 4 for the rest, at every position.
    """
    key = content_id((checkpoint.folder_ref(base).sha, windows, count, temperature))
    path = folder / f"teacher-{key}.safetensors"
    if not path.is_file():
        import torch
        from safetensors.torch import save_file

        teacher = dense.load(base, dtype="float32")
        parts = list(_answers(teacher, windows, count, temperature))
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = checkpoint.beside(path)
        save_file(tensors, unfinished)
        unfinished.replace(path)
    return path


def _answers(teacher: Any, windows: list[list[int]], count: int, temperature: float) -> Iterator[dict[str, Any]]:
    import torch

    for batch in torch.tensor(windows).split(economy.together(BATCH)):
        found = top(training.targets(teacher, batch), count, temperature=temperature)
        shape = (len(batch), batch.shape[1] - 1)
        yield {
            "places": found.places.int().unflatten(0, shape),
            "logs": found.logs.unflatten(0, shape),
            "rest": found.rest.unflatten(0, shape),
        }


def pieces(windows: list[list[int]], length: int) -> list[list[int]]:
    """Return the windows cut into pieces of `length` tokens, what is left over dropped; whole ones where they are no longer."""
    length = min(length, len(windows[0]))
    return [window[start : start + length] for window in windows for start in range(0, len(window) - length + 1, length)]


def continued(model: Any, prompts: Any, count: int, *, temperature: float, generator: Any) -> Any:
    """Return the prompts (windows, tokens) with `count` more tokens that the model writes, drawn at a temperature (0: its likeliest).

    It writes past an end-of-text token, as the texts it is shown go on after one.
    """
    import torch

    was_training = model.training
    model.eval()
    with torch.inference_mode():
        ids, cache, shown = prompts, None, prompts
        for _ in range(count):
            answer = model(shown, past_key_values=cache, use_cache=True)
            cache, logits = answer.past_key_values, answer.logits[:, -1].float()
            if temperature:
                shown = torch.multinomial(torch.softmax(logits / temperature, dim=-1), 1, generator=generator)
            else:
                shown = logits.argmax(dim=-1, keepdim=True)
            ids = torch.cat([ids, shown], dim=1)
    model.train(was_training)
    return ids.clone()
