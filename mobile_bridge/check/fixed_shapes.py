"""A decode step's graph with every shape fixed and every function inlined, as mobile providers want it."""

from __future__ import annotations

import onnx

from ...artifact.artifact import Artifact
from ...errors import ArtifactError
from .graph_weights import QUANTIZING, load_graph

PAST_TOKENS = 255
"""Cache columns of the fixed variant: a decode step with a context of 256."""


def fixed_shape_model(artifact: Artifact, past: int = PAST_TOKENS) -> onnx.ModelProto:
    """One token on top of ``past``, batch 1; shapes inferred as far as onnx can. Weights stay outside.

    Nodes that ONNX Runtime computes at load, from constants and fixed shapes alone, are left out.
    """
    from onnx import inliner

    try:
        model = load_graph(artifact.model_path)
    except Exception as error:  # protobuf's errors share no other base
        raise ArtifactError(f"{artifact.model_path} is not an ONNX file that can be read: {error}") from error
    sizes = {"batch_size": 1, "sequence_length": 1, "past_sequence_length": past, "total_sequence_length": past + 1}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                size = sizes.get(dimension.dim_param, past + 1)
                dimension.ClearField("dim_param")
                dimension.dim_value = size
    model = inliner.inline_local_functions(model, convert_version=False)
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except Exception as error:  # as above
        raise ArtifactError(f"{artifact.model_path}: shapes cannot be inferred: {error}") from error
    _leave_out_constants(model.graph)
    return model


def _leave_out_constants(graph: onnx.GraphProto) -> None:
    known = {item.name for item in graph.initializer} | {""}
    fixed = {value.name for value in (*graph.input, *graph.value_info) if _is_fixed(value)}
    computed = []
    for node in graph.node:
        constant = node.op_type == "Constant" or (node.op_type == "Shape" and node.input[0] in fixed)
        if not constant and node.op_type not in QUANTIZING:
            constant = all(name in known for name in node.input)
        if constant:
            known.update(node.output)
        else:
            computed.append(node)
    del graph.node[:]
    graph.node.extend(computed)
    # What is left reads their results as constants; the values do not matter here.
    own = {item.name for item in graph.initializer} | {""}
    for name in known - own:
        graph.initializer.append(onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [], [0]))


def _is_fixed(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.HasField("shape") and all(size.HasField("dim_value") for size in kind.shape.dim)
