"""ai.liquid::GatherDequantize: rows of a quantized table, such as a token embedding."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from .block_codes import (
    FLOAT,
    BlockSize,
    dequantize,
    first_columns,
    from_float32,
    int_attributes,
    weight_inputs,
)
from .domain import OpsProfile, domain_of


def gather_dequantize_function(
    *, ops_profile: OpsProfile, zero_points: bool, activations: ir.DataType = FLOAT
) -> ir.Function:
    """The definition of ``GatherDequantize`` for tables with or without stored zero points.

    Inputs
        0. ``table`` uint8 [V, ceil(K/block_size), block_size*bits/8], laid out like a weight of QLinear.
        1. ``scales`` float16 or float32 [V, ceil(K/block_size)].
        2. ``zero_points`` uint8, optional.
        3. ``ids`` int64 [..].
    Outputs
        0. ``y`` float32 [.., K]: row ``id`` of the table as (code - zero_point) * scale.
    Attributes (all int): ``K``, ``bits``, ``block_size``.

    Both bodies gather the packed rows first: a few kilobytes a token, whatever the table's size.
    """

    def body(op: OpBuilder, table: ir.Value, scales: ir.Value, zeros: ir.Value, ids: ir.Value) -> ir.Value:
        rows = op.Gather(table, ids, axis=0)
        row_zeros = op.Gather(zeros, ids, axis=0) if zero_points else None
        row_scales = op.Gather(scales, ids, axis=0)
        values = first_columns(op, dequantize(op, rows, row_scales, row_zeros, BlockSize.of_function(op)), "K")
        return from_float32(op, values, activations)

    return build_function(
        body,
        [*weight_inputs("table", "scales", "zero_points"), ir.Value(name="ids", type=ir.TensorType(ir.DataType.INT64))],
        domain=domain_of(activations),
        name="GatherDequantize",
        attributes=int_attributes("K", "bits", "block_size"),
        opset_imports={"": ops_profile.opset_imports()[""]},
    )
