"""How far each layer of a variant is from its base's, on a few windows of calibration text, so that a bad layer is seen.

The base runs; each of its layers hands its own input to the variant's layer of the same name, and the difference of the two outputs is
summed up at once: no activation is kept. So an error is the layer's own, without what earlier layers of the variant did wrong.

A decoder layer is compared as a whole, relative to what the base's adds to its input. A linear layer is compared too where it has its
base's widths, and the variant's norms are the base's: methods that fold scales into the norms (AWQ, SmoothQuant) or train them move the
inputs of the linear layers along with their weights, and the base's input is then no fair question to one of them alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hub.domain import Calibration, LayerError, StepRecord
from hub.errors import Unstable
from runners import checkpoint, texts
from runners.architectures import KNOWN
from runners.engines import Loaded

TEXT = "stdlib-calibration"
WINDOWS = 4
TOKENS = 256
SEED = 0

Pair = tuple[str, Any, Any]


def layer_errors(folder: Path, variant: Loaded, base: Loaded) -> tuple[LayerError, ...]:
    """Return the errors of a variant's layers under their names in the base, in order; nothing where the engine shows no modules.

    `folder` is the variant's; its manifest tells which layers were removed, so that the others are compared with their own originals.
    Raises `Unstable` where a layer answers with a number that is not finite.
    """
    mine, theirs = (_modules(loaded) for loaded in (variant, base))
    if mine is None or theirs is None:
        return ()
    manifest = checkpoint.read_manifest(folder)
    layers = _decoder_layers(mine, theirs, manifest.steps if manifest else ())
    pairs = [*layers, *_linears(layers)]
    sums: dict[str, list[float]] = {name: [0.0, 0.0] for name, _, _ in pairs}
    length = min(TOKENS, base.context_length)
    shown = Calibration(text=TEXT, samples=WINDOWS, sequence_length=length, seed=SEED)
    hooks = [_watch(original, twin, sums[name], whole=index < len(layers)) for index, (name, twin, original) in enumerate(pairs)]
    try:
        for ids in texts.windows(shown, getattr(base, "tokenizer", None)) if pairs else ():
            base.logits(ids)
    finally:
        for hook in hooks:
            hook.remove()
    protocol = f"{TEXT}@{length}, {WINDOWS} windows, seed {SEED}"
    return tuple(
        LayerError(layer=name, error=_ratio(name, *found), tokens=WINDOWS * length, protocol=protocol)
        for name, found in sorted(sums.items(), key=lambda item: _order(item[0]))
        if found[1]
    )


def _modules(loaded: Loaded) -> Any:
    """Return the PyTorch model behind a loaded checkpoint, None where the engine has none."""
    import torch

    model = getattr(loaded, "model", None)
    return model if isinstance(model, torch.nn.Module) else None


def _decoder_layers(mine: Any, theirs: Any, steps: Sequence[StepRecord]) -> list[Pair]:
    """Return (name in the base, the variant's layer, the base's layer) of all decoder layers that take the same input."""
    known = KNOWN.get(type(theirs).__name__)
    if known is None or any(_width(mine.config, key) != _width(theirs.config, key) for key in ("hidden_size", "head_dim")):
        return []
    kept, originals = mine.get_submodule(known.layers), theirs.get_submodule(known.layers)
    left = _left(steps, len(originals))
    if len(left) != len(kept):
        return []
    return [(f"{known.layers}.{place}", twin, originals[place]) for place, twin in zip(left, kept, strict=True)]


def _width(config: Any, key: str) -> int | None:
    value = getattr(config, key, None)
    return None if value is None else int(value)


def _left(steps: Sequence[StepRecord], count: int) -> list[int]:
    """Return which of the base's decoder layers are left after the steps, which name those that they removed."""
    left = list(range(count))
    for step in steps:
        gone = {int(name.rpartition(".")[2]) for name, facts in step.layers.items() if facts.get("removed") is True}
        left = [place for at, place in enumerate(left) if at not in gone]
    return left


def _linears(layers: Sequence[Pair]) -> list[Pair]:
    """Return the linear layers inside the decoder layers that can be compared one by one."""
    if not all(_same_norms(twin, original) for _, twin, original in layers):
        return []
    found = []
    for root, twin, original in layers:
        mine = dict(twin.named_modules())
        for name, module in original.named_modules():
            widths = _widths(module)
            if widths and name in mine and _widths(mine[name]) == widths:
                found.append((f"{root}.{name}", mine[name], module))
    return found


def _same_norms(twin: Any, original: Any) -> bool:
    import torch

    mine = dict(twin.named_parameters())
    norms = (
        f"{name}.{key}"
        for name, module in original.named_modules()
        if _widths(module) is None
        for key, _ in module.named_parameters(recurse=False)
    )
    theirs = dict(original.named_parameters())
    return all(name in mine and torch.equal(mine[name].float(), theirs[name].float()) for name in norms)


def _widths(module: Any) -> tuple[int, int] | None:
    """Return a linear layer's input and output width, whatever it is packed or factorized into; None for what is no linear layer."""
    import torch

    if isinstance(module, torch.nn.Sequential) and len(module):
        into, out = _widths(module[0]), _widths(module[-1])
        return (into[0], out[1]) if into and out else None
    for inputs, outputs in (("in_features", "out_features"), ("nx", "nf")):
        if hasattr(module, inputs) and hasattr(module, outputs):
            return int(getattr(module, inputs)), int(getattr(module, outputs))
    return None


def _watch(original: Any, twin: Any, sums: list[float], *, whole: bool) -> Any:
    """Add up the squares of the difference and of the base's output whenever the base's layer runs; return the hook's handle."""

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        answer = _tensor(twin(*args, **kwargs)).float()
        wanted = _tensor(output).float()
        entered = (args[0] if args else kwargs["hidden_states"]).float() if whole else None
        sums[0] += _squares(answer - wanted)
        sums[1] += _squares(wanted if entered is None else wanted - entered)

    return original.register_forward_hook(hook, with_kwargs=True)


def _tensor(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def _squares(tensor: Any) -> float:
    import torch

    return float(tensor.square().sum(dtype=torch.float64))


def _ratio(name: str, difference: float, reference: float) -> float:
    error = math.sqrt(difference / reference)
    if not math.isfinite(error):
        raise Unstable(f"The layer {name} answers the base's own input with numbers that are not finite.", hint="Press it again.")
    return error


def _order(name: str) -> list[tuple[int, str]]:
    """Sort names by their numbers: layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
