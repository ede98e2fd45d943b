"""Refuses graphs in forms that Hexagon's compiler takes and computes wrongly, or does not take at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from .blocks import NARROW_NORM
from .quantization import DATA_MOVEMENT
from .weight_codes import BLOCK_SCALE_STEPS

REFUSED_OPERATORS = {
    "GroupQueryAttention": "write attention with MatMul and Softmax",
    "OneHot": "use ScatterElements",
    "QMoE": "write the experts with MatMul",
    "CausalConvWithState": "write the convolution as shifted slices",
    "GatherBlockQuantized": "look embeddings up on the host",
}
THRESHOLDS = ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")


@dataclass(frozen=True)
class Finding:
    """A node in a form that must not reach the compiler."""

    node: str
    rule: str
    message: str


def check_graph(model: ir.Model | Path) -> list[Finding]:
    """Every finding in a model or an .onnx file; an empty list for a graph that may be compiled."""
    model = ir.load(model) if isinstance(model, Path) else model
    findings = [finding for node in model.graph for rule in RULES for finding in rule(node)]
    for value in [*model.graph.inputs, *model.graph.outputs]:
        if value.shape is None or not value.shape.is_static():
            findings.append(Finding(str(value.name), "static shapes", "expected fixed sizes, found a symbolic shape"))
    return findings


def _source(value: ir.Value | None) -> ir.Value | None:
    """The quantized tensor that a DequantizeLinear gives as ``value``; None if it comes from elsewhere."""
    node = value.producer() if value is not None else None
    return node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    """What a tensor is stored as on the NPU: its quantized type, or its own."""
    if value is None:
        return None
    source = _source(value)
    return (source if source is not None else value).dtype


def _is_blocks(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear" and "block_size" in node.attributes


def _rank(value: ir.Value | None) -> int:
    return len(value.shape) if value is not None and value.shape is not None else 0


def _refused(node: ir.Node) -> Iterator[Finding]:
    if node.op_type in REFUSED_OPERATORS:
        yield Finding(str(node.name), "operator", f"{node.op_type}: {REFUSED_OPERATORS[node.op_type]}")


def _batched_blocks(node: ir.Node) -> Iterator[Finding]:
    if node.op_type == "MatMul" and _is_blocks(node.inputs[1]) and _rank(node.inputs[1]) > 2:
        yield Finding(str(node.name), "batched int4 blocks", "MatMul of rank 3 with int4 blocks; use a matrix or int8")


def _blocks_elsewhere(node: ir.Node) -> Iterator[Finding]:
    weights = [value for value in node.inputs if _is_blocks(value)]
    if weights and node.op_type not in ("MatMul", "Conv"):
        yield Finding(
            str(node.name), "int4 blocks", f"{node.op_type} with int4 blocks runs in float; use MatMul or Conv"
        )
    if weights and node.op_type == "MatMul" and _dtype(node.inputs[0]) != ir.DataType.UINT16:
        yield Finding(str(node.name), "int4 blocks", "int4 blocks take 16-bit activations only")


def _block_scales(node: ir.Node) -> Iterator[Finding]:
    if node.op_type != "DequantizeLinear" or "block_size" not in node.attributes:
        return
    tensor = node.inputs[1].const_value if node.inputs[1] is not None else None
    if tensor is None:
        return
    scales = tensor.numpy().astype(np.float64)
    steps = scales / scales.max(axis=0, keepdims=True) * BLOCK_SCALE_STEPS
    if np.abs(steps - np.rint(steps)).max() > 1e-3 or steps.min() < 0.5:
        yield Finding(
            str(node.name), "block scales", "a block's scale is no sixteenth of its column's: it would be rounded"
        )


def _narrow_norm(node: ir.Node) -> Iterator[Finding]:
    if node.op_type not in ("RMSNormalization", "SimplifiedLayerNormalization", "LpNormalization"):
        return
    x = node.inputs[0]
    if _rank(x) == 4 and _dtype(x) != ir.DataType.UINT16 and x is not None and x.shape is not None:
        width = x.shape[-1]
        if isinstance(width, int) and width <= NARROW_NORM:
            yield Finding(
                str(node.name),
                "narrow norm",
                f"{node.op_type} of rank 4 over {width} elements in {_dtype(x)}; quantize it to 16 bits",
            )


def _decomposed_norm(node: ir.Node) -> Iterator[Finding]:
    if node.op_type == "ReduceMean" and _dtype(node.inputs[0]) in (ir.DataType.UINT16, ir.DataType.UINT8):
        yield Finding(str(node.name), "decomposed norm", "a norm from ReduceMean loses accuracy; use RMSNormalization")


def _router(node: ir.Node) -> Iterator[Finding]:
    if node.op_type == "TopK" and _dtype(node.inputs[0]) == ir.DataType.UINT8:
        yield Finding(str(node.name), "router", "TopK on 8 bits picks wrong experts; use 16")
    if node.op_type in THRESHOLDS and any(_from_top_k(value) for value in node.inputs):
        yield Finding(str(node.name), "router", "experts by comparison with TopK's value; use its indices")


def _from_top_k(value: ir.Value | None, depth: int = 6) -> bool:
    node = value.producer() if value is not None else None
    if node is None or depth == 0:
        return False
    if node.op_type == "TopK":
        return True
    return node.op_type in (*DATA_MOVEMENT, "QuantizeLinear", "DequantizeLinear") and _from_top_k(
        node.inputs[0], depth - 1
    )


def _moved_data(node: ir.Node) -> Iterator[Finding]:
    """Data movement must keep scale and zero point."""
    if node.op_type not in DATA_MOVEMENT:
        return
    inputs = [
        _parameters(value.producer()) for value in node.inputs if value is not None and _source(value) is not None
    ]
    outputs = [
        _parameters(user) for value in node.outputs for user, _ in value.uses() if user.op_type == "QuantizeLinear"
    ]
    if len({*inputs, *outputs}) > 1:
        yield Finding(str(node.name), "moved data", f"{node.op_type} between different scales or zero points")


def _parameters(node: ir.Node | None) -> tuple[bytes, ...]:
    assert node is not None
    values = [value.const_value for value in node.inputs[1:3] if value is not None]
    return tuple(tensor.tobytes() for tensor in values if tensor is not None)


def _embedding(node: ir.Node) -> Iterator[Finding]:
    source = _source(node.inputs[0]) if node.op_type == "Gather" else None
    if source is not None and source.dtype == ir.DataType.INT8 and _rank(source) == 2:
        yield Finding(str(node.name), "embedding", "Gather from an int8 table; look rows up on the host")


def _float_with_integers(node: ir.Node) -> Iterator[Finding]:
    if node.op_type != "MatMul" or len(node.inputs) != 2:
        return
    x, weight = node.inputs
    if _source(weight) is not None and _source(x) is None:
        yield Finding(str(node.name), "mixed product", "float activations with quantized weights; quantize both")


RULES: tuple[Callable[[ir.Node], Iterator[Finding]], ...] = (
    _refused,
    _batched_blocks,
    _blocks_elsewhere,
    _block_scales,
    _narrow_norm,
    _decomposed_norm,
    _router,
    _moved_data,
    _embedding,
    _float_with_integers,
)
