"""Check for XNNPACK: which nodes its execution provider can take, by operator, type and constant weights."""

from __future__ import annotations

from collections import Counter

import onnx

from ...artifact.artifact import Artifact
from .fixed_shapes import PAST_TOKENS, fixed_shape_model
from .graph_weights import tensor_bytes
from .result import CheckReport, GraphCheck, RefusedNode, Requirement

# Operators of onnxruntime's XNNPACK provider that a decoder can have; matrix products with constant weights only.
_WITH_CONSTANT_WEIGHTS = ("Gemm", "MatMul", "Conv", "ConvTranspose", "QLinearConv")
_OTHERS = ("Softmax", "QLinearSoftmax", "MaxPool", "AveragePool", "QLinearAveragePool", "Resize")
_FLOAT = onnx.TensorProto.FLOAT


def check_xnnpack(artifact: Artifact) -> CheckReport:
    """Share of nodes and of weight bytes of a decode step that XNNPACK could take. Raises ArtifactError."""
    model = fixed_shape_model(artifact)
    constants = {item.name: item for item in model.graph.initializer}
    taken, taken_bytes, partitions, inside = 0, 0, 0, False
    reasons: Counter[tuple[str, str]] = Counter()
    for node in model.graph.node:
        reason = _reason(node, constants)
        if reason:
            reasons[node.op_type, reason] += 1
        else:
            taken += 1
            taken_bytes += sum(tensor_bytes(constants[name]) for name in node.input if name in constants)
            partitions += not inside
        inside = not reason
    total = sum(tensor_bytes(item) for item in constants.values())
    nodes = len(model.graph.node)
    graph = GraphCheck(
        graph=f"{artifact.model_path.name}, one token on {PAST_TOKENS}",
        nodes=nodes,
        nodes_on_target=taken,
        weight_bytes=total,
        weight_bytes_on_target=min(taken_bytes, total),
        refused=tuple(RefusedNode("", op, f"{why} ({count} nodes)") for (op, why), count in reasons.most_common()),
        partitions=partitions,
    )
    share = taken_bytes / total if total else 0.0
    detail = f"{share:.0%} of the weights, {taken} of {nodes} nodes in {partitions} partitions"
    return CheckReport(
        target="xnnpack",
        artifact=str(artifact.folder),
        environment={"checker": "operators of onnxruntime's XNNPACK provider", "variant": artifact.variant},
        graphs=(graph,),
        requirements=(Requirement("most weights run on XNNPACK", share > 0.5, detail),),
        notes=(
            "XNNPACK computes on the CPU's cores like the CPU provider, in float32 or 8-bit: it takes neither int4 "
            "blocks nor lfm-onnx's ops. Every change between both providers costs a copy.",
            "By operator alone: nothing was run.",
        ),
    )


def _reason(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> str:
    if node.domain not in ("", "ai.onnx"):
        return f"operators of {node.domain} are not XNNPACK's"
    if node.op_type in _OTHERS:
        return ""
    if node.op_type not in _WITH_CONSTANT_WEIGHTS:
        return "XNNPACK has no such operator"
    weight = constants.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None:
        return "its second factor is not constant"
    if not node.op_type.startswith("QLinear") and weight.data_type != _FLOAT:
        return "its weights are not float32"
    return ""
