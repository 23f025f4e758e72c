"""How much passes each structure that width pruning could remove: neurons, heads and hidden channels, on calibration text.

Watched are the inputs of the layers that end an MLP and an attention, and the outputs of the norms. Where a structure is removed, what
passes there becomes zero; so its size (Minitron, https://arxiv.org/abs/2407.14679) or its product with the loss's gradient (first-order
Taylor, https://arxiv.org/abs/1611.06440, for heads https://arxiv.org/abs/1905.10650) says what is lost. No weight needs a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hub.errors import Unstable
from runners import economy, training, widths
from runners.architectures import architecture
from runners.checkpoint import ModelShape

BATCH = 4
CRITERIA = ("activation", "taylor")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Importance as float64 tensors: `mlp` (neurons,) and `heads` (query heads,) by decoder layer, `hidden` (channels,).

    `energy` is by norm the mean square of each channel of what it reads (LayerNorm's mean taken off).
    """

    mlp: Mapping[int, Any]
    heads: Mapping[int, Any]
    hidden: Any
    energy: Mapping[str, Any] = field(default_factory=dict)


def ends(shape: ModelShape, layer: int) -> tuple[str, str]:
    """Return the names of the layers that end a decoder layer's MLP and its attention."""
    root = f"{architecture(shape.architecture).layers}.{layer}"
    return (f"{root}.mlp.c_proj", f"{root}.attn.c_proj") if shape.conv1d else (f"{root}.mlp.down_proj", f"{root}.self_attn.o_proj")


def by_window(values: Any, heads: int = 0) -> Any:
    """Return what passes each channel, or each of `heads` heads, in a window: the mean over tokens of its absolute value or L2 norm.

    `values` is (windows, tokens, channels), the result (windows, channels or heads).
    """
    values = values.detach().float()
    size = values.unflatten(-1, (heads, -1)).norm(dim=-1) if heads else values.abs()
    return size.mean(dim=1).double()


def taylor_by_window(values: Any, gradients: Any, heads: int = 0) -> Any:
    """Return |Σ value × gradient| over a window's tokens (and a head's channels): the loss's first-order change without the structure."""
    product = (values.float() * gradients.float()).sum(dim=1)
    return (product.unflatten(-1, (heads, -1)).sum(dim=-1) if heads else product).abs().double()


class _Watch:
    """Sums up what passes one point, over all windows."""

    def __init__(self, criterion: str, heads: int = 0) -> None:
        self.total: Any = 0.0
        self._criterion, self._heads = criterion, heads

    def see(self, values: Any) -> None:
        if self._criterion == "activation":
            self.total = self.total + by_window(values, self._heads).square().sum(dim=0)
        elif self._criterion == "taylor":
            plain = values.detach()  # a hook that held its own tensor would keep it for ever
            values.register_hook(lambda gradients: self._add(taylor_by_window(plain, gradients, self._heads)))

    def _add(self, by_window: Any) -> None:
        self.total = self.total + by_window.sum(dim=0)

    @property
    def score(self) -> Any:
        """Over windows the L2 norm for activations, the sum for Taylor."""
        return self.total.sqrt() if self._criterion == "activation" else self.total


def measure(model: Any, shape: ModelShape, windows: list[list[int]], criterion: str) -> Scores:
    """Show the model the windows and return all scores by one of `CRITERIA`; any other criterion gives the norms' energies alone.

    For `taylor` the loss is the mean cross-entropy per token of each window. Raises `Unstable` where NaN or infinity passes.
    """
    import torch

    mlp: dict[int, _Watch] = {}
    heads: dict[int, _Watch] = {}
    norms = {name: _Watch(criterion) for name in widths.norms(shape)}
    energy = {name: torch.zeros(shape.hidden_size, dtype=torch.float64) for name in norms}
    handles = []
    for layer in range(shape.layers):
        mlp[layer], heads[layer] = _Watch(criterion), _Watch(criterion, shape.heads)
        for name, watch in zip(ends(shape, layer), (mlp[layer], heads[layer]), strict=True):
            handles.append(model.get_submodule(name).register_forward_pre_hook(_reading(watch.see)))
    for name, watch in norms.items():
        handles.append(model.get_submodule(name).register_forward_hook(_around(watch.see, energy[name], shape.conv1d)))
    try:
        _show(model, windows, gradients=criterion == "taylor")
    finally:
        for handle in handles:
            handle.remove()
    tokens = sum(map(len, windows))
    energies = {name: total / tokens for name, total in energy.items()}
    broken = next((name for name, found in energies.items() if not found.isfinite().all()), None)
    if broken is not None:
        raise overflow(broken)
    if criterion not in CRITERIA:
        return Scores(mlp={}, heads={}, hidden=None, energy=energies)
    return Scores(
        mlp={layer: watch.score for layer, watch in mlp.items()},
        heads={layer: watch.score for layer, watch in heads.items()},
        hidden=sum(watch.score for watch in norms.values()),
        energy=energies,
    )


def overflow(name: str) -> Unstable:
    """Return the error for a model in which NaN or infinity passes a module, so that nothing can be ranked by what passes."""
    return Unstable(
        f"What passes {name} on the calibration text holds NaN or infinity; nothing can be chosen by it.",
        hint="Where the model is stored in float16, whose range ends at 65,504, press a bfloat16 one.",
    )


def _reading(see: Callable[[Any], None]) -> Callable[..., None]:
    return lambda _, inputs: see(inputs[0])


def _around(see: Callable[[Any], None], energy: Any, centred: bool) -> Callable[..., None]:
    def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
        values = inputs[0].detach().float()
        values = values - values.mean(dim=-1, keepdim=True) if centred else values
        energy.add_(values.square().flatten(0, -2).sum(dim=0).double())
        see(output)

    return hook


def _show(model: Any, windows: list[list[int]], *, gradients: bool) -> None:
    import torch

    model.requires_grad_(False)
    if gradients:
        training.recompute(model)
    handle = model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(gradients))
    try:
        with torch.set_grad_enabled(gradients):
            for batch in torch.tensor(windows).split(economy.together(BATCH)):
                if not gradients:
                    model.base_model(batch, use_cache=False)
                    continue
                logits = model(batch, use_cache=False).logits[:, :-1].float().transpose(1, 2)
                torch.nn.functional.cross_entropy(logits, batch[:, 1:], reduction="none").mean(dim=1).sum().backward()
    finally:
        handle.remove()


def magnitude(tensors: Iterable[tuple[str, Any]], shape: ModelShape, power: int) -> Scores:
    """Return the L1 or L2 norm (`power` 1 or 2) of all weights that go with each structure; a KV group's are shared by its heads.

    `tensors` gives names and stored tensors one by one, so that memory holds one.
    """
    import torch

    root = architecture(shape.architecture).layers + "."
    sums: dict[tuple[str, int], Any] = {}
    rows = shape.heads // shape.kv_heads if shape.kv_heads else 1
    for name, tensor in tensors:
        layer = int(name.removeprefix(root).partition(".")[0]) if name.startswith(root) else -1
        for dimension, axis in enumerate(widths.axes(name, tensor.dim(), shape.conv1d)):
            if axis in ("", "head"):  # tokens; a norm of each head's channels, which stays whole
                continue
            others = [other for other in range(tensor.dim()) if other != dimension]
            found = tensor.double().abs().pow(power)
            found = found.sum(dim=others) if others else found
            if axis in ("query", "key", "fused"):
                found = found.view(3, -1).sum(dim=0) if axis == "fused" else found
                found = found.view(-1, shape.head_dim).sum(dim=-1)
                found = found.repeat_interleave(rows) / rows if axis == "key" else found
            place = ("hidden", -1) if axis == "hidden" else ("mlp" if axis == "mlp" else "heads", layer)
            sums[place] = sums.get(place, torch.zeros_like(found)) + found
    roots = {place: total.pow(1 / power) for place, total in sums.items()}
    return Scores(
        mlp={layer: score for (kind, layer), score in roots.items() if kind == "mlp"},
        heads={layer: score for (kind, layer), score in roots.items() if kind == "heads"},
        hidden=roots["hidden", -1],
    )
