"""The whole model: embedding, layers, final norm, LM head, and its inputs and outputs by their contract names."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder, nn

from ..artifact.formats import BlockFormat
from ..artifact.graph_weights import GraphWeight
from ..checkpoint.config import LfmConfig
from .attention import Attention
from .functions import declare_functions
from .graph_context import GraphContext, declare_context, rotary_weights
from .logits_rows import rows_to_keep
from .modules import MLP, AddRMSNorm, QuantizedMLP, ShortConv, SparseMoE, linear
from .ops import DOMAIN_VERSION, OpsProfile, domain_of
from .weight_parameters import (
    WeightFormat,
    WeightFormats,
    WeightParameters,
    WeightScope,
    declare_weight,
    declared_weights,
)

FLOAT, INT64 = ir.DataType.FLOAT, ir.DataType.INT64
IR_VERSION = 10
"""The version that op set 21 came with."""


@dataclass(frozen=True)
class GraphOptions:
    """What the caller chooses of a graph."""

    ops_profile: OpsProfile
    formats: WeightFormats
    """Of linear, expert and embedding weights. Norms, router and convolution kernels stay float32."""
    context_length: int
    """Positions that the graph can address."""
    activations: ir.DataType = FLOAT
    """Of states, logits and all between them; float16 in the custom profile with block formats alone."""


class DecoderLayer(nn.Module):
    """x += operator(operator_norm(x)); x += feed_forward(ffn_norm(x))."""

    def __init__(self, config: LfmConfig, index: int, scope: WeightScope) -> None:
        super().__init__()
        self.is_conv = config.layer_types[index] == "conv"
        self.operator_norm = AddRMSNorm(config.hidden_size, config.norm_eps, scope.scope("operator_norm"))
        if self.is_conv:
            self.conv = ShortConv(config, scope.scope("conv"))
        else:
            self.self_attn = Attention(config, scope.scope("self_attn"))
        self.ffn_norm = AddRMSNorm(config.hidden_size, config.norm_eps, scope.scope("ffn_norm"))
        self.feed_forward = _feed_forward(config, index, scope.scope("feed_forward"))

    def forward(
        self,
        op: OpBuilder,
        residual: ir.Value,
        delta: ir.Value | None,
        context: GraphContext,
        past: tuple[ir.Value, ...],
    ) -> tuple[ir.Value, ir.Value, tuple[ir.Value, ...], ir.Value]:
        """(residual, delta, present states, the residual stream that entered): the layer's result is residual + delta.

        The last addition is left to the next norm, which does both in one kernel.
        """
        entered, x = self.operator_norm(op, residual, delta, context)
        present: tuple[ir.Value, ...]
        if self.is_conv:
            y, *states = self.conv(op, x, context, past[0])
        else:
            y, *states = self.self_attn(op, x, context, *past)
        present = tuple(states)
        residual, x = self.ffn_norm(op, entered, y, context)
        return residual, self.feed_forward(op, x, context), present, entered


def _feed_forward(config: LfmConfig, index: int, scope: WeightScope) -> nn.Module:
    if config.is_moe_layer(index):
        return SparseMoE(config, scope)
    if isinstance(scope.format(), BlockFormat):
        return QuantizedMLP(config.hidden_size, config.ff_dim, scope)
    return MLP(config.hidden_size, config.ff_dim, scope)


class Backbone(nn.Module):
    """Embedding, layers and final norm; [B, S] token ids → [B*S, hidden] or, quantized, [B, S, hidden]."""

    def __init__(self, config: LfmConfig, scope: WeightScope) -> None:
        super().__init__("model")
        self.hidden_size = config.hidden_size
        self.format = scope.format("embed_tokens")
        self.embed_tokens = _declare_table(self, "embed_tokens", config, scope)
        self.layers = nn.ModuleList(
            [DecoderLayer(config, i, scope.scope(f"layers.{i}", layer=i)) for i in range(config.num_hidden_layers)]
        )
        self.embedding_norm = AddRMSNorm(config.hidden_size, config.norm_eps, scope.scope("embedding_norm"))

    def forward(
        self, op: OpBuilder, context: GraphContext, pasts: list[tuple[ir.Value, ...]]
    ) -> tuple[ir.Value, list[tuple[ir.Value, ...]]]:
        """(final hidden states, present states of each layer) from ``pasts``, each layer's past states.

        Names the residual stream (after the embedding and each layer) and the final norm's result hidden_states.*.
        """
        residual = self._embed(op, context)
        delta: ir.Value | None = None
        presents = []
        for index, (layer, past) in enumerate(zip(self.layers, pasts, strict=True)):
            residual, delta, present, entered = layer(op, residual, delta, context, past)
            entered.name = f"hidden_states.{index - 1}" if index else "hidden_states.embed"
            presents.append(present)
        total, final = self.embedding_norm(op, residual, delta, context)
        total.name, final.name = f"hidden_states.{len(pasts) - 1}", "hidden_states.final"
        return final, presents

    def _embed(self, op: OpBuilder, context: GraphContext) -> ir.Value:
        table, fmt = self.embed_tokens, self.format
        if not isinstance(fmt, BlockFormat):
            rows = op.Gather(table.values, op.Reshape(context.input_ids, [-1]), axis=0)
            result: ir.Value = rows if fmt == FLOAT else op.Cast(rows, to=FLOAT)
            return result
        assert context.functions.quantized is not None
        embedded = op.call(
            context.functions.quantized.gather_dequantize,
            table.values,
            table.scales,
            table.zero_points,
            context.input_ids,
            K=self.hidden_size,
            bits=fmt.bits,
            block_size=fmt.block_size,
        )
        embedded.type = ir.TensorType(context.activations)
        result = embedded
        return result


def _declare_table(module: nn.Module, group: str, config: LfmConfig, scope: WeightScope) -> WeightParameters:
    """A matrix [vocab_size, hidden_size] of a format of its own."""
    name = f"{group}.weight"
    weight = scope.weight(name, (config.vocab_size, config.hidden_size), group=scope.name(group))
    return declare_weight(module, name, weight, scope.format(group))


class LfmForCausalLM(nn.Module):
    """Backbone and LM head, tied or not; logits of the rows that ``num_logits_to_keep`` asks for."""

    def __init__(self, config: LfmConfig, formats: WeightFormats) -> None:
        super().__init__()
        self.size = (config.vocab_size, config.hidden_size)
        tied = config.tie_word_embeddings
        scope = WeightScope(formats)
        self.format: WeightFormat = scope.format("model.embed_tokens" if tied else "lm_head")
        self.model = Backbone(config, scope.scope("model"))
        self.lm_head = None if tied else _declare_table(self, "lm_head", config, scope)

    def forward(
        self,
        op: OpBuilder,
        context: GraphContext,
        pasts: list[tuple[ir.Value, ...]],
        num_logits_to_keep: ir.Value,
    ) -> tuple[ir.Value, list[tuple[ir.Value, ...]]]:
        """(logits [B, kept, vocab_size], present states of each layer) from ``pasts``, each layer's past states."""
        final, presents = self.model(op, context, pasts)
        vocab_size, hidden_size = self.size
        rows = rows_to_keep(op, context, num_logits_to_keep)
        by_token = op.Reshape(final, [-1, hidden_size]) if context.keeps_rows else final
        kept = context.between_blocks(op, op.Gather(by_token, rows, axis=0), hidden_size)
        head = self.lm_head if self.lm_head is not None else self.model.embed_tokens
        logits = linear(op, kept, head, self.size, self.format, context)
        if context.keeps_rows:
            return logits, presents
        return op.Reshape(logits, op.Concat(op.Shape(rows), [vocab_size], axis=0)), presents


@lru_cache(maxsize=8)
def model_weights(config: LfmConfig, *, blocks: bool) -> tuple[GraphWeight, ...]:
    """The table of the weights that come from the checkpoint, in the order in which a model runs.

    blocks: of a model with block formats, whatever these are; else of one with float weights.
    """
    formats = WeightFormats(blocks=defaultdict(lambda: BlockFormat(4))) if blocks else WeightFormats()
    model = LfmForCausalLM(config, formats)
    return (*declared_weights(model.model), *declared_weights(model, recurse=False))


def graph_weights(config: LfmConfig, options: GraphOptions) -> tuple[GraphWeight, ...]:
    """The table of all initializers that ``declare_model`` leaves without data."""
    rotary = rotary_weights(config, options.context_length) if options.ops_profile is OpsProfile.CUSTOM else ()
    return (*model_weights(config, blocks=options.formats.blocks is not None), *rotary)


def declare_model(config: LfmConfig, options: GraphOptions) -> ir.Model:
    """The ONNX model of a checkpoint with this config; its weights are initializers without data.

    Inputs and outputs: input_ids, attention_mask, past_key_values.{i}.key/.value and past_conv.{i} →
    logits, present.{i}.key/.value, present_conv.{i}; ``num_logits_to_keep`` is an input with an initializer, 1.
    """
    ops_profile = options.ops_profile
    imports = {**ops_profile.opset_imports(), domain_of(options.activations): DOMAIN_VERSION}
    graph = ir.Graph([], [], nodes=[], name="lfm", opset_imports=imports)
    builder = GraphBuilder(graph)
    op = builder.op

    input_ids = builder.input("input_ids", INT64, ["batch_size", "sequence_length"])
    mask = builder.input("attention_mask", INT64, ["batch_size", "total_sequence_length"])
    state_type = options.activations
    pasts = [_past_inputs(builder, config, i, state_type) for i in range(config.num_hidden_layers)]
    keep = builder.input(
        "num_logits_to_keep", INT64, [], const_value=ir.tensor(1, dtype=INT64, name="num_logits_to_keep")
    )
    weights = model_weights(config, blocks=options.formats.blocks is not None)
    functions = declare_functions(config, ops_profile, weights, options.formats, options.activations)
    context = declare_context(
        op, config, functions, ops_profile, options.context_length, input_ids, mask, options.activations
    )
    logits, presents = LfmForCausalLM(config, options.formats)(op, context, pasts, keep)

    logits.type, logits.shape = ir.TensorType(options.activations), ir.Shape(["batch_size", 1, config.vocab_size])
    builder.add_output(logits, "logits")
    for index, present in enumerate(presents):
        _present_outputs(builder, config, index, present, state_type)
    return ir.Model(graph, ir_version=IR_VERSION, functions=list(builder.functions.values()))


def _past_inputs(builder: GraphBuilder, config: LfmConfig, index: int, dtype: ir.DataType) -> tuple[ir.Value, ...]:
    if config.layer_types[index] == "conv":
        shape: list[int | str | None] = ["batch_size", config.hidden_size, config.conv_L_cache]
        return (builder.input(f"past_conv.{index}", dtype, shape),)
    kv_shape: list[int | str | None] = [
        "batch_size",
        config.num_key_value_heads,
        "past_sequence_length",
        config.head_dim,
    ]
    return tuple(builder.input(f"past_key_values.{index}.{part}", dtype, kv_shape) for part in ("key", "value"))


def _present_outputs(
    builder: GraphBuilder, config: LfmConfig, index: int, present: tuple[ir.Value, ...], dtype: ir.DataType
) -> None:
    if config.layer_types[index] == "conv":
        names = [f"present_conv.{index}"]
        shape: list[str | int] = ["batch_size", config.hidden_size, config.conv_L_cache]
    else:
        names = [f"present.{index}.key", f"present.{index}.value"]
        shape = ["batch_size", config.num_key_value_heads, "total_sequence_length", config.head_dim]
    for name, value in zip(names, present, strict=True):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        builder.add_output(value, name)
