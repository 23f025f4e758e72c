"""An ONNX graph of a causal language model with its cache, exported by torch, laid out as optimum's exports are.

Inputs `input_ids`, `attention_mask`, `position_ids`, `past_key_values.N.key|value`; outputs `logits`, `present.N.key|value`. The model's
own tensors are the graph's initializers, under the names that transformers gives them (matrices of linear layers as (in, out)); the
graph's small constants are nodes, so that every initializer is accounted for.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from hub.errors import BadCheckpoint
from runners import dense, failures

FILE = "model.onnx"
DATA = "model.onnx_data"
_ROOT = "m."  # the wrapper's name for the model, in front of all names
_SCOPES = "pkg.torch.onnx.name_scopes"


def export(source: Path, path: Path) -> None:
    """Write the dense checkpoint `source` as a float32 graph to `path`; raise `BadCheckpoint` where torch cannot export it."""
    import torch

    model = dense.load(source, dtype="float32")
    past = _past(model.config)
    batch, before, now = 2, 3, 5  # any sizes that differ; all three are dynamic
    names = [f"{number}.{part}" for number in range(len(past)) for part in ("key", "value")]
    given = {
        "input_ids": torch.zeros((batch, now), dtype=torch.long),
        "attention_mask": torch.ones((batch, before + now), dtype=torch.long),
        "position_ids": torch.arange(before, before + now)[None].expand(batch, -1).contiguous(),
        "past": [(torch.zeros(batch, heads, before, width), torch.zeros(batch, heads, before, width)) for heads, width in past],
    }
    free = torch.export.Dim.DYNAMIC
    plane = {0: free, 1: free}
    sizes = {
        "input_ids": plane, "attention_mask": plane, "position_ids": plane, "past": [({0: free, 2: free}, {0: free, 2: free})] * len(past)
    }  # fmt: skip
    vectors = _told_apart(model)
    try:
        with torch.no_grad():
            program = torch.onnx.export(
                _wrapper(model), (), kwargs=given, dynamo=True, dynamic_shapes=sizes, verbose=False,
                input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{name}" for name in names)],
                output_names=["logits", *(f"present.{name}" for name in names)],
            )  # fmt: skip
    except Exception as error:  # torch raises whatever its parts raise
        if failures.out_of_memory(error):
            raise
        raise BadCheckpoint(
            f"torch cannot export the model as ONNX: {type(error).__name__}: {failures.one_line(error)}",
            hint="Use a recipe of another format for this model.",
        ) from error
    assert program is not None  # None comes only from the old exporter
    _restore(program.model.graph.initializers, vectors)
    program.save(str(path), external_data=True)


def _told_apart(model: Any) -> dict[str, Any]:
    """Give each vector of the model values that no other has, and return the true ones, arrays by name.

    The exporter stores equal tensors once, under one of their names; norms that are all ones would lose theirs, and zeros their bias.
    """
    import torch

    vectors = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() == 1}
    true = {name: parameter.detach().clone().numpy() for name, parameter in vectors.items()}
    with torch.no_grad():
        for place, parameter in enumerate(vectors.values(), start=2):
            parameter.copy_(place + torch.arange(len(parameter)) / len(parameter))
    return true


def _restore(initializers: Any, vectors: Mapping[str, Any]) -> None:
    """Give the exported vectors their true values."""
    import onnx_ir

    for name, array in vectors.items():
        if f"{_ROOT}{name}" not in initializers:
            raise BadCheckpoint(f"torch's exporter left {name} out.", hint="Install the pinned torch and onnxscript.")
        initializers[f"{_ROOT}{name}"].const_value = onnx_ir.tensor(array, name=f"{_ROOT}{name}")


def _past(config: Any) -> list[tuple[int, int]]:
    """Return the heads and the width of each layer's cache."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return [(getattr(config, "num_key_value_heads", None) or heads, width)] * config.num_hidden_layers


def _wrapper(model: Any) -> Any:
    import torch
    from transformers.cache_utils import DynamicCache

    class Step(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.m = model

        def forward(self, input_ids: Any, attention_mask: Any, position_ids: Any, past: Any) -> tuple[Any, ...]:
            cache = DynamicCache([(key, value) for key, value in past])
            out = self.m(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache, use_cache=True
            )
            return (out.logits, *(tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values)))

    return Step().eval()


def tidy(path: Path, linears: Collection[str], embedding: str) -> Any:
    """Return the graph with a matrix of its own, `<layer>.weight`, for each linear layer and the head, and `<embedding>.weight`."""
    import onnx

    model = onnx.load(path)
    matrices = {entry.name: entry for entry in model.graph.initializer}
    turned = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Transpose" and node.input[0] in matrices}
    for node in model.graph.node:
        module = _module(node)
        if node.op_type == "Gather" and module == embedding and node.input[0] in matrices:
            node.input[0] = _own(model, onnx.numpy_helper.to_array(matrices[node.input[0]]), f"{embedding}.weight")
        elif node.op_type in ("MatMul", "Gemm") and (module in linears or module == "lm_head"):
            given = node.input[1]
            array = onnx.numpy_helper.to_array(matrices[turned.get(given, given)])
            node.input[1] = _own(model, array.T if given in turned else array, f"{module}.weight")
        node.name = f"{module}/{node.name}" if module else node.name
    _drop_unread(model)  # the matrices that were exported, before others take their names
    for entry in model.graph.initializer:
        if entry.name.startswith(_ROOT):
            _rename(model, entry, entry.name.removeprefix(_ROOT))
    _forget(model)
    return model


def modules(path: Path) -> dict[str, str]:
    """Return, for each node of an exported graph, the module that it came from, as transformers names it."""
    import onnx

    return {node.name: _module(node) for node in onnx.load(path, load_external_data=False).graph.node}


def vectors(path: Path) -> dict[str, Any]:
    """Return the model's tensors of one dimension, by the names that transformers gives them."""
    import onnx

    found = (entry for entry in onnx.load(path).graph.initializer if entry.name.startswith(_ROOT) and len(entry.dims) == 1)
    return {entry.name.removeprefix(_ROOT): onnx.numpy_helper.to_array(entry) for entry in found}


def _own(model: Any, array: Any, name: str) -> str:
    import numpy as np
    import onnx

    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
    return name


def _module(node: Any) -> str:
    """Return the name of the module that a node came from, as transformers has it."""
    scopes: list[str] = next((ast.literal_eval(entry.value) for entry in node.metadata_props if entry.key == _SCOPES), [])
    return str(scopes[-2]).removeprefix(_ROOT) if len(scopes) > 1 else ""


def _rename(model: Any, entry: Any, name: str) -> None:
    for node in model.graph.node:
        for place, given in enumerate(node.input):
            if given == entry.name:
                node.input[place] = name
    entry.name = name


def _drop_unread(model: Any) -> None:
    """Remove nodes and tensors that nothing reads."""
    size = -1
    while size != len(model.graph.node):
        size = len(model.graph.node)
        read = {name for node in model.graph.node for name in node.input} | {output.name for output in model.graph.output}
        _keep(model.graph.node, [any(name in read for name in node.output) for node in model.graph.node])
    _keep(model.graph.initializer, [entry.name in read for entry in model.graph.initializer])


def _keep(field: Any, kept: list[bool]) -> None:
    for place in reversed([place for place, keep in enumerate(kept) if not keep]):
        del field[place]


def _forget(model: Any) -> None:
    """Remove what tells of the machine it was made on, and name the sizes that are free."""
    for entry in (model, model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        entry.doc_string = ""
        del entry.metadata_props[:]
    del model.graph.value_info[:]
    sizes = {0: "batch_size", 1: "sequence_length"}
    for entry in (*model.graph.input, *model.graph.output):
        cached = entry.name.startswith(("past_key_values.", "present."))
        total = entry.name == "attention_mask" or entry.name.startswith("present.")
        for place, size in enumerate(entry.type.tensor_type.shape.dim):
            if size.HasField("dim_param"):
                size.dim_param = (
                    sizes[place] if place == 0 or not (cached or total) else "total_sequence_length" if total else "past_sequence_length"
                )


def save(model: Any, folder: Path, tensors: Collection[str]) -> None:
    """Write the graph and its data; initializers that are none of the model's `tensors` become constant nodes."""
    import onnx

    small = [entry for entry in model.graph.initializer if entry.name not in tensors]
    kept = [entry for entry in model.graph.initializer if entry.name in tensors]
    constants = [onnx.helper.make_node("Constant", [], [entry.name], value=entry) for entry in small]
    nodes = [*constants, *(type(node).FromString(node.SerializeToString()) for node in model.graph.node)]
    # Written anew as raw bytes: some tools store value by value.
    kept = [onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(entry), entry.name) for entry in sorted(kept, key=lambda it: it.name)]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(nodes)
    onnx.save_model(model, folder / FILE, save_as_external_data=True, all_tensors_to_one_file=True, location=DATA, size_threshold=1024)
    (folder / DATA).chmod((folder / FILE).stat().st_mode)  # onnx keeps the data file from everybody else


def names(model: Any) -> Iterator[str]:
    """Give the names of the graph's initializers."""
    return (entry.name for entry in model.graph.initializer)
