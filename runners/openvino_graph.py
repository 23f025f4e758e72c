"""An OpenVINO model of a causal language model that keeps its cache as its own state, as optimum-intel and OpenVINO GenAI expect it.

Inputs `input_ids`, `attention_mask`, `position_ids`, `beam_idx`; output `logits`. It is converted from the ONNX graph: a direct conversion
from torch needs a mask made by hand. The model's own tensors bear the names that transformers gives them; the graph's small constants are
called `graph/N`, so that every other one is accounted for.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from runners import onnx_graph
from runners.readers import OPENVINO

_PAST, _PRESENT = "past_key_values.", "present."


def library() -> Any:
    """Return the openvino package without openvino_telemetry: both it and NNCF would report each use to their makers unasked."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # what importing meets as "not installed"
    import openvino

    return openvino


def convert(path: Path, embedding: str) -> Any:
    """Return the model of an exported ONNX graph with its constants named: `<layer>.weight`, `<embedding>.weight`, vectors as they were."""
    model = library().convert_model(path)
    modules, vectors = onnx_graph.modules(path), {name: array.tobytes() for name, array in onnx_graph.vectors(path).items()}
    for op in model.get_ops():
        if op.get_type_name() not in ("MatMul", "Gather"):
            continue
        # An operation bears the name of its node, the last one that of the graph's output.
        module = modules.get(op.get_friendly_name().partition("/")[0]) or "lm_head" * (op.get_friendly_name() == "logits")
        table = op.input_value(0 if op.get_type_name() == "Gather" else 1).get_node()
        if table.get_type_name() == "Constant" and module:
            table.set_friendly_name(f"{module}.weight")
    for op in model.get_ops():
        if op.get_type_name() == "Constant" and op.get_byte_size() == 4 * max(op.shape, default=0):
            data = op.data.tobytes()
            same = next((name for name, wanted in vectors.items() if wanted == data), None)
            if same:
                del vectors[same]
                op.set_friendly_name(same)
    _name_table(model, embedding)
    return model


def _name_table(model: Any, embedding: str) -> None:
    """Where embedding and head are one tensor, call it the embedding."""
    for op in model.get_ops():
        readers = {target.get_node().get_type_name() for target in op.output(0).get_target_inputs()} if op.get_output_size() == 1 else set()
        if op.get_type_name() == "Constant" and {"Gather", "MatMul"} <= readers:
            op.set_friendly_name(f"{embedding}.weight")


def keep_state(model: Any) -> None:
    """Turn the cache's inputs and outputs into state that begins empty, reordered by `beam_idx`, as optimum-intel does."""
    import numpy as np

    openvino = library()
    from openvino import opset13 as ops
    from openvino._offline_transformations import apply_make_stateful_transformation

    pasts = [name for given in model.inputs for name in given.names if name.startswith(_PAST)]
    batch = model.input("input_ids").get_partial_shape()[0]
    beams = ops.parameter(name="beam_idx", dtype=openvino.Type.i32, shape=openvino.PartialShape([batch]))
    beams.output(0).get_tensor().add_names({"beam_idx"})
    model.add_parameters([beams])
    for name in pasts:
        given = model.input(name)
        readers = given.get_target_inputs()
        chosen = ops.gather(given, beams, ops.constant(0))
        for reader in readers:
            reader.replace_source_output(chosen.output(0))
    model.validate_nodes_and_infer_types()
    apply_make_stateful_transformation(model, {name: name.replace(_PAST, _PRESENT) for name in pasts})
    size = ops.gather(ops.shape_of(model.input("input_ids"), output_type="i64"), ops.constant([0]), ops.constant(0))
    for op in model.get_ops():
        if op.get_type_name() == "ReadValue":
            sizes = [
                size if place == 0 else ops.constant(np.array([dim.min_length])) for place, dim in enumerate(op.get_output_partial_shape(0))
            ]
            op.set_arguments([ops.broadcast(ops.constant(0.0, dtype=op.get_output_element_type(0)), ops.concat(sizes, axis=0))])
    model.validate_nodes_and_infer_types()


def save(model: Any, folder: Path, tensors: set[str]) -> None:
    """Write the model; what has a name that counts up with the process gets one that counts in the model."""
    for number, op in enumerate(model.get_ordered_ops()):
        name = op.get_friendly_name()
        if name == op.get_name() or (op.get_type_name() == "Constant" and name not in tensors):
            op.set_friendly_name(f"graph/{number}")
    library().save_model(model, folder / OPENVINO[0], compress_to_fp16=False)
