"""ai.liquid::GroupQueryAttention: attention over a KV cache, which it extends, with rotary positions."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from .block_codes import FLOAT, float_input, int_attributes
from .domain import CONTRIB_DOMAIN, CONTRIB_VERSION, OpsProfile, domain_of


def group_query_attention_function(*, activations: ir.DataType = FLOAT) -> ir.Function:
    """The definition of ``GroupQueryAttention``, G = num_heads / kv_num_heads, D = head_dim, a multiple of 16.

    Inputs
        0. ``query`` float32 [batch, S, num_heads * D].
        1. ``key`` and 2. ``value`` float32 [batch, S, kv_num_heads * D].
        3. ``past_key`` and 4. ``past_value`` float32 [batch, kv_num_heads, P, D]: a row's tokens from column 0 on.
        5. ``seqlens_k`` int32 [batch]: the row's tokens after this call, less one; it has had
           max(seqlens_k + 1 - S, 0) of them before.
        6. ``total_sequence_length`` int32 scalar T: P + S, or at most P where the past has room for the new tokens.
        7. ``cos_cache`` and 8. ``sin_cache`` float32 [positions, D/2], where do_rotary.
    Outputs
        0. ``output`` float32 [batch, S, num_heads * D].
        1. ``present_key`` and 2. ``present_value`` float32 [batch, kv_num_heads, max(P, T), D]: the row's past, its S
           new columns (keys rotated), zeros. A buffer may be past and present at once: then what stands behind the
           new columns stays as it was.
    Attributes
        ``num_heads``, ``kv_num_heads`` and ``do_rotary`` int; ``scale`` float, 0 for 1 / sqrt(D).

    Formula: head h of the query at position p: softmax over the columns c <= p of (scale * rot_p(q) . k_c), times v_c,
    with K and V of head h // G; rot_p of (x1, x2), the halves of a head, is (x1 cos_p - x2 sin_p, x2 cos_p + x1 sin_p).

    The body is the one com.microsoft operator with that meaning, so that there is no standard profile.
    """
    names = ("query", "key", "value", "past_key", "past_value")
    sizes = [ir.Value(name=name, type=ir.TensorType(ir.DataType.INT32)) for name in _SIZES]

    def body(op: OpBuilder, *inputs: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        result: tuple[ir.Value, ir.Value, ir.Value] = op.builder.opset(
            CONTRIB_DOMAIN, CONTRIB_VERSION
        ).GroupQueryAttention(
            *inputs,
            **{name: ir.RefAttr(name, name, ir.AttributeType.INT) for name in _INTEGERS},
            scale=ir.RefAttr("scale", "scale", ir.AttributeType.FLOAT),
            rotary_interleaved=0,
            _outputs=["output", "present_key", "present_value"],
        )
        return result

    return build_function(
        body,
        [
            *(float_input(name, activations) for name in names),
            *sizes,
            *(float_input(name, activations) for name in ("cos_cache", "sin_cache")),
        ],
        domain=domain_of(activations),
        name="GroupQueryAttention",
        attributes=[*int_attributes(*_INTEGERS), ir.Attr("scale", ir.AttributeType.FLOAT, None)],
        opset_imports=OpsProfile.CUSTOM.opset_imports(),
    )


_SIZES = ("seqlens_k", "total_sequence_length")
_INTEGERS = ("num_heads", "kv_num_heads", "do_rotary")
