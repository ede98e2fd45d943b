"""The model's blocks as onnxscript modules: each declares its weights and emits its part of the graph.

Tensors between blocks are two-dimensional, [tokens, hidden] with tokens = batch * sequence; a block that mixes tokens
over time reshapes on entry and exit. Linear weights keep the checkpoint's [out, in] layout (Gemm with transB), so
nothing is transposed on its way into the file.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from ..config import LfmConfig
from .graph_context import GraphContext

FLOAT = ir.DataType.FLOAT


class Linear(nn.Module):
    """y = x W^T + b in the weight's precision; x and y are float32 [tokens, ·]."""

    def __init__(self, in_features: int, out_features: int, *, dtype: ir.DataType, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter([out_features, in_features], dtype=dtype)
        self.bias = nn.Parameter([out_features], dtype=dtype) if bias else None

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        return linear(op, x, self.weight, self.bias)


def linear(op: OpBuilder, x: ir.Value, weight: nn.Parameter, bias: nn.Parameter | None = None) -> ir.Value:
    """x W^T + b, computed in the weight's type, float32 outside."""
    dtype = weight.dtype
    if dtype == FLOAT:
        return op.Gemm(x, weight, bias, transB=1)
    assert dtype is not None
    return op.Cast(op.Gemm(op.Cast(x, to=dtype), weight, bias, transB=1), to=FLOAT)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis, in the form that ONNX Runtime fuses to one kernel."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter([size], dtype=FLOAT)
        self.eps = eps

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        mean_square = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
        return op.Mul(op.Div(x, op.Sqrt(op.Add(mean_square, self.eps))), self.weight)


class AddRMSNorm(RMSNorm):
    """The residual stream's step: total = residual + delta, and its RMSNorm."""

    def forward(  # type: ignore[override]
        self, op: OpBuilder, residual: ir.Value, delta: ir.Value | None, context: GraphContext
    ) -> tuple[ir.Value, ir.Value]:
        """(total, norm(total)); without a delta the residual itself is the total."""
        if delta is None:
            return residual, super().forward(op, residual)
        if context.contrib is None:
            total = op.Add(residual, delta)
            return total, super().forward(op, total)
        normed, _, _, total = context.contrib.SkipSimplifiedLayerNormalization(
            delta, residual, self.weight, epsilon=self.eps, _outputs=4
        )
        normed.type = total.type = ir.TensorType(FLOAT)
        return total, normed


class MLP(nn.Module):
    """SwiGLU: w2(silu(w1 x) * w3 x)."""

    def __init__(self, hidden: int, width: int, dtype: ir.DataType) -> None:
        super().__init__()
        self.w1 = Linear(hidden, width, dtype=dtype)
        self.w2 = Linear(width, hidden, dtype=dtype)
        self.w3 = Linear(hidden, width, dtype=dtype)

    def forward(self, op: OpBuilder, x: ir.Value) -> ir.Value:
        gate = self.w1(op, x)
        return self.w2(op, op.Mul(op.Mul(gate, op.Sigmoid(gate)), self.w3(op, x)))


class SparseMoE(nn.Module):
    """Router and experts as one ``ai.liquid::SparseMoE`` node."""

    def __init__(self, config: LfmConfig, dtype: ir.DataType) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Parameter([config.num_experts, config.hidden_size], dtype=FLOAT, name="gate.weight")
        self.expert_bias = nn.Parameter([config.num_experts], dtype=FLOAT)
        self.gate_up = nn.Parameter(
            [config.num_experts, 2 * config.moe_intermediate_size, config.hidden_size],
            dtype=dtype,
            name="experts.gate_up_proj",
        )
        self.down = nn.Parameter(
            [config.num_experts, config.hidden_size, config.moe_intermediate_size],
            dtype=dtype,
            name="experts.down_proj",
        )

    def forward(self, op: OpBuilder, x: ir.Value, function: ir.Function) -> ir.Value:
        config = self.config
        y = op.call(
            function,
            x,
            self.gate,
            self.expert_bias,
            self.gate_up,
            self.down,
            top_k=config.num_experts_per_tok,
            norm_topk_prob=int(config.norm_topk_prob),
            routed_scaling_factor=float(config.routed_scaling_factor),
        )
        y.type = ir.TensorType(FLOAT)
        return y


class Convolution(nn.Module):
    """The depthwise kernel of a short convolution, one row per tap: [L, hidden]."""

    def __init__(self, config: LfmConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter([config.conv_L_cache, config.hidden_size], dtype=FLOAT)
        self.bias = nn.Parameter([config.hidden_size], dtype=FLOAT) if config.conv_bias else None

    def forward(
        self, op: OpBuilder, bcx: ir.Value, context: GraphContext, past_conv: ir.Value, function: ir.Function
    ) -> tuple[ir.Value, ir.Value]:
        inputs = [bcx, self.weight, context.mask, past_conv]
        if self.bias is not None:
            inputs.append(self.bias)
        y, present = op.call(function, *inputs)
        y.type = present.type = ir.TensorType(FLOAT)
        return y, present


class ShortConv(nn.Module):
    """Projection to B, C, x; ``ai.liquid::GatedShortConv``; output projection."""

    def __init__(self, config: LfmConfig, dtype: ir.DataType) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.conv_bias
        self.hidden = hidden
        self.in_proj = Linear(hidden, 3 * hidden, dtype=dtype, bias=bias)
        self.conv = Convolution(config)
        self.out_proj = Linear(hidden, hidden, dtype=dtype, bias=bias)

    def forward(
        self, op: OpBuilder, x: ir.Value, context: GraphContext, past_conv: ir.Value, function: ir.Function
    ) -> tuple[ir.Value, ir.Value]:
        bcx = context.by_row(op, self.in_proj(op, x), 3 * self.hidden)
        y, present = self.conv(op, bcx, context, past_conv, function)
        return self.out_proj(op, op.Reshape(y, [-1, self.hidden])), present
