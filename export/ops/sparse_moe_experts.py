"""The experts' part of SparseMoE's bodies: com.microsoft.MoE or QMoE, or a loop over the experts in ai.onnx."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder

from .block_codes import BlockSize, dequantize, float_input
from .domain import CONTRIB_DOMAIN, CONTRIB_VERSION

SMALLEST_WEIGHT = 1e-37
"""Keeps the logarithm of a routing weight finite."""

NOT_CHOSEN = -60000.0
"""Router logit of an expert that was not chosen: finite in float16, and exp of it is 0."""


@dataclass(frozen=True)
class Routing:
    """What the router decided for N tokens and E experts."""

    scores: ir.Value  # float32 [N, E]
    chosen: ir.Value  # int64 [N, top_k]
    chosen_scores: ir.Value  # float32 [N, top_k], before any normalization
    sum: ir.Value  # float32 [N, 1], sum of the chosen scores
    factor: ir.Value  # float32 [N, 1], what a chosen score is multiplied by


@dataclass(frozen=True)
class ExpertWeights:
    """The experts' matrices as inputs of the function: float32, float16, or codes with scales and zero points."""

    gate_up: ir.Value
    down: ir.Value
    dtype: ir.DataType
    gate_up_scales: ir.Value | None = None
    down_scales: ir.Value | None = None
    gate_up_zero_points: ir.Value | None = None
    down_zero_points: ir.Value | None = None

    @property
    def half(self) -> bool:
        """Whether the matrices are float16."""
        return self.dtype == ir.DataType.FLOAT16


def experts_contrib(
    op: OpBuilder, x: ir.Value, routing: Routing, weights: ExpertWeights, *, half: bool = False
) -> ir.Value:
    """By one contrib op, whose softmax of the logits log(s) at the chosen experts is s / sum(s); float32.

    half: x is float16.
    """
    logits = op.ScatterElements(
        op.Expand(NOT_CHOSEN, op.Shape(routing.scores)),
        routing.chosen,
        op.Log(op.Max(routing.chosen_scores, SMALLEST_WEIGHT)),
        axis=1,
        _outputs=["logits"],
    )
    if half:
        logits = op.Cast(logits, to=ir.DataType.FLOAT16)
    elif weights.half:
        x, logits = op.Cast(x, to=weights.dtype), op.Cast(logits, to=weights.dtype)
    contrib = op.builder.opset(CONTRIB_DOMAIN, CONTRIB_VERSION)
    shared = {
        "k": ir.RefAttr("k", "top_k", ir.AttributeType.INT),
        "activation_type": "swiglu",
        "swiglu_fusion": 1,
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
        "normalize_routing_weights": 1,
        "_outputs": ["mixed"],
    }
    if weights.gate_up_scales is None:
        mixed = contrib.MoE(x, logits, weights.gate_up, None, weights.down, **shared)
    else:
        quantized = [x, logits, weights.gate_up, weights.gate_up_scales, None, weights.down, weights.down_scales]
        if weights.gate_up_zero_points is not None:
            quantized += [None, None, None, None, weights.gate_up_zero_points, weights.down_zero_points]
        mixed = contrib.QMoE(
            *quantized,
            expert_weight_bits=ir.RefAttr("expert_weight_bits", "bits", ir.AttributeType.INT),
            block_size=ir.RefAttr("block_size", "block_size", ir.AttributeType.INT),
            **shared,
        )
    if weights.half or half:
        mixed = op.Cast(mixed, to=ir.DataType.FLOAT)
    result: ir.Value = op.Mul(mixed, op.Mul(routing.sum, routing.factor))
    return result


def experts_loop(
    op: OpBuilder, x: ir.Value, routing: Routing, weights: ExpertWeights, *, half: bool = False
) -> ir.Value:
    """One step for each expert that at least one token has chosen, over those tokens alone; x is float32."""
    assert not half
    zeros = op.Expand(0.0, op.Shape(routing.scores))
    shares = op.ScatterElements(
        zeros, routing.chosen, op.Mul(routing.chosen_scores, routing.factor), axis=1, _outputs=["shares"]
    )
    used = op.ScatterElements(zeros, routing.chosen, op.Expand(1.0, op.Shape(routing.chosen)), axis=1)
    used_by_expert = op.Transpose(used, perm=[1, 0], _outputs=["used_by_expert"])
    active = op.Squeeze(op.NonZero(op.ReduceMax(used_by_expert, [1], keepdims=0)), [0], _outputs=["active"])
    size = BlockSize.of_function(op) if weights.gate_up_scales is not None else None

    def matrix(
        op: OpBuilder, expert: ir.Value, values: ir.Value, scales: ir.Value | None, zero_points: ir.Value | None
    ) -> ir.Value:
        own = op.Gather(values, expert, axis=0)
        if scales is None or size is None:
            result: ir.Value = own
            return result
        own_zeros = None if zero_points is None else op.Gather(zero_points, expert, axis=0)
        return dequantize(op, own, op.Gather(scales, expert, axis=0), own_zeros, size)

    def one_expert(op: OpBuilder, step: ir.Value, go_on: ir.Value, y_in: ir.Value) -> tuple[ir.Value, ir.Value]:
        # Generated names must differ from those outside: ONNX has one scope for both.
        op.builder.push_module("one_expert")
        expert = op.Gather(active, step, axis=0)
        tokens = op.Squeeze(op.NonZero(op.Gather(used_by_expert, expert, axis=0)), [0])
        inputs = op.Gather(x, tokens, axis=0)
        if weights.half:
            inputs = op.Cast(inputs, to=weights.dtype)
        w13 = matrix(op, expert, weights.gate_up, weights.gate_up_scales, weights.gate_up_zero_points)
        pairs = op.Reshape(op.Gemm(inputs, w13, transB=1), [0, -1, 2])
        gate, up = op.Split(pairs, axis=2, num_outputs=2, _outputs=["gate", "up"])
        hidden = op.Squeeze(op.Mul(op.Mul(gate, op.Sigmoid(gate)), up), [2])
        w2 = matrix(op, expert, weights.down, weights.down_scales, weights.down_zero_points)
        result = op.Gemm(hidden, w2, transB=1)
        if weights.half:
            result = op.Cast(result, to=ir.DataType.FLOAT)
        share = op.Gather(op.Gather(shares, tokens, axis=0), op.Unsqueeze(expert, [0]), axis=1)
        # A token is in ``tokens`` once, so no reduction="add" is needed; OpenVINO does not take that.
        total = op.Add(op.Gather(y_in, tokens, axis=0), op.Mul(result, share))
        y_out = op.ScatterND(y_in, op.Unsqueeze(tokens, [1]), total)
        go_on = op.Identity(go_on)
        op.builder.pop_module()
        return go_on, y_out

    loop_body = op.builder.subgraph(
        one_expert,
        inputs=[
            ir.Value(name="step", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64)),
            ir.Value(name="go_on", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL)),
            float_input("y_in"),
        ],
        outputs=[
            ir.Value(name="go_on_out", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL)),
            float_input("y_out"),
        ],
        name="one_expert",
    )
    result: ir.Value = op.Loop(op.Size(active), True, op.Expand(0.0, op.Shape(x)), body=loop_body, _outputs=["y"])
    return result
