"""Grouped-query attention with per-head RMSNorm of queries and keys, rotary positions and a KV cache."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder, nn

from ..artifact.formats import BlockFormat
from ..checkpoint.config import LfmConfig
from .graph_context import GraphContext, GroupQueryInputs, MaskedAttentionInputs
from .modules import Linear, NormWeight, RMSNorm
from .weight_parameters import WeightScope


class Attention(nn.Module):
    """softmax(rope(norm(q)) rope(norm(k))^T / sqrt(head_dim) + mask) v, then the output projection.

    Cache: [batch, kv_heads, columns, head_dim] for keys (after norm and rotation) and values.
    """

    def __init__(self, config: LfmConfig, scope: WeightScope) -> None:
        super().__init__()
        width = config.num_attention_heads * config.head_dim
        self.config = config
        q_norm, k_norm = scope.scope("q_layernorm"), scope.scope("k_layernorm")
        if isinstance(scope.format("qkv_proj"), BlockFormat):
            # One matrix, the rows of q, k and v below one another: activations are quantized and read once.
            parts = [scope.name(f"{part}_proj.weight") for part in "qkv"]
            rows = width + 2 * config.kv_dim
            self.qkv_proj = Linear(config.hidden_size, rows, scope.scope("qkv_proj"), sources=parts)
            self.q_layernorm: nn.Module = NormWeight(config.head_dim, q_norm)
            self.k_layernorm: nn.Module = NormWeight(config.head_dim, k_norm)
        else:
            self.q_proj = Linear(config.hidden_size, width, scope.scope("q_proj"))
            self.k_proj = Linear(config.hidden_size, config.kv_dim, scope.scope("k_proj"))
            self.v_proj = Linear(config.hidden_size, config.kv_dim, scope.scope("v_proj"))
            self.q_layernorm = RMSNorm(config.head_dim, config.norm_eps, q_norm)
            self.k_layernorm = RMSNorm(config.head_dim, config.norm_eps, k_norm)
        self.out_proj = Linear(width, config.hidden_size, scope.scope("out_proj"))

    def forward(
        self, op: OpBuilder, x: ir.Value, context: GraphContext, past_key: ir.Value, past_value: ir.Value
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        """x [B*S, hidden] or [B, S, hidden] → (output of the same shape, present key, present value)."""
        width = self.config.num_attention_heads * self.config.head_dim
        query, key, value = self._project(op, x, context)
        if isinstance(context.attention, GroupQueryInputs):
            attended, present_key, present_value = self._group_query(
                op, context, query, key, value, past_key, past_value
            )
        else:
            assert isinstance(context.attention, MaskedAttentionInputs)
            attended, present_key, present_value = self._masked(op, context, query, key, value, past_key, past_value)
        attended = context.between_blocks(op, attended, width)
        return self.out_proj(op, attended, context), present_key, present_value

    def _project(self, op: OpBuilder, x: ir.Value, context: GraphContext) -> tuple[ir.Value, ir.Value, ir.Value]:
        """Normed queries and keys, and values: [B, S, heads * head_dim], or any shape that reshapes to it."""
        config = self.config
        kv_heads = config.num_key_value_heads
        if context.functions.quantized is None:
            query = context.by_row(op, self.q_proj(op, x, context), config.num_attention_heads, config.head_dim)
            key = context.by_row(op, self.k_proj(op, x, context), kv_heads, config.head_dim)
            return self.q_layernorm(op, query), self.k_layernorm(op, key), self.v_proj(op, x, context)
        query, key, value = op.call(
            context.functions.quantized.split_qkv_norm,
            self.qkv_proj(op, x, context),
            self.q_layernorm(op),
            self.k_layernorm(op),
            num_heads=config.num_attention_heads,
            kv_num_heads=kv_heads,
            epsilon=config.norm_eps,
        )
        for part, heads in ((query, config.num_attention_heads), (key, kv_heads), (value, kv_heads)):
            part.type = ir.TensorType(context.activations)
            # Without them ONNX Runtime 1.24 takes the query for all three in one.
            part.shape = ir.Shape(["batch_size", "sequence_length", heads * config.head_dim])
        return query, key, value

    def _group_query(
        self,
        op: OpBuilder,
        context: GraphContext,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past_key: ir.Value,
        past_value: ir.Value,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        shared = context.attention
        assert isinstance(shared, GroupQueryInputs)
        config = self.config
        attended, present_key, present_value = op.call(
            context.functions.group_query_attention,
            query if context.keeps_rows else op.Reshape(query, [0, 0, -1]),
            key if context.keeps_rows else op.Reshape(key, [0, 0, -1]),
            context.by_row(op, value, config.kv_dim),
            past_key,
            past_value,
            shared.last_position,
            shared.total_length,
            shared.cos,
            shared.sin,
            num_heads=config.num_attention_heads,
            kv_num_heads=config.num_key_value_heads,
            scale=config.head_dim**-0.5,
            do_rotary=1,
        )
        attended.type = ir.TensorType(context.activations)
        attended.shape = ir.Shape(["batch_size", "sequence_length", config.num_attention_heads * config.head_dim])
        return attended, present_key, present_value

    def _masked(
        self,
        op: OpBuilder,
        context: GraphContext,
        query: ir.Value,
        key: ir.Value,
        value: ir.Value,
        past_key: ir.Value,
        past_value: ir.Value,
    ) -> tuple[ir.Value, ir.Value, ir.Value]:
        shared = context.attention
        assert isinstance(shared, MaskedAttentionInputs)
        config = self.config
        kv_heads, size = config.num_key_value_heads, config.head_dim
        group = config.num_attention_heads // kv_heads
        if context.keeps_rows:
            query = context.by_row(op, query, config.num_attention_heads, size)
            key = context.by_row(op, key, kv_heads, size)
        query = op.Transpose(_rotate(op, query, shared), perm=[0, 2, 1, 3])
        present_key = op.Concat(past_key, op.Transpose(_rotate(op, key, shared), perm=[0, 2, 1, 3]), axis=2)
        new_value = op.Transpose(context.by_row(op, value, kv_heads, size), perm=[0, 2, 1, 3])
        present_value = op.Concat(past_value, new_value, axis=2)

        # The queries that share a KV head stand below one another, so that K and V are never repeated.
        batch = op.Gather(context.batch_and_sequence, [0], axis=0)
        stacked = op.Reshape(query, op.Concat(batch, [kv_heads, -1, size], axis=0))
        scores = op.MatMul(op.Mul(stacked, size**-0.5), op.Transpose(present_key, perm=[0, 1, 3, 2]))
        by_query = op.Concat(batch, [kv_heads, group], op.Unsqueeze(context.sequence, [0]), [-1], axis=0)
        weights = op.Softmax(op.Add(op.Reshape(scores, by_query), shared.bias), axis=-1)
        attended = op.MatMul(op.Reshape(weights, op.Shape(scores)), present_value)
        by_head = op.Concat(batch, [config.num_attention_heads, -1, size], axis=0)
        by_token = op.Transpose(op.Reshape(attended, by_head), perm=[0, 2, 1, 3])
        return op.Reshape(by_token, [0, 0, -1]), present_key, present_value


def _rotate(op: OpBuilder, x: ir.Value, shared: MaskedAttentionInputs) -> ir.Value:
    """Rotate-half form: (x1, x2) → (x1 cos - x2 sin, x2 cos + x1 sin); x [B, S, heads, head_dim]."""
    first, second = op.Split(x, axis=-1, num_outputs=2, _outputs=2)
    result: ir.Value = op.Concat(
        op.Sub(op.Mul(first, shared.cos), op.Mul(second, shared.sin)),
        op.Add(op.Mul(second, shared.cos), op.Mul(first, shared.sin)),
        axis=-1,
    )
    return result
