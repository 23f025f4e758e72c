"""OpenVINO: a model that keeps its cache as state, laid out as optimum-intel's, its weights in 8 or 4 bits by NNCF."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hub.domain import Step
from hub.errors import BadCheckpoint
from runners import method
from runners.architectures import architecture
from runners.checkpoint import ModelShape, shape
from runners.headers import Tensor
from runners.method import Outcome, PressContext, Promise

FAMILY = "export"
SUMMARY = "Converts to an OpenVINO model with its cache as state; weights in INT8 by row or INT4 in groups (NNCF)."
PAPER = "https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/weight-compression.html"
SCHEMES = ("INT8", "INT4")
FORMAT = "openvino"
NEEDS = ("openvino", "nncf", "onnx", "onnxscript", "transformers", "torch")
WORKS = "whole"
RESUMES = "no"
SPARES = False
COPIES = 3  # the model, the exported program, the converted one
INSTALL = "pip install 'modelpress[press,export]'"
HEAD = "lm_head"


def _group_size(step: Step) -> int:
    group = int(method.options(step, group_size=64)["group_size"])
    method.require(group >= 16, step, "group_size", group, "at least 16")
    return group


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures and, in 4 bits, rows that the groups do not divide."""
    method.check_common(step, shape, SCHEMES)
    group = _group_size(step)
    if step.scheme == "INT4":
        method.check_divisible(step, shape, group)


def promise(step: Step, shape: ModelShape) -> Promise:
    """Linear layers in 8 or 4 bits, tables and head in 8, vectors in float32."""
    group = _group_size(step)
    linears = {linear.name: (linear.out_features, linear.in_features) for linear in shape.linears}
    looked_up = (*architecture(shape.architecture).tables, HEAD)
    tables = {name: shape.tensors[f"{name}.weight"].shape for name in looked_up if f"{name}.weight" in shape.tensors}
    gone = {f"{name}.weight" for name in (*linears, *tables)}
    tensors = {name: Tensor(dtype="F32", shape=tensor.shape) for name, tensor in shape.tensors.items() if name not in gone}
    for name, (rows, columns) in tables.items():
        tensors |= _by_row(name, rows, columns)
    changed = {}
    for name, (rows, columns) in linears.items():
        packed = _by_row(name, rows, columns) if step.scheme == "INT8" else _in_groups(name, rows, columns, group)
        tensors |= packed
        changed[name] = tuple(packed)
    return Promise(shape=replace(shape, zeros={}), tensors=tensors, changed=changed)


def _by_row(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": Tensor(dtype="U8", shape=(rows, columns)),
        f"{name}.weight/scale": Tensor(dtype="F16", shape=(rows, 1)),
        f"{name}.weight/zero_point": Tensor(dtype="U8", shape=(rows, 1)),
    }


def _in_groups(name: str, rows: int, columns: int, group: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight": Tensor(dtype="I4", shape=(rows, columns // group, group)),
        f"{name}.weight/scale": Tensor(dtype="F16", shape=(rows, columns // group, 1)),
    }


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Export in float32 through ONNX, convert, keep the cache as state, compress the weights, save."""
    from runners import onnx_graph, openvino_graph
    from runners.readers import openvino as reader

    openvino_graph.library()
    import nncf

    before = shape(source)
    promised = promise(step, before)
    folder = context.scratch / "openvino"
    folder.mkdir(exist_ok=True)
    onnx_graph.export(source, folder / "exported.onnx")
    model = openvino_graph.convert(folder / "exported.onnx", architecture(before.architecture).tables[0])
    openvino_graph.keep_state(model)
    if step.scheme == "INT8":
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    else:
        model = nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=_group_size(step), ratio=1.0)
    openvino_graph.save(model, target, set(promised.tensors))
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    if missing := {name for names in promised.changed.values() for name in names} - reader.read(target / "openvino_model.xml").keys():
        raise BadCheckpoint(f"NNCF left {min(missing)} unmade.", hint="Install the pinned openvino and nncf.")
    return Outcome()
