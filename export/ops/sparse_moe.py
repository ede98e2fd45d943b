"""ai.liquid::SparseMoE: sigmoid router with selection bias, and the SwiGLU experts that it chooses."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from .domain import CONTRIB_DOMAIN, CONTRIB_VERSION, DOMAIN, BodyStyle

NORM_EPSILON = 1e-6
"""Added to the sum of the chosen weights before dividing by it."""

SMALLEST_WEIGHT = 1e-37
"""Keeps the logarithm of a routing weight finite."""

NOT_CHOSEN = -60000.0
"""Router logit of an expert that was not chosen: finite in float16, and exp of it is 0."""


def sparse_moe_function(*, style: BodyStyle, weight_dtype: ir.DataType) -> ir.Function:
    """The definition of ``SparseMoE``.

    Inputs (N tokens, H hidden, E experts, M expert width)
        0. ``x`` float32 [N, H].
        1. ``router_weight`` float32 [E, H].
        2. ``expert_bias`` float32 [E]: added for the selection only; zeros where a model has none.
        3. ``gate_up`` T [E, 2*M, H]: rows of w1 (gate) and w3 (up) in turn: row 2m is w1[m], row 2m+1 is w3[m].
        4. ``down`` T [E, H, M]: w2.
    Outputs
        0. ``y`` float32 [N, H].
    Attributes
        ``top_k`` int: experts per token. ``norm_topk_prob`` int: 1 divides the chosen weights by (their sum + 1e-6).
        ``routed_scaling_factor`` float: multiplies the result.
    T is float32 or float16.

    Formula::

        s = sigmoid(x @ router_weight^T)                          router in float32
        chosen = the top_k experts by s + expert_bias             ties: the lower index first
        w = s[chosen]; if norm_topk_prob: w = w / (sum(w) + 1e-6)
        y = routed_scaling_factor * sum over chosen e of w[e] * down[e] @ (silu(w1[e] @ x) * (w3[e] @ x))

    Both bodies read only the chosen experts' weights, and neither copies weights per token. The custom one calls
    com.microsoft.MoE, which takes a softmax of the router's logits: it gets log(s) at the chosen experts, whose
    softmax is s / sum(s), and the result is multiplied by what that differs from w. The standard one loops over the
    experts that at least one token has chosen.
    """

    half = weight_dtype == ir.DataType.FLOAT16

    def experts_contrib(
        op: OpBuilder, x: ir.Value, scores: ir.Value, routing: _Routing, gate_up: ir.Value, down: ir.Value
    ) -> ir.Value:
        logits = op.ScatterElements(
            op.Expand(NOT_CHOSEN, op.Shape(scores)),
            routing.chosen,
            op.Log(op.Max(routing.chosen_scores, SMALLEST_WEIGHT)),
            axis=1,
            _outputs=["logits"],
        )
        if half:
            x, logits = op.Cast(x, to=weight_dtype), op.Cast(logits, to=weight_dtype)
        mixed = op.builder.opset(CONTRIB_DOMAIN, CONTRIB_VERSION).MoE(
            x,
            logits,
            gate_up,
            None,
            down,
            k=ir.RefAttr("k", "top_k", ir.AttributeType.INT),
            activation_type="swiglu",
            swiglu_fusion=1,
            activation_alpha=1.0,
            activation_beta=0.0,
            normalize_routing_weights=1,
            _outputs=["mixed"],
        )
        if half:
            mixed = op.Cast(mixed, to=ir.DataType.FLOAT)
        return op.Mul(mixed, op.Mul(routing.sum, routing.factor))

    def experts_standard(
        op: OpBuilder, x: ir.Value, scores: ir.Value, routing: _Routing, gate_up: ir.Value, down: ir.Value
    ) -> ir.Value:
        zeros = op.Expand(0.0, op.Shape(scores))
        weights = op.ScatterElements(
            zeros, routing.chosen, op.Mul(routing.chosen_scores, routing.factor), axis=1, _outputs=["weights"]
        )
        used = op.ScatterElements(zeros, routing.chosen, op.Expand(1.0, op.Shape(routing.chosen)), axis=1)
        used_by_expert = op.Transpose(used, perm=[1, 0], _outputs=["used_by_expert"])
        active = op.Squeeze(op.NonZero(op.ReduceMax(used_by_expert, [1], keepdims=0)), [0], _outputs=["active"])

        def one_expert(op: OpBuilder, step: ir.Value, _: ir.Value, y_in: ir.Value) -> tuple[ir.Value, ir.Value]:
            expert = op.Gather(active, step, axis=0)
            tokens = op.Squeeze(op.NonZero(op.Gather(used_by_expert, expert, axis=0)), [0])
            inputs = op.Gather(x, tokens, axis=0)
            if half:
                inputs = op.Cast(inputs, to=weight_dtype)
            gate_and_up = op.Gemm(inputs, op.Gather(gate_up, expert, axis=0), transB=1)
            pairs = op.Reshape(gate_and_up, [0, -1, 2])
            gate, up = op.Split(pairs, axis=2, num_outputs=2, _outputs=["gate", "up"])
            hidden = op.Squeeze(op.Mul(op.Mul(gate, op.Sigmoid(gate)), up), [2])
            result = op.Gemm(hidden, op.Gather(down, expert, axis=0), transB=1)
            if half:
                result = op.Cast(result, to=ir.DataType.FLOAT)
            share = op.Gather(op.Gather(weights, tokens, axis=0), op.Unsqueeze(expert, [0]), axis=1)
            y_out = op.ScatterND(y_in, op.Unsqueeze(tokens, [1]), op.Mul(result, share), reduction="add")
            return op.Identity(_), y_out

        loop_body = op.builder.subgraph(
            one_expert,
            inputs=[
                ir.Value(name="step", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64)),
                ir.Value(name="go_on", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL)),
                _float("y_in"),
            ],
            outputs=[
                ir.Value(name="go_on_out", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL)),
                _float("y_out"),
            ],
            name="one_expert",
        )
        return op.Loop(op.Size(active), True, op.Expand(0.0, op.Shape(x)), body=loop_body, _outputs=["y"])

    def body(
        op: OpBuilder,
        x: ir.Value,
        router_weight: ir.Value,
        expert_bias: ir.Value,
        gate_up: ir.Value,
        down: ir.Value,
    ) -> ir.Value:
        # 1 / (1 + exp(-logit)) in steps: ONNX Runtime's Sigmoid loses small scores (it gives 0 below -18), which then
        # tie, and which dividing by their sum would bring back.
        negated = op.Gemm(x, router_weight, alpha=-1.0, transB=1)
        scores = op.Reciprocal(op.Add(op.Exp(negated), 1.0), _outputs=["scores"])
        routing = _route(op, scores, expert_bias)
        experts = experts_contrib if style is BodyStyle.CUSTOM else experts_standard
        return experts(op, x, scores, routing, gate_up, down)

    return build_function(
        body,
        [
            _float("x"),
            _float("router_weight"),
            _float("expert_bias"),
            ir.Value(name="gate_up", type=ir.TensorType(weight_dtype)),
            ir.Value(name="down", type=ir.TensorType(weight_dtype)),
        ],
        domain=DOMAIN,
        name="SparseMoE",
        attributes=[
            ir.Attr("top_k", ir.AttributeType.INT, None),
            ir.Attr("norm_topk_prob", ir.AttributeType.INT, None),
            ir.Attr("routed_scaling_factor", ir.AttributeType.FLOAT, None),
        ],
        opset_imports=style.opset_imports(),
    )


@dataclass(frozen=True)
class _Routing:
    """What the router decided for N tokens."""

    chosen: ir.Value  # int64 [N, top_k]
    chosen_scores: ir.Value  # float32 [N, top_k], before any normalization
    sum: ir.Value  # float32 [N, 1], sum of the chosen scores
    factor: ir.Value  # float32 [N, 1], what a chosen score is multiplied by


def _route(op: OpBuilder, scores: ir.Value, expert_bias: ir.Value) -> _Routing:
    top_k = op.Constant(value_int=ir.RefAttr("value_int", "top_k", ir.AttributeType.INT))
    _, chosen = op.TopK(
        op.Add(scores, expert_bias), op.Unsqueeze(top_k, [0]), axis=-1, _outputs=["selection_scores", "chosen"]
    )
    chosen_scores = op.GatherElements(scores, chosen, axis=1, _outputs=["chosen_scores"])
    total = op.ReduceSum(chosen_scores, [1], keepdims=1, _outputs=["chosen_sum"])

    normalize = op.Constant(value_int=ir.RefAttr("value_int", "norm_topk_prob", ir.AttributeType.INT))
    scaling = op.Constant(
        value_float=ir.RefAttr("value_float", "routed_scaling_factor", ir.AttributeType.FLOAT), _outputs=["scaling"]
    )
    divisor = op.Where(op.Cast(normalize, to=ir.DataType.BOOL), op.Add(total, NORM_EPSILON), 1.0)
    return _Routing(chosen, chosen_scores, total, op.Div(scaling, divisor))


def _float(name: str) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
