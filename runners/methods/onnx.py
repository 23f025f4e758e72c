"""ONNX: a graph with its cache for onnxruntime, laid out as optimum's, in 8 bits with rounded activations or in 4 bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hub.domain import Step
from hub.errors import BadCheckpoint
from runners import method
from runners.architectures import architecture
from runners.checkpoint import ModelShape, shape
from runners.headers import Tensor
from runners.method import Outcome, PressContext, Promise

FAMILY = "export"
SUMMARY = "Exports an ONNX graph with its cache and quantizes it for onnxruntime: INT8 throughout, or INT4 in blocks."
PAPER = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
SCHEMES = ("INT8", "INT4")
FORMAT = "onnx"
NEEDS = ("onnx", "onnxscript", "onnxruntime", "transformers", "torch")
WORKS = "whole"
RESUMES = "no"
SPARES = False
COPIES = 6  # the model, the exported program, the graph, and what the quantizer makes of it
INSTALL = "pip install 'modelpress[press,export]'"
HEAD = "lm_head"
TIED = "The head is stored beside the embedding that it is tied to in the base, each in its own layout."
ROUNDED_TOGETHER = (
    "Tokens that are read together share the scale by which they are rounded, so predictions depend a little on how a text is cut."
)
SATURATES = "On x86 processors without VNNI instructions sums of 8-bit products can saturate in onnxruntime; predictions differ there."


def _group_size(step: Step) -> int:
    group = int(method.options(step, group_size=32)["group_size"])
    method.require(group in (16, 32, 64, 128, 256), step, "group_size", group, "16, 32, 64, 128 or 256")
    return group


def _embedding(shape: ModelShape) -> str:
    return architecture(shape.architecture).tables[0]


def check(step: Step, shape: ModelShape) -> None:
    """Refuse unknown architectures and, in 4 bits, rows that the groups do not divide."""
    method.check_common(step, shape, SCHEMES)
    group = _group_size(step)
    if step.scheme == "INT4":
        method.check_divisible(step, shape, group)


def promise(step: Step, shape: ModelShape) -> Promise:
    """Linear layers in 8 or 4 bits; the head, a matrix of its own here, and the embedding in 8; all else in float32."""
    embedding = _embedding(shape)
    vocabulary, width = shape.tensors[f"{embedding}.weight"].shape
    gone = {f"{linear.name}.weight" for linear in shape.linears} | {f"{HEAD}.weight", f"{embedding}.weight"}
    tensors = {name: Tensor(dtype="F32", shape=tensor.shape) for name, tensor in shape.tensors.items() if name not in gone}
    tensors |= _embedded(embedding, vocabulary, width)
    changed = {}
    for name, rows, columns in (*((it.name, it.out_features, it.in_features) for it in shape.linears), (HEAD, vocabulary, width)):
        packed = (
            _int8(name, rows, columns)
            if step.scheme == "INT8"
            else _blocks(name, rows, columns, 8 if name == HEAD else 4, _group_size(step))
        )
        tensors |= packed
        changed[name] = tuple(packed)
    del changed[HEAD]  # no linear layer of the decoder
    return Promise(shape=replace(shape, zeros={}), tensors=tensors, changed=changed)


def _embedded(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {
        f"{name}.weight_quantized": Tensor(dtype="I8", shape=(rows, columns)),
        f"{name}.weight_scale": Tensor(dtype="F32", shape=(rows, 1)),
    }


def _int8(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    """onnxruntime's layout for MatMulInteger: (in, out), one scale and zero point for each output."""
    return {
        f"{name}.weight_quantized": Tensor(dtype="I8", shape=(columns, rows)),
        f"{name}.weight_scale": Tensor(dtype="F32", shape=(rows,)),
        f"{name}.weight_zero_point": Tensor(dtype="I8", shape=(rows,)),
    }


def _blocks(name: str, rows: int, columns: int, bits: int, group: int) -> dict[str, Tensor]:
    """onnxruntime's layout for MatMulNBits: a row's blocks one after another, one scale for each, no zero points."""
    blocks = -(-columns // group)
    return {
        f"{name}.weight_Q{bits}": Tensor(dtype="U8", shape=(rows, blocks, group * bits // 8)),
        f"{name}.weight_scales": Tensor(dtype="F32", shape=(rows, blocks)),
    }


def apply(step: Step, source: Path, target: Path, context: PressContext) -> Outcome:
    """Export in float32, give the embedding a scale for each row, quantize the matrices with onnxruntime's tools, save."""
    from runners import onnx_graph

    before = shape(source)
    promised = promise(step, before)
    folder = context.scratch / "onnx"
    folder.mkdir(exist_ok=True)
    onnx_graph.export(source, folder / "exported.onnx")
    embedding = _embedding(before)
    model = onnx_graph.tidy(folder / "exported.onnx", {linear.name for linear in before.linears}, embedding)
    _round_embedding(model, embedding)
    model = _dynamic(model, folder) if step.scheme == "INT8" else _in_blocks(model, _group_size(step))
    if missing := promised.tensors.keys() - set(onnx_graph.names(model)):
        raise BadCheckpoint(f"onnxruntime's tools left {min(missing)} unmade.", hint="Install the pinned onnxruntime and torch.")
    onnx_graph.save(model, target, promised.tensors.keys())
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    tied = f"{HEAD}.weight" not in before.tensors
    return Outcome(notes=(TIED,) * tied + (ROUNDED_TOGETHER, SATURATES) * (step.scheme == "INT8"))


def _round_embedding(model: Any, embedding: str) -> None:
    """Store the embedding in 8 bits with a scale for each row. onnxruntime's tools would give the whole table one scale."""
    import numpy as np
    from onnx import helper, numpy_helper

    name = f"{embedding}.weight"
    place, looked_up = next(
        (place, node) for place, node in enumerate(model.graph.node) if node.op_type == "Gather" and node.input[0] == name
    )
    entry = next(entry for entry in model.graph.initializer if entry.name == name)
    table: Any = numpy_helper.to_array(entry).astype(np.float32)
    scale = np.maximum(np.abs(table).max(1, keepdims=True) / 127, np.finfo(np.float32).tiny)
    rows = np.clip(np.rint(table / scale), -127, 127).astype(np.int8)
    model.graph.initializer.remove(entry)
    model.graph.initializer.extend([numpy_helper.from_array(rows, f"{name}_quantized"), numpy_helper.from_array(scale, f"{name}_scale")])
    ids, out = looked_up.input[1], looked_up.output[0]
    nodes = [
        helper.make_node("Gather", [f"{name}_quantized", ids], [f"{embedding}.rows"], name=f"{embedding}/rows"),
        helper.make_node("Gather", [f"{name}_scale", ids], [f"{embedding}.scales"], name=f"{embedding}/scales"),
        helper.make_node("Cast", [f"{embedding}.rows"], [f"{embedding}.floats"], to=1, name=f"{embedding}/cast"),
        helper.make_node("Mul", [f"{embedding}.floats", f"{embedding}.scales"], [out], name=f"{embedding}/mul"),
    ]
    del model.graph.node[place]
    for node in reversed(nodes):
        model.graph.node.insert(place, node)


def _dynamic(model: Any, folder: Path) -> Any:
    """Round matrices to 8 bits by output, and what they are multiplied with to 8 bits as it comes."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    onnx.save_model(model, folder / "tidy.onnx", save_as_external_data=True, location="tidy.onnx_data")
    quantize_dynamic(
        folder / "tidy.onnx", folder / "quantized.onnx", op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
        weight_type=QuantType.QInt8, use_external_data_format=True,
    )  # fmt: skip
    return onnx.load(folder / "quantized.onnx")


def _in_blocks(model: Any, group: int) -> Any:
    """Round matrices to 4 bits, the head's to 8, each block with a scale of its own; they are computed with in 8 bits."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    plain = ONNXModel(model)
    plain.replace_gemm_with_matmul()
    model = plain.model
    heads = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.input[1] == f"{HEAD}.weight"]
    others = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in heads]
    for bits, spared in ((4, heads), (8, others)):
        tool = MatMulNBitsQuantizer(model, bits=bits, block_size=group, is_symmetric=True, accuracy_level=4, nodes_to_exclude=spared)
        tool.process()
        model = tool.model.model
    return model
