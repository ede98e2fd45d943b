"""The model's blocks as onnxscript modules: each declares its weights and emits its part of the graph.

Activations between blocks are [batch * sequence, hidden] in models of float weights, whose linear layers are Gemm nodes
on two-dimensional tensors, and [batch, sequence, hidden] in quantized ones; a block that mixes tokens over time
reshapes on entry and exit where it must. Weights keep the checkpoint's [out, in] layout (Gemm with transB), so nothing
is transposed on its way into the file.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from ..artifact.formats import BlockFormat
from ..artifact.graph_weights import GraphWeight, Layout
from ..checkpoint.config import LfmConfig
from .graph_context import GraphContext
from .weight_parameters import (
    WeightFormat,
    WeightParameter,
    WeightParameters,
    WeightScope,
    declare_weight,
    format_attributes,
)

FLOAT = ir.DataType.FLOAT


class Linear(nn.Module):
    """y = x W^T + b, computed in the weight's precision; x and y are float32 [.., ·].

    sources: the tensors whose rows W has below one another, by their full names; None: the one of W's own name.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scope: WeightScope,
        *,
        sources: Sequence[str] | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.size = (out_features, in_features)
        self.format = scope.format()
        weight = scope.weight("weight", self.size, sources=sources, group=scope.path)
        self.parameters_of_weight = declare_weight(self, "weight", weight, self.format)
        bias_dtype = FLOAT if isinstance(self.format, BlockFormat) else self.format
        self.bias = scope.vector("bias", out_features, bias_dtype) if bias else None

    def forward(self, op: OpBuilder, x: ir.Value, context: GraphContext) -> ir.Value:
        """[.., in] → [.., out]: Gemm in the weight's type, or ``ai.liquid::QLinear``."""
        return linear(op, x, self.parameters_of_weight, self.size, self.format, context, self.bias)


def linear(
    op: OpBuilder,
    x: ir.Value,
    weight: WeightParameters,
    size: tuple[int, int],
    fmt: WeightFormat,
    context: GraphContext,
    bias: nn.Parameter | None = None,
) -> ir.Value:
    """x W^T + b for a weight of ``size`` (out, in): Gemm in the weight's type, or ``ai.liquid::QLinear``."""
    if isinstance(fmt, BlockFormat):
        assert context.functions.quantized is not None
        inputs = [x, weight.values, weight.scales, *([weight.zero_points] if weight.zero_points is not None else [])]
        attributes = {"K": size[1], "N": size[0], **format_attributes(fmt)}
        y = op.call(context.functions.quantized.qlinear, *inputs, **attributes)
        y.type = ir.TensorType(context.activations)
        result: ir.Value = y if bias is None else op.Add(y, as_activations(op, bias, context.activations))
        return result
    added = [] if bias is None else [bias]  # not an empty name in its place: OpenVINO does not take that
    if fmt == FLOAT:
        result = op.Gemm(x, weight.values, *added, transB=1)
        return result
    result = op.Cast(op.Gemm(op.Cast(x, to=fmt), weight.values, *added, transB=1), to=FLOAT)
    return result


def as_activations(op: OpBuilder, parameter: ir.Value, activations: ir.DataType) -> ir.Value:
    """A float32 parameter in the type that activations have; a runtime casts it once, when it loads the model."""
    return parameter if activations == FLOAT else op.Cast(parameter, to=activations)


class NormWeight(nn.Module):
    """The weight of an RMSNorm that another node computes."""

    def __init__(self, size: int, scope: WeightScope) -> None:
        super().__init__()
        self.weight = scope.vector("weight", size)

    def forward(self, op: OpBuilder) -> ir.Value:
        """The weight [size] itself, as an input of that node."""
        return self.weight


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in the form that ONNX Runtime fuses to one kernel."""

    def __init__(self, size: int, eps: float, scope: WeightScope) -> None:
        super().__init__()
        self.weight = scope.vector("weight", size)
        self.eps = eps

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        """Values of x [.., size], normalized and scaled, in the same shape."""
        mean_square = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
        result: ir.Value = op.Mul(op.Div(x, op.Sqrt(op.Add(mean_square, self.eps))), self.weight)
        return result


class AddRMSNorm(RMSNorm):
    """The residual stream's step: total = residual + delta, and its RMSNorm."""

    def forward(  # type: ignore[override]
        self, op: OpBuilder, residual: ir.Value, delta: ir.Value | None, context: GraphContext
    ) -> tuple[ir.Value, ir.Value]:
        """(total, norm(total)); without a delta the residual itself is the total."""
        half = context.activations != FLOAT
        if delta is None and half:
            # The mean of squares is beyond float16 long before the values are.
            normed = op.Cast(super().forward(op, op.Cast(residual, to=FLOAT)), to=context.activations)
            return residual, normed
        if delta is None:
            return residual, super().forward(op, residual)
        if context.contrib is None:
            total = op.Add(residual, delta)
            return total, super().forward(op, total)
        normed, _, _, total = context.contrib.SkipSimplifiedLayerNormalization(
            delta, residual, as_activations(op, self.weight, context.activations), epsilon=self.eps, _outputs=4
        )
        normed.type = total.type = ir.TensorType(context.activations)
        return total, normed


class MLP(nn.Module):
    """SwiGLU in float weights: w2(silu(w1 x) * w3 x)."""

    def __init__(self, hidden: int, width: int, scope: WeightScope) -> None:
        super().__init__()
        self.w1 = Linear(hidden, width, scope.scope("w1"))
        self.w2 = Linear(width, hidden, scope.scope("w2"))
        self.w3 = Linear(hidden, width, scope.scope("w3"))

    def forward(self, op: OpBuilder, x: ir.Value, context: GraphContext) -> ir.Value:
        """[B*S, hidden] → [B*S, hidden], float32."""
        gate = self.w1(op, x, context)
        result: ir.Value = self.w2(op, op.Mul(op.Mul(gate, op.Sigmoid(gate)), self.w3(op, x, context)), context)
        return result


class QuantizedMLP(nn.Module):
    """The same as one ``ai.liquid::SwiGLU`` node; rows of w1 and w3 in turn, as in the experts."""

    def __init__(self, hidden: int, width: int, scope: WeightScope) -> None:
        super().__init__()
        self.hidden, self.width, self.format = hidden, width, scope.format()
        w1, w2, w3 = (scope.name(f"{matrix}.weight") for matrix in ("w1", "w2", "w3"))
        gate_up = scope.weight(
            "gate_up.weight", (2 * width, hidden), sources=(w1, w3), layout=Layout.PAIRS, group=scope.path
        )
        down = scope.weight("down.weight", (hidden, width), sources=(w2,), group=scope.path)
        self.w13 = declare_weight(self, "gate_up.weight", gate_up, self.format)
        self.w2 = declare_weight(self, "down.weight", down, self.format)

    def forward(self, op: OpBuilder, x: ir.Value, context: GraphContext) -> ir.Value:
        """[B, S, hidden] → [B, S, hidden] in the activations' type."""
        assert context.functions.quantized is not None
        attributes = {"K": self.hidden, "F": self.width, **format_attributes(self.format)}
        y = op.call(context.functions.quantized.swiglu, x, *_two_weights(self.w13, self.w2), **attributes)
        y.type = ir.TensorType(context.activations)
        result: ir.Value = y
        return result


class SparseMoE(nn.Module):
    """Router and experts as one ``ai.liquid::SparseMoE`` node."""

    def __init__(self, config: LfmConfig, scope: WeightScope) -> None:
        super().__init__()
        self.config = config
        self.format = scope.format("experts")
        experts, hidden, width = config.num_experts, config.hidden_size, config.moe_intermediate_size
        gate = scope.weight("gate.weight", (experts, hidden))
        self.gate = WeightParameter(gate, "gate.weight", FLOAT)
        self.expert_bias = WeightParameter(_expert_bias(config, scope), "expert_bias", FLOAT)
        group = scope.name("experts")
        pairs = [f"{group}.{expert}.{matrix}.weight" for expert in range(experts) for matrix in ("w1", "w3")]
        gate_up = scope.weight(
            "experts.gate_up",
            (experts, 2 * width, hidden),
            sources=pairs,
            layout=Layout.PAIRS,
            group=group,
            common_input=gate.name,
        )
        downs = [f"{group}.{expert}.w2.weight" for expert in range(experts)]
        down = scope.weight("experts.down_proj", (experts, hidden, width), sources=downs, group=group)
        self.gate_up = declare_weight(self, "experts.gate_up", gate_up, self.format)
        self.down = declare_weight(self, "experts.down_proj", down, self.format)

    def forward(self, op: OpBuilder, x: ir.Value, context: GraphContext) -> ir.Value:
        """The weighted sum of the chosen experts' results, in the shape of x and the activations' type."""
        config = self.config
        y = op.call(
            context.functions.sparse_moe,
            x,
            self.gate,
            self.expert_bias,
            *_two_weights(self.gate_up, self.down),
            top_k=config.num_experts_per_tok,
            norm_topk_prob=int(config.norm_topk_prob),
            routed_scaling_factor=float(config.routed_scaling_factor),
            **format_attributes(self.format),
        )
        y.type = ir.TensorType(context.activations)
        result: ir.Value = y
        return result


def _expert_bias(config: LfmConfig, scope: WeightScope) -> GraphWeight:
    """Zeros where the model has none: the node always takes it."""
    size = (config.num_experts,)
    if config.use_expert_bias:
        return scope.weight("expert_bias", size)
    return scope.weight("expert_bias", size, sources=(), layout=Layout.ZEROS)


def _two_weights(first: WeightParameters, second: WeightParameters) -> list[nn.Parameter]:
    """The inputs of an op with two weights: values, then scales, then zero points, as far as there are any."""
    pairs = (
        (first.values, second.values),
        (first.scales, second.scales),
        (first.zero_points, second.zero_points),
    )
    return [parameter for pair in pairs for parameter in pair if parameter is not None]


class Convolution(nn.Module):
    """The depthwise kernel of a short convolution, one row per tap: [L, hidden]."""

    def __init__(self, config: LfmConfig, scope: WeightScope) -> None:
        super().__init__()
        kernel = scope.weight("weight", (config.conv_L_cache, config.hidden_size), layout=Layout.TAPS)
        self.weight = WeightParameter(kernel, "weight", FLOAT)
        self.bias = scope.vector("bias", config.hidden_size) if config.conv_bias else None

    def forward(
        self, op: OpBuilder, bcx: ir.Value, context: GraphContext, past_conv: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """(y [B, S, hidden], present state [B, hidden, L]) from ``bcx`` [B, S, 3*hidden]: B, C and x side by side."""
        inputs = [bcx, self.weight, context.mask, past_conv]
        if self.bias is not None:
            inputs.append(self.bias)
        y, present = op.call(context.functions.gated_short_conv, *inputs)
        y.type = present.type = ir.TensorType(context.activations)
        return y, present


class ShortConv(nn.Module):
    """Projection to B, C, x; ``ai.liquid::GatedShortConv``; output projection."""

    def __init__(self, config: LfmConfig, scope: WeightScope) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.conv_bias
        self.hidden = hidden
        self.in_proj = Linear(hidden, 3 * hidden, scope.scope("in_proj"), bias=bias)
        self.conv = Convolution(config, scope.scope("conv"))
        self.out_proj = Linear(hidden, hidden, scope.scope("out_proj"), bias=bias)

    def forward(
        self, op: OpBuilder, x: ir.Value, context: GraphContext, past_conv: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        """(y in the shape of x, present state [B, hidden, L]) from the past state ``past_conv`` [B, hidden, L]."""
        bcx = context.by_row(op, self.in_proj(op, x, context), 3 * self.hidden)
        y, present = self.conv(op, bcx, context, past_conv)
        return self.out_proj(op, context.between_blocks(op, y, self.hidden), context), present
