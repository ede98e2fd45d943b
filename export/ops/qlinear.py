"""ai.liquid::QLinear: a linear layer whose weight is stored in integer blocks."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from .block_codes import (
    FLOAT,
    BlockSize,
    dequantize,
    first_columns,
    float_input,
    int_attributes,
    weight_inputs,
)
from .domain import CONTRIB_DOMAIN, CONTRIB_VERSION, OpsProfile, domain_of

INT8_ACTIVATIONS = 4
"""MatMulNBits' accuracy_level that lets it quantize activations to int8 by block; 0 keeps them in float32."""


def qlinear_function(
    *,
    ops_profile: OpsProfile,
    zero_points: bool,
    activation_bits: int,
    bias: bool = False,
    activations: ir.DataType = FLOAT,
) -> ir.Function:
    """The definition of ``QLinear`` for weights with or without stored zero points.

    Inputs
        0. ``x`` float32 [.., K].
        1. ``weight`` uint8 [N, ceil(K/block_size), block_size*bits/8]: codes as quantize/formats.py lays them out.
        2. ``scales`` float16 or float32 [N, ceil(K/block_size)].
        3. ``zero_points`` uint8 [N, ceil(ceil(K/block_size)*bits/8)], optional: 2**(bits-1) where absent.
        4. ``bias`` float32 [N], optional.
    Outputs
        0. ``y`` float32 [.., N].
    Attributes (all int)
        ``K``, ``N``. ``bits``: 4 or 8. ``block_size``: 32, 64 or 128. ``activation_bits``: 8 lets a kernel quantize x
        to int8 by block of K; 0 asks for float32 products.

    Formula::

        y = x @ ((code(weight) - zero_point) * scale)^T + bias

    The custom body is com.microsoft.MatMulNBits, which reads the same bytes; the standard one dequantizes first (a
    runtime that folds constants then holds the weight in float32).
    """
    names = ["x", "weight", "scales", *(["zero_points"] if zero_points else []), *(["bias"] if bias else [])]

    def body(op: OpBuilder, x: ir.Value, weight: ir.Value, scales: ir.Value, *optional: ir.Value) -> ir.Value:
        given = dict(zip(names[3:], optional, strict=True))
        if ops_profile is OpsProfile.CUSTOM:
            return matmul_nbits(
                op,
                x,
                weight,
                scales,
                given.get("zero_points"),
                bias=given.get("bias"),
                activation_bits=activation_bits,
                activations=activations,
                rows=ir.RefAttr("N", "N", ir.AttributeType.INT),
                columns=ir.RefAttr("K", "K", ir.AttributeType.INT),
            )
        values = dequantize(op, weight, scales, given.get("zero_points"), BlockSize.of_function(op))
        values = first_columns(op, values, "K")
        y = op.MatMul(x, op.Transpose(values, perm=[1, 0]))
        result: ir.Value = op.Add(y, given["bias"]) if bias else y
        return result

    inputs = [float_input("x", activations), *weight_inputs("weight", "scales", "zero_points" if zero_points else None)]
    if bias:
        inputs.append(float_input("bias"))
    return build_function(
        body,
        inputs,
        domain=domain_of(activations),
        name="QLinear",
        attributes=int_attributes("K", "N", "bits", "block_size", "activation_bits"),
        opset_imports=ops_profile.opset_imports(),
    )


def matmul_nbits(
    op: OpBuilder,
    x: ir.Value,
    weight: ir.Value,
    scales: ir.Value,
    zero_points: ir.Value | None,
    *,
    activation_bits: int,
    rows: int | ir.Attr,
    columns: int | ir.Attr,
    bias: ir.Value | None = None,
    activations: ir.DataType = FLOAT,
) -> ir.Value:
    """x W^T (+ bias) by com.microsoft.MatMulNBits, in a function with the attributes ``bits`` and ``block_size``."""
    # It takes the scales in the type of x alone.
    scales = op.Cast(scales, to=activations)
    result: ir.Value = op.builder.opset(CONTRIB_DOMAIN, CONTRIB_VERSION).MatMulNBits(
        x,
        weight,
        scales,
        zero_points,
        None,
        bias,
        K=columns,
        N=rows,
        bits=ir.RefAttr("bits", "bits", ir.AttributeType.INT),
        block_size=ir.RefAttr("block_size", "block_size", ir.AttributeType.INT),
        accuracy_level=INT8_ACTIVATIONS if activation_bits == 8 else 0,
    )
    return result
