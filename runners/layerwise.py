"""Walk over a model's decoder layers one at a time, with what each linear is shown, without ever loading the whole model.

Memory: the embeddings once, then one decoder layer in float32, its linears' statistics, and the calibration's hidden states; a frugal job
has these on disk, and of the embeddings no more than the rows it looks up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub.domain import Scalar
from hub.errors import CalibrationFailed, Unstable
from runners import dense, economy, memory, states, texts, unfinished
from runners.architectures import architecture
from runners.checkpoint import shape as shape_of
from runners.streaming import Source, Writer
from runners.unfinished import Made

BATCH = 4
"""Windows that are run together."""
_WEIGHTS = "its weights hold NaN or infinity"
_INPUTS = "its inputs on the calibration text hold NaN or infinity"
_RESULT = "the changed weights hold NaN or infinity"
_OTHER_BASE = "Choose another base model."


class KeptError(Exception):
    """A method's word that a linear stays in the base's precision; its message is the reason, as the card says it."""


@dataclass(kw_only=True)
class Inputs:
    """What a linear was shown, over all tokens: `squares` Σ x² by column (in,), float64; `gram` Σ x xᵀ (in, in), float32, if asked for.

    Linears that share an input (query, key and value; gate and up) share this very object.
    """

    squares: Any
    gram: Any = None
    tokens: int = 0

    @property
    def norms(self) -> Any:
        """The L2 norm of each column of the inputs, (in,), float32."""
        return self.squares.sqrt().float()

    @property
    def finite(self) -> bool:
        """Whether no NaN or infinity came in."""
        return bool(self.squares.isfinite().all()) and (self.gram is None or bool(self.gram.isfinite().all()))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One decoder layer, loaded in float32, before it is changed; `hidden` are its inputs, batch by batch (windows, tokens, width).

    What is put into `module` by `set_weight` (or otherwise) while it is at hand is what makes the inputs of the layers after it.
    """

    place: int
    name: str
    module: Any
    inputs: dict[str, Inputs]
    hidden: MutableSequence[Any]
    conv1d: bool
    _arguments: Mapping[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(repr=False)

    def linear(self, name: str) -> Any:
        """Return a linear's module by its full name."""
        return self.module.get_submodule(name.removeprefix(f"{self.name}."))

    def weight(self, name: str) -> Any:
        """Return a linear's weight as (out, in), a view; in GPT-2 too, which stores it as (in, out)."""
        weight = self.linear(name).weight.data
        return weight.t() if self.conv1d else weight

    def set_weight(self, name: str, weight: Any) -> None:
        """Put another weight, (out, in), into a linear."""
        self.linear(name).weight.data = (weight.t() if self.conv1d else weight).float().contiguous()

    def run(self, batch: int) -> Any:
        """Return the layer's output on one batch of its inputs, with the weights it has now."""
        import torch

        hidden = self.hidden[batch]
        positional, named = self._arguments[len(hidden)]
        with torch.no_grad():
            output = self.module(hidden, *positional, **named)
        return output[0] if isinstance(output, tuple) else output


def each(source: Path, windows: list[list[int]], work: Callable[[Layer], Made], *, about: object, gram: bool = False) -> Iterator[Made]:
    """Give what `work` makes of each decoder layer, in order, as `walk` gives them.

    What is finished is kept until the job is done (`runners.unfinished`): of a job that was killed the finished layers are given again as
    they were made, and the walk goes on from there, with the same result. `about` is all that decides the result besides the checkpoint,
    the windows and what they show: method, scheme, parameters.
    """
    kept = unfinished.layers(source, texts.samples_sha256(windows), gram, economy.together(BATCH), about)
    for place in range(kept.count):
        yield kept.made(place)
    if kept.whole:
        return
    made = [Made()]
    for layer in walk(source, windows, gram=gram, begin=kept, done=lambda layer, hidden: kept.add(layer.place, made[0], hidden)):
        made[0] = work(layer)
        yield made[0]


def walk(
    source: Path,
    windows: list[list[int]],
    *,
    gram: bool = False,
    begin: unfinished.Layers | None = None,
    done: Callable[[Layer, MutableSequence[Any] | None], None] | None = None,
) -> Iterator[Layer]:
    """Give the decoder layers of the dense checkpoint `source` in order, each with what its linears are shown by `windows`.

    Each layer's inputs are what the layers before it, as they were changed while at hand, made of the windows; with nothing changed all
    equals the whole model in float32. It can `begin` after the layers that were finished before; `done` is told of each layer that is,
    with the states that enter the next (None: it was the last). Raises `BadCheckpoint` where the weights lack a tensor.
    """
    with states.room() as hidden:
        yield from _walk(source, windows, hidden, gram, begin, done or (lambda _layer, _hidden: None))


def _walk(
    source: Path,
    windows: list[list[int]],
    hidden: MutableSequence[Any],
    gram: bool,
    begin: unfinished.Layers | None,
    done: Callable[[Layer, MutableSequence[Any] | None], None],
) -> Iterator[Layer]:
    import torch

    dense.require_whole(source)
    given, shape = Source(source), shape_of(source)
    root = architecture(shape.architecture).layers
    model = _skeleton(source)
    layers = model.get_submodule(root)
    batches = list(torch.tensor(windows).split(economy.together(BATCH)))
    arguments = _embedded(model, layers, given, batches, root, hidden)
    first = begin.count if begin else 0
    if begin and first:
        for number, entering in enumerate(begin.states()):
            hidden[number] = entering
    with memory.settled():
        for place in range(first, len(layers)):
            name, module = f"{root}.{place}", layers[place]
            _load(module, given, f"{name}.")
            layer = Layer(
                place=place, name=name, module=module, inputs={}, hidden=hidden, conv1d=shape.conv1d,
                _arguments={rows: calls[place] for rows, calls in arguments.items()},
            )  # fmt: skip
            names = [linear.name for linear in shape.linears if linear.name.startswith(f"{name}.")]
            _watch(layer, names, gram)
            yield layer
            last = place == len(layers) - 1
            if not last:
                for number in range(len(hidden)):
                    hidden[number] = layer.run(number)
            done(layer, None if last else hidden)
            layer.inputs.clear()  # who asked for the layers still holds this one while the next is looked at
            module.to("meta")
            memory.release()  # glibc holds on to what it can use again, in pieces too small for the next layer


def _skeleton(source: Path) -> Any:
    """Return the model with all parameters on the meta device, and its buffers (rotary frequencies, masks) computed."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return model.eval()


def _load(module: Any, given: Source, prefix: str) -> None:
    tensors = {name: given.read(prefix + name).float() for name, _ in module.named_parameters()}
    module.load_state_dict(tensors, strict=False, assign=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)


def _load_outside(module: Any, given: Source, prefix: str) -> None:
    """Load what lies before the layers; a frugal job leaves tables of embeddings as they are stored, and casts the rows it looked up."""
    import torch

    if economy.frugal() and isinstance(module, torch.nn.Embedding):
        module.weight = torch.nn.Parameter(given.read(f"{prefix}weight"), requires_grad=False)
        module.register_forward_hook(lambda _module, _inputs, rows: rows.float())
    else:
        _load(module, given, prefix)


def _embedded(model: Any, layers: Any, given: Source, batches: list[Any], root: str, hidden: MutableSequence[Any]) -> dict[int, list[Any]]:
    """Put the first layer's inputs into `hidden`, by batch; return by batch size what else each layer is called with (masks, positions)."""
    import torch

    base = model.base_model
    prefix = f"{model.base_model_prefix}."
    outside = [child for child in base.named_children() if f"{prefix}{child[0]}" != root]
    for name, child in outside:
        _load_outside(child, given, f"{prefix}{name}.")
    arguments: dict[int, list[Any]] = {}

    def record(place: int) -> Callable[..., Any]:
        def forward(states: Any, *positional: Any, **named: Any) -> Any:
            if place == 0:
                hidden.append(states)
                arguments[len(states)] = []
            arguments[len(states)].append((positional, named))
            return states

        return forward

    for place, layer in enumerate(layers):
        layer.forward = record(place)  # the module stays what it is: models ask their layers for a type of attention
    with torch.no_grad():
        for batch in batches:
            base(batch, use_cache=False)
    for layer in layers:
        del layer.forward
    for _, child in outside:
        child.to("meta")
    return arguments


def _watch(layer: Layer, names: list[str], gram: bool) -> None:
    """Run all batches through the layer and put into its `inputs` what each linear was shown, those that share it side by side."""
    import torch

    found: dict[str, Inputs] = {}
    seen: list[tuple[Any, Inputs]] = []

    def hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def look(_: Any, given: tuple[Any, ...]) -> None:
            shared = next((inputs for other, inputs in seen if other is given[0]), None)
            if shared is not None:
                found[name] = shared
                return
            rows = given[0].detach().flatten(0, -2)
            width = rows.shape[-1]
            inputs = found.setdefault(name, Inputs(squares=torch.zeros(width, dtype=torch.float64)))
            inputs.squares += rows.square().sum(dim=0).double()
            inputs.tokens += len(rows)
            if gram:
                inputs.gram = rows.t() @ rows if inputs.gram is None else inputs.gram.addmm_(rows.t(), rows)
            seen.append((given[0], inputs))

        return look

    handles = [layer.linear(name).register_forward_pre_hook(hook(name)) for name in names]
    for number in range(len(layer.hidden)):
        layer.run(number)
        seen.clear()
    for handle in handles:
        handle.remove()
    first: dict[int, int] = {}
    for name in names:
        first.setdefault(id(found[name]), len(first))
    layer.inputs.update(sorted(((name, found[name]) for name in names), key=lambda item: first[id(item[1])]))


Change = Callable[[str, Any, Inputs], tuple[Any, Mapping[str, Scalar]]]
"""A method: a linear's name, its weight (out, in) in float32, what it is shown -> the new weight, and what it has to say of it."""


def press(
    source: Path, target: Path, windows: list[list[int]], change: Change, *, about: object = (), gram: bool = False
) -> dict[str, dict[str, Scalar]]:
    """Write `source` with every decoder linear's weight changed into the folder `target`, shards as they were, in the stored dtype.

    A layer's linears are all changed by what the layer shows them before any of them is, and the layers after it see the weights as
    stored. Where a weight, its inputs or the result hold NaN or infinity, or the method raises `KeptError`, the linear stays as it is.
    Returns what the method said by linear, those left out of which it said nothing; `kept` with the reason. `about` is what tells this
    change from others, as in `each`. Raises `Unstable` or `CalibrationFailed` where not one linear could be changed.
    """
    given = Source(source)
    with Writer(target, given) as out:
        told = write(each(source, windows, lambda layer: _press(layer, change, given), about=about, gram=gram), out)
        out.copy_rest()
    reasons = [str(facts["kept"]) for facts in told.values() if "kept" in facts]
    if len(reasons) == len(told):
        ours = all(reason in (_WEIGHTS, _INPUTS, _RESULT) for reason in reasons)
        words = f"Not one linear can be changed: {reasons[0]}."
        raise Unstable(words, hint=_OTHER_BASE) if ours else CalibrationFailed(words, hint="Use a recipe with more calibration text.")
    return {name: dict(facts) for name, facts in told.items() if facts}


def write(made: Iterable[Made], out: Writer) -> dict[str, Any]:
    """Hand over what takes the place of the layers' tensors, layer by layer; return what there is to say of them."""
    told: dict[str, Any] = {}
    for one in made:
        for name, tensors in one.tensors.items():
            out.add(name, tensors)
        told.update(one.told)
    return told


def _press(layer: Layer, change: Change, given: Source) -> Made:
    new: dict[str, Any] = {}
    told: dict[str, Mapping[str, Scalar]] = {}
    for name in layer.inputs:
        try:
            new[name], told[name] = _changed(layer, name, change, given.dtype(f"{name}.weight"))
        except KeptError as kept:
            told[name] = {"kept": str(kept)}
    for name, weight in new.items():
        layer.set_weight(name, weight)
    tensors = {f"{name}.weight": {f"{name}.weight": weight.t() if layer.conv1d else weight} for name, weight in new.items()}
    return Made(tensors=tensors, told=told)


def _changed(layer: Layer, name: str, change: Change, dtype: Any) -> tuple[Any, Mapping[str, Scalar]]:
    weight, inputs = layer.weight(name), layer.inputs[name]
    if not weight.isfinite().all():
        raise KeptError(_WEIGHTS)
    if not inputs.finite:
        raise KeptError(_INPUTS)
    changed, facts = change(name, weight, inputs)
    stored = changed.to(dtype)
    if not stored.isfinite().all():
        raise KeptError(_RESULT)
    return stored, facts
