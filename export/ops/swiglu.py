"""ai.liquid::SwiGLU: the dense feed-forward block, with quantized weights."""

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
)
from .domain import OpsProfile, domain_of
from .qlinear import matmul_nbits

LAST = 2**62
"""A slice end beyond every axis."""


def swiglu_function(
    *,
    ops_profile: OpsProfile,
    columns: int,
    width: int,
    zero_points: bool,
    activation_bits: int,
    activations: ir.DataType = FLOAT,
) -> ir.Function:
    """The definition of ``SwiGLU`` for a block of ``columns`` (K) inputs and outputs and an inner ``width`` (F).

    Inputs
        0. ``x`` float32 [.., K].
        1. ``gate_up`` uint8 [2*F, ceil(K/block_size), block_size*bits/8]: rows of w1 (gate) and w3 (up) in turn.
        2. ``down`` uint8 [K, ceil(F/block_size), block_size*bits/8]: w2.
        3. ``gate_up_scales`` float16 or float32 [2*F, ceil(K/block_size)].
        4. ``down_scales`` float16 or float32 [K, ceil(F/block_size)].
        5. ``gate_up_zero_points`` uint8, optional. 6. ``down_zero_points`` uint8, optional.
    Outputs
        0. ``y`` float32 [.., K].
    Attributes (all int)
        ``K``, ``F``, ``bits``, ``block_size``, ``activation_bits``, as those of QLinear.

    Formula: y = w2 @ (silu(w1 @ x) * (w3 @ x)), silu(z) = z * sigmoid(z). Layouts are those of QLinear.
    """

    def body(
        op: OpBuilder,
        x: ir.Value,
        gate_up: ir.Value,
        down: ir.Value,
        gate_up_scales: ir.Value,
        down_scales: ir.Value,
        *zeros: ir.Value,
    ) -> ir.Value:
        gate_up_zeros, down_zeros = zeros or (None, None)
        if ops_profile is OpsProfile.CUSTOM:
            pairs = matmul_nbits(
                op,
                x,
                gate_up,
                gate_up_scales,
                gate_up_zeros,
                activation_bits=activation_bits,
                activations=activations,
                rows=2 * width,
                columns=ir.RefAttr("K", "K", ir.AttributeType.INT),
            )
            return matmul_nbits(
                op,
                gated(op, pairs),
                down,
                down_scales,
                down_zeros,
                activation_bits=activation_bits,
                activations=activations,
                rows=columns,
                columns=ir.RefAttr("K", "F", ir.AttributeType.INT),
            )
        size = BlockSize.of_function(op)
        w13 = first_columns(op, dequantize(op, gate_up, gate_up_scales, gate_up_zeros, size), "K")
        w2 = first_columns(op, dequantize(op, down, down_scales, down_zeros, size), "F")
        hidden = gated(op, op.MatMul(x, op.Transpose(w13, perm=[1, 0])))
        result: ir.Value = op.MatMul(hidden, op.Transpose(w2, perm=[1, 0]))
        return result

    uint8 = ir.TensorType(ir.DataType.UINT8)
    inputs = [
        float_input("x", activations),
        ir.Value(name="gate_up", type=uint8),
        ir.Value(name="down", type=uint8),
        ir.Value(name="gate_up_scales"),
        ir.Value(name="down_scales"),
    ]
    if zero_points:
        inputs += [ir.Value(name="gate_up_zero_points", type=uint8), ir.Value(name="down_zero_points", type=uint8)]
    return build_function(
        body,
        inputs,
        domain=domain_of(activations),
        name="SwiGLU",
        attributes=int_attributes("K", "F", "bits", "block_size", "activation_bits"),
        opset_imports=ops_profile.opset_imports(),
    )


def gated(op: OpBuilder, pairs: ir.Value) -> ir.Value:
    """[.., 2*F], gate and up in turn → silu(gate) * up, [.., F]."""
    gate = op.Slice(pairs, [0], [LAST], [-1], [2], _outputs=["gate"])
    up = op.Slice(pairs, [1], [LAST], [-1], [2], _outputs=["up"])
    result: ir.Value = op.Mul(op.Mul(gate, op.Sigmoid(gate)), up)
    return result
