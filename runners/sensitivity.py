"""How much a model's predictions suffer when one linear layer alone is rounded: measured once, kept, and used by every recipe.

For each linear and each of `BITS` the model runs over the same few windows with only that weight rounded to nearest, in groups, and the
mean KL divergence of its predictions from its own is taken. Layers before the changed one are not run again: the cost is a little more
than half a forward pass over the windows for each linear and bit width, linears × 4 / 2 passes in all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.codec import content_id
from hub.errors import Unstable
from runners import dense, economy, rounding, texts
from runners.architectures import architecture
from runners.checkpoint import ModelShape, describe, write_atomically
from runners.checkpoint import shape as shape_of
from runners.headers import weight_files

BITS = (2, 3, 4, 8)
VERSION = 1
"""Raised whenever numbers would come out otherwise, so that old ones are not taken for new."""
_BATCH = 4
_CHUNK_ELEMENTS = 2**21

Losses = dict[str, dict[int, float]]
"""KL divergence in nats per token by linear and bits; infinite where the model then predicted no finite numbers."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What was measured, on how many tokens; `reused` where it came from the cache."""

    losses: Losses
    tokens: int
    reused: bool


def sensitivity(source: Path, windows: list[list[int]], group_size: int, cache: Path) -> Sensitivity:
    """Return the sensitivity of the dense checkpoint `source` on token windows, from `cache` where it was measured before.

    A file in the cache that is damaged, or speaks of other layers, is measured anew and replaced. Raises `Unstable` where the model
    itself predicts no finite numbers.
    """
    shape = shape_of(source)
    path = cache / "sensitivity" / f"{_key(source, windows, group_size)}.json"
    tokens = sum(len(window) for window in windows)
    if (kept := _read(path, shape)) is not None:
        return Sensitivity(losses=kept, tokens=tokens, reused=True)
    losses = measure(dense.load(source, dtype="float32"), shape, windows, group_size, getattr(_torch(), dense.own_dtype(source)))
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = {name: {str(bits): loss if math.isfinite(loss) else None for bits, loss in found.items()} for name, found in losses.items()}
    about = {"version": VERSION, "unit": "nats/token", "group_size": group_size, "tokens": tokens, "layers": layers}
    write_atomically(path, json.dumps(about, indent=1) + "\n")
    return Sensitivity(losses=losses, tokens=tokens, reused=False)


def _torch() -> Any:
    import torch

    return torch


def _key(source: Path, windows: list[list[int]], group_size: int) -> str:
    files = [describe(path, source) for path in (source / "config.json", *weight_files(source))]
    return content_id((VERSION, files, texts.samples_sha256(windows), group_size, BITS))


def _read(path: Path, shape: ModelShape) -> Losses | None:
    """Return what a file of the cache says, None where there is none or it is not what it should be."""
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        losses = {
            name: {bits: math.inf if found[str(bits)] is None else float(found[str(bits)]) for bits in BITS}
            for name, found in layers.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    sound = all(loss >= 0 for found in losses.values() for loss in found.values())  # a NaN is not
    return losses if sound and set(losses) == {linear.name for linear in shape.linears} else None


def measure(model: Any, shape: ModelShape, windows: list[list[int]], group_size: int, stored: Any) -> Losses:
    """Measure the sensitivity of a model in float32, whose scales would be of the dtype `stored`; its weights are as before afterwards."""
    import torch

    root = architecture(shape.architecture).layers
    layers = list(model.get_submodule(root))
    sums: Losses = {linear.name: dict.fromkeys(BITS, 0.0) for linear in shape.linears}
    positions = 0
    for batch in torch.tensor(windows).split(economy.together(_BATCH)):
        outputs, wanted = _base(model, layers, batch)
        positions += batch.numel()
        for place in range(len(layers)):
            names = [name for name in sums if name.startswith(f"{root}.{place}.")]
            with _from_layer(layers, place, outputs):
                for name in names:
                    for bits in BITS:
                        with _rounded(model.get_submodule(name), bits, group_size, stored, conv1d=shape.conv1d):
                            sums[name][bits] += wanted.divergence(logits(model, batch))
    return {name: {bits: _loss(total / positions) for bits, total in found.items()} for name, found in sums.items()}


def _loss(value: float) -> float:
    """Return a KL divergence as it should be: float64 sums leave tiny negative ones, and rounding may leave none at all."""
    return float(f"{max(value, 0.0):.6g}") if math.isfinite(value) else math.inf


def logits(model: Any, batch: Any) -> Any:
    """Return the logits of a batch of windows: (windows, tokens, vocabulary)."""
    import torch

    with torch.inference_mode():
        return model(batch, use_cache=False).logits


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model's own predictions on a batch: probabilities, float64 (positions, vocabulary), and Σ p log p over all of them, in nats."""

    probabilities: Any
    negative_entropy: float

    def divergence(self, logits: Any) -> float:
        """Return the sum over all positions of KL(own ‖ other) in nats, of the other's logits (…, vocabulary), added up in float64."""
        logits = logits.flatten(0, -2)
        step = max(1, _CHUNK_ELEMENTS // logits.shape[-1])
        total = self.negative_entropy
        for start in range(0, len(logits), step):
            found = logits[start : start + step].double()
            total += float(found.logsumexp(-1).sum() - (self.probabilities[start : start + step] * found).sum())
        return total


def reference(logits: Any) -> Reference:
    """Return what a model predicts, from its logits (…, vocabulary); raise `Unstable` where they are not finite."""
    if not logits.isfinite().all():
        raise Unstable("The model predicts no finite numbers on the calibration text.", hint="Choose another base model.")
    log = logits.flatten(0, -2).double().log_softmax(-1)
    probabilities = log.exp()
    return Reference(negative_entropy=float(log.mul_(probabilities).sum()), probabilities=probabilities)


def _base(model: Any, layers: list[Any], batch: Any) -> tuple[list[Any], Reference]:
    """Return the outputs of all decoder layers and the predictions of the unchanged model."""
    outputs: list[Any] = []
    handles = [layer.register_forward_hook(lambda _module, _inputs, output: outputs.append(output)) for layer in layers]
    found = logits(model, batch)
    for handle in handles:
        handle.remove()
    return outputs, reference(found)


@contextmanager
def _from_layer(layers: list[Any], place: int, outputs: list[Any]) -> Iterator[None]:
    """Let the layers before `place` hand on what they gave to the unchanged model, without being run."""
    for layer in layers[:place]:
        layer.forward = lambda *_args, **_kwargs: outputs[place - 1]
    try:
        yield
    finally:
        for layer in layers[:place]:
            del layer.forward


@contextmanager
def _rounded(module: Any, bits: int, group_size: int, stored: Any, *, conv1d: bool) -> Iterator[None]:
    original = module.weight.data
    weight = original.t() if conv1d else original
    args = rounding.arguments(bits, group_size)
    changed = rounding.nearest(weight, rounding.scales(weight, args, stored), args)
    module.weight.data = changed.t() if conv1d else changed
    try:
        yield
    finally:
        module.weight.data = original


class Trial:
    """Tells how far a model moves from itself, as a whole, on a few windows: with other weights, or as it was pressed."""

    def __init__(self, source: Path, windows: list[list[int]]) -> None:
        """Load the dense checkpoint `source` in float32 and note what it predicts."""
        import torch

        self._source = source
        self._batches = torch.tensor(windows).split(economy.together(_BATCH))
        model = dense.load(source, dtype="float32")
        self._wanted = [reference(logits(model, batch)) for batch in self._batches]

    def of_weights(self, weights: Iterable[tuple[str, Any]]) -> float:
        """Return the KL divergence in nats per token with some linears' weights (out, in) replaced, given by linear name."""
        model, conv1d = dense.load(self._source, dtype="float32"), shape_of(self._source).conv1d
        for name, weight in weights:
            model.get_submodule(name).weight.data.copy_(weight.t() if conv1d else weight)
        return self._mean(model)

    def of_folder(self, folder: Path) -> float:
        """Return the KL divergence in nats per token of the checkpoint in a folder, as transformers loads it, in float32."""
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False)
        return self._mean(model.eval())

    def _mean(self, model: Any) -> float:
        total = sum(wanted.divergence(logits(model, batch)) for wanted, batch in zip(self._wanted, self._batches, strict=True))
        return _loss(total / sum(batch.numel() for batch in self._batches))
