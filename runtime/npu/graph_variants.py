"""Graphs changed for comparisons: logits of every row of a chunk, and the residual stream after each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from ...artifact.npu_parts import NpuGraph, NpuPort
from ...errors import ArtifactError


def comparison_variant(
    path: Path, graph: NpuGraph, layers: Sequence[int] = ()
) -> tuple[bytes, NpuGraph, dict[str, NpuPort]]:
    """``graph`` (the file at ``path``) with logits of all its rows, where it has logits, and with the residual stream
    after each of ``layers`` as further outputs: (model, its description, those outputs by name).

    Weights stay in their file. The arithmetic of a row is the same as in the original. Raises ArtifactError.
    """
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's errors share no other base
        raise ArtifactError(f"{path} is not an ONNX file that can be read: {error}") from error
    del model.graph.value_info[:]
    inputs = tuple(_resized(model.graph.input, value, graph.tokens, "last_token", 0) for value in graph.inputs)
    outputs = tuple(_resized(model.graph.output, value, graph.tokens, "logits", 1) for value in graph.outputs)
    hidden = {f"hidden_states.{layer}": _hidden_output(model, path, layer, graph) for layer in layers}
    described = dataclasses.replace(graph, inputs=inputs, outputs=(*outputs, *hidden.values()))
    return model.SerializeToString(), described, hidden


def _resized(declared: Sequence[onnx.ValueInfoProto], value: NpuPort, rows: int, role: str, axis: int) -> NpuPort:
    """``value`` with ``rows`` along ``axis`` if it plays ``role``, in the model's declaration as well."""
    if value.role != role:
        return value
    info = next(item for item in declared if item.name == value.name)
    info.type.tensor_type.shape.dim[axis].dim_value = rows
    shape = (*value.shape[:axis], rows, *value.shape[axis + 1 :])
    return dataclasses.replace(value, shape=shape)


def _hidden_output(model: onnx.ModelProto, path: Path, layer: int, graph: NpuGraph) -> NpuPort:
    name = f"hidden_states.{layer}"
    node = next((item for item in model.graph.node if name in item.output), None)
    if node is None:
        raise ArtifactError(f"{path} has no value {name}; export the checkpoint again")
    width = next(value.shape[2] for value in graph.inputs if value.role == "hidden")
    shape = (1, graph.tokens, width)
    scale, zero, dtype = None, 0, np.dtype(np.float32)
    if node.op_type == "QuantizeLinear":
        constants = {item.name: item for item in model.graph.initializer}
        scale = float(_array(constants[node.input[1]], path))
        stored = _array(constants[node.input[2]], path)
        zero, dtype = int(stored), stored.dtype
    kind = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, shape))
    return NpuPort(name, "hidden", dtype, shape, scale, zero, layer)


def _array(tensor: onnx.TensorProto, path: Path) -> np.ndarray:
    return numpy_helper.to_array(tensor, str(path.parent))
