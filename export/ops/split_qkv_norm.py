"""ai.liquid::SplitQKVNorm: attention's joint projection cut into queries and keys, normed per head, and values."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from .block_codes import (
    FLOAT,
    attribute,
    float_input,
    from_float32,
    in_float32,
    int_attributes,
)
from .domain import OpsProfile, domain_of


def split_qkv_norm_function(*, ops_profile: OpsProfile, activations: ir.DataType = FLOAT) -> ir.Function:
    """The definition of ``SplitQKVNorm``.

    Inputs
        0. ``qkv`` float32 [.., (num_heads + 2*kv_num_heads) * D].
        1. ``q_weight`` float32 [D]. 2. ``k_weight`` float32 [D].
    Outputs
        0. ``q`` float32 [.., num_heads * D]. 1. ``k`` and 2. ``v`` float32 [.., kv_num_heads * D].
    Attributes
        ``num_heads`` int, ``kv_num_heads`` int, ``epsilon`` float.

    Formula: q and k of each head are z / sqrt(mean(z^2) + epsilon) * weight; v is as it came.
    """

    def body(
        op: OpBuilder, qkv: ir.Value, q_weight: ir.Value, k_weight: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        epsilon = op.Constant(value_float=ir.RefAttr("value_float", "epsilon", ir.AttributeType.FLOAT))
        size = op.Shape(q_weight)
        heads = op.Unsqueeze(attribute(op, "num_heads"), [0])
        kv_heads = op.Unsqueeze(attribute(op, "kv_num_heads"), [0])
        widths = op.Mul(op.Concat(heads, kv_heads, kv_heads, axis=0), size)
        q, k, v = op.Split(qkv, widths, axis=-1, _outputs=["q_flat", "k_flat", "v"])
        by_head = op.Concat(op.Shape(qkv, start=0, end=-1), [-1], size, axis=0)

        def normed(x: ir.Value, weight: ir.Value, width: ir.Value) -> ir.Value:
            x = in_float32(op, op.Reshape(x, by_head), activations)
            mean_square = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
            y = op.Mul(op.Div(x, op.Sqrt(op.Add(mean_square, epsilon))), weight)
            y = from_float32(op, y, activations)
            result: ir.Value = op.Reshape(y, op.Concat(op.Shape(qkv, start=0, end=-1), width, axis=0))
            return result

        return normed(q, q_weight, op.Mul(heads, size)), normed(k, k_weight, op.Mul(kv_heads, size)), v

    return build_function(
        body,
        [float_input("qkv", activations), float_input("q_weight"), float_input("k_weight")],
        domain=domain_of(activations),
        name="SplitQKVNorm",
        attributes=[*int_attributes("num_heads", "kv_num_heads"), ir.Attr("epsilon", ir.AttributeType.FLOAT, None)],
        opset_imports={"": ops_profile.opset_imports()[""]},
    )
