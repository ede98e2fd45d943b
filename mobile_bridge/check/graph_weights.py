"""Which node of a graph reads which weights, without loading them."""

from __future__ import annotations

from math import prod
from pathlib import Path

import onnx

QUANTIZING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_HALF_BYTE = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


def load_graph(path: Path) -> onnx.ModelProto:
    """The model without its external weights."""
    return onnx.load(str(path), load_external_data=False)


def weight_bytes_by_node(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of initializers by the name of the first computing node that reads them, through Dequantize or not."""
    graph = model.graph
    sizes = {item.name: tensor_bytes(item) for item in graph.initializer}
    by_node: dict[str, int] = {}
    for node in graph.node:  # in topological order: a Dequantize stands before what reads it
        size = sum(sizes.pop(name) for name in node.input if name in sizes)
        if node.op_type in QUANTIZING and size and node.output:
            sizes[node.output[0]] = sizes.get(node.output[0], 0) + size
        elif size:
            by_node[node.name or node.output[0]] = by_node.get(node.name or node.output[0], 0) + size
    return by_node


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes as stored."""
    count = prod(tensor.dims)
    if tensor.data_type in _HALF_BYTE:
        result: int = (count + 1) // 2
        return result
    result = count * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return result
