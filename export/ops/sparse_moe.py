"""ai.liquid::SparseMoE: sigmoid router with selection bias, and the SwiGLU experts that it chooses."""

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
from .sparse_moe_experts import ExpertWeights, Routing, experts_contrib, experts_loop

NORM_EPSILON = 1e-6
"""Added to the sum of the chosen weights before dividing by it."""


def sparse_moe_function(
    *,
    ops_profile: OpsProfile,
    weight_dtype: ir.DataType,
    zero_points: bool = False,
    contrib_experts: bool = True,
    activations: ir.DataType = FLOAT,
) -> ir.Function:
    """The definition of ``SparseMoE`` for experts stored as ``weight_dtype``: float32, float16, or uint8 codes.

    Inputs (H hidden, E experts, M expert width)
        0. ``x`` float32 [.., H].
        1. ``router_weight`` float32 [E, H].
        2. ``expert_bias`` float32 [E]: added for the selection only; zeros where a model has none.
        3. ``gate_up`` T [E, 2*M, H]: rows of w1 (gate) and w3 (up) in turn: row 2m is w1[m], row 2m+1 is w3[m].
        4. ``down`` T [E, H, M]: w2.
       Where T is uint8 the last axis of 3 and 4 holds codes, H*bits/8 and M*bits/8 bytes, and there follow
        5. ``gate_up_scales`` float16 or float32 [E, 2*M, H/block_size]. 6. ``down_scales`` [E, H, M/block_size].
        7. ``gate_up_zero_points`` uint8 [E, 2*M, ceil(H/block_size*bits/8)], optional.
        8. ``down_zero_points`` uint8 [E, H, ceil(M/block_size*bits/8)], optional.
    Outputs
        0. ``y`` float32 [.., H].
    Attributes
        ``top_k`` int: experts per token. ``norm_topk_prob`` int: 1 divides the chosen weights by (their sum + 1e-6).
        ``routed_scaling_factor`` float: multiplies the result.
        ``bits`` int: 32, 16, 8 or 4. ``block_size`` int: 0 for float weights. ``activation_bits`` int: as for QLinear.

    Formula::

        s = sigmoid(x @ router_weight^T)                          router in float32
        chosen = the top_k experts by s + expert_bias             ties: the lower index first
        w = s[chosen]; if norm_topk_prob: w = w / (sum(w) + 1e-6)
        y = routed_scaling_factor * sum over chosen e of w[e] * down[e] @ (silu(w1[e] @ x) * (w3[e] @ x))

    Both bodies read only the chosen experts' weights, and neither copies weights per token. The custom one calls
    com.microsoft.MoE or QMoE, which take a softmax of the router's logits: they get log(s) at the chosen experts, whose
    softmax is s / sum(s), and the result is multiplied by what that differs from w. The standard one loops over the
    experts that at least one token has chosen; ``contrib_experts`` False puts that loop into the custom body, too.
    """
    quantized = weight_dtype == ir.DataType.UINT8
    experts = experts_contrib if ops_profile is OpsProfile.CUSTOM and contrib_experts else experts_loop

    def body(
        op: OpBuilder,
        x: ir.Value,
        router_weight: ir.Value,
        expert_bias: ir.Value,
        gate_up: ir.Value,
        down: ir.Value,
        *quantization: ir.Value,
    ) -> ir.Value:
        shape = op.Shape(x)
        x = op.Reshape(x, op.Concat([-1], op.Shape(router_weight, start=1), axis=0))
        # 1 / (1 + exp(-logit)) in steps: ONNX Runtime's Sigmoid loses small scores (it gives 0 below -18), which then
        # tie, and which dividing by their sum would bring back.
        wide = in_float32(op, x, activations)
        negated = op.Gemm(wide, router_weight, alpha=-1.0, transB=1)
        scores = op.Reciprocal(op.Add(op.Exp(negated), 1.0), _outputs=["scores"])
        weights = ExpertWeights(gate_up, down, weight_dtype, *quantization)
        # A contrib op that computes in float16 takes x as it is.
        half = activations != FLOAT and experts is experts_contrib
        mixed = experts(op, x if half else wide, _route(op, scores, expert_bias), weights, half=half)
        result: ir.Value = op.Reshape(from_float32(op, mixed, activations), shape)
        return result

    weight_type = ir.TensorType(weight_dtype)
    inputs = [
        float_input("x", activations),
        float_input("router_weight"),
        float_input("expert_bias"),
        ir.Value(name="gate_up", type=weight_type),
        ir.Value(name="down", type=weight_type),
    ]
    if quantized:
        inputs += [ir.Value(name="gate_up_scales"), ir.Value(name="down_scales")]
    if zero_points:
        inputs += [ir.Value(name=f"{name}_zero_points", type=weight_type) for name in ("gate_up", "down")]
    return build_function(
        body,
        inputs,
        domain=domain_of(activations),
        name="SparseMoE",
        attributes=[
            *int_attributes("top_k", "norm_topk_prob", "bits", "block_size", "activation_bits"),
            ir.Attr("routed_scaling_factor", ir.AttributeType.FLOAT, None),
        ],
        opset_imports=ops_profile.opset_imports(),
    )


def _route(op: OpBuilder, scores: ir.Value, expert_bias: ir.Value) -> Routing:
    top_k = attribute(op, "top_k")
    _, chosen = op.TopK(
        op.Add(scores, expert_bias), op.Unsqueeze(top_k, [0]), axis=-1, _outputs=["selection_scores", "chosen"]
    )
    chosen_scores = op.GatherElements(scores, chosen, axis=1, _outputs=["chosen_scores"])
    total = op.ReduceSum(chosen_scores, [1], keepdims=1, _outputs=["chosen_sum"])

    normalize = attribute(op, "norm_topk_prob")
    scaling = op.Constant(
        value_float=ir.RefAttr("value_float", "routed_scaling_factor", ir.AttributeType.FLOAT), _outputs=["scaling"]
    )
    divisor = op.Where(op.Cast(normalize, to=ir.DataType.BOOL), op.Add(total, NORM_EPSILON), 1.0)
    return Routing(scores, chosen, chosen_scores, total, op.Div(scaling, divisor))
