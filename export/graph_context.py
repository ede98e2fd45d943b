"""What every layer needs of the graph's inputs, computed once at its start: sizes, padding, positions."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnxscript import OpBuilder

from ..artifact.graph_weights import GraphWeight, Layout, TensorKind
from ..checkpoint.config import LfmConfig
from .functions import Functions
from .ops import OpsProfile
from .ops.domain import CONTRIB_DOMAIN, CONTRIB_VERSION

INT32, INT64, FLOAT = ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT

MASKED = -1e9
"""Added to the attention score of a pair that must not meet: finite, so that a row of padding gives no NaN."""


@dataclass
class GraphContext:
    """Values shared by all layers (B rows, S new columns, T columns with the past, all as graph values).

    The two profiles keep padding out in different ways. GroupQueryAttention packs a row's tokens from column 0 of its
    cache on, so the custom profile first rotates each row of the call until its tokens stand first (``first_token``).
    The standard profile leaves columns where they are and masks the padded ones.
    """

    config: LfmConfig
    ops_profile: OpsProfile
    functions: Functions
    keeps_rows: bool
    """Activations between blocks are [B, S, hidden] rather than [B*S, hidden]."""
    contrib: OpBuilder | None
    """com.microsoft operators; None in the standard profile."""
    batch_and_sequence: ir.Value
    """int64 [2]: B, S."""
    sequence: ir.Value
    """int64 scalar S."""
    input_ids: ir.Value
    """int64 [B, S], rotated in the custom profile."""
    mask: ir.Value
    """float32 [B, S], 1 for a token, rotated like ``input_ids``."""
    first_token: ir.Value | None
    """int64 [B, 1]: columns of padding before each row's first token; None in the standard profile."""
    past_tokens: ir.Value
    """int64 [B, 1]: tokens of each row before this call."""
    activations: ir.DataType = FLOAT
    """Type of the residual stream, states and logits."""
    attention: GroupQueryInputs | MaskedAttentionInputs | None = None
    _shapes: dict[tuple[int, ...], ir.Value] = field(default_factory=dict)

    def by_row(self, op: OpBuilder, x: ir.Value, *dims: int) -> ir.Value:
        """[B*S, ·] or [B, S, ·] as [B, S, *dims]."""
        if self.keeps_rows and len(dims) == 1:
            return x
        if dims not in self._shapes:
            self._shapes[dims] = op.Concat(self.batch_and_sequence, list(dims), axis=0)
        result: ir.Value = op.Reshape(x, self._shapes[dims])
        return result

    def between_blocks(self, op: OpBuilder, x: ir.Value, width: int) -> ir.Value:
        """[B, S, width] in the shape that activations have between blocks."""
        return x if self.keeps_rows else op.Reshape(x, [-1, width])


@dataclass(frozen=True)
class GroupQueryInputs:
    """Inputs of com.microsoft.GroupQueryAttention that are the same in every layer."""

    last_position: ir.Value
    """int32 [B]: tokens in a row's cache after this call, less one. Padding of this call counts as tokens: it stands
    behind them, where no token looks and the next call's tokens overwrite it."""
    total_length: ir.Value
    """int32 scalar T."""
    cos: ir.Value
    """[context, head_dim/2] in the activations' type."""
    sin: ir.Value


@dataclass(frozen=True)
class MaskedAttentionInputs:
    """Inputs of attention in ai.onnx operators that are the same in every layer."""

    cos: ir.Value
    """float32 [B, S, 1, head_dim/2]."""
    sin: ir.Value
    bias: ir.Value
    """float32 [B, 1, 1, S, T]: 0 where a query may look, ``MASKED`` elsewhere."""


def declare_context(
    op: OpBuilder,
    config: LfmConfig,
    functions: Functions,
    ops_profile: OpsProfile,
    context_length: int,
    input_ids: ir.Value,
    mask: ir.Value,
    activations: ir.DataType = FLOAT,
) -> GraphContext:
    """Emit the graph's start: ``input_ids`` int64 [B, S], ``mask`` int64 [B, T] with the past's columns first."""
    batch_and_sequence = op.Shape(input_ids)
    sequence = op.Gather(batch_and_sequence, 1, axis=0)
    total = op.Shape(mask, start=1, end=2)
    past_columns = op.Sub(total, op.Unsqueeze(sequence, [0]))
    past_tokens = op.ReduceSum(op.Slice(mask, [0], past_columns, [1]), [1], keepdims=1)
    new_mask = op.Slice(mask, past_columns, total, [1])
    columns = op.Range(0, sequence, 1)

    contrib = first_token = None
    if ops_profile is OpsProfile.CUSTOM:
        contrib = op.builder.opset(CONTRIB_DOMAIN, CONTRIB_VERSION)
        first_token = op.ArgMax(new_mask, axis=1, keepdims=1)
        rotation = op.Mod(op.Add(columns, first_token), sequence)
        input_ids = op.GatherElements(input_ids, rotation, axis=1)
        new_mask = op.GatherElements(new_mask, rotation, axis=1)
    context = GraphContext(
        config=config,
        ops_profile=ops_profile,
        functions=functions,
        keeps_rows=functions.quantized is not None,
        contrib=contrib,
        batch_and_sequence=batch_and_sequence,
        sequence=sequence,
        input_ids=input_ids,
        mask=op.Cast(new_mask, to=FLOAT),
        first_token=first_token,
        past_tokens=past_tokens,
        activations=activations,
    )
    if config.attention_layers:
        if ops_profile is OpsProfile.CUSTOM:
            context.attention = _group_query_inputs(op, context, total, context_length)
        else:
            context.attention = _masked_attention_inputs(op, context, mask, new_mask, columns, past_columns, total)
    return context


def inverse_frequencies(config: LfmConfig) -> np.ndarray:
    """float32 [head_dim/2]: theta^(-2i/head_dim), the rotation of pair i in radians per position."""
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    return np.power(float(config.rope_theta), -exponents).astype(np.float32)


def rotary_cache(config: LfmConfig, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position * inverse frequency, float32 [positions, head_dim/2]."""
    angles = positions.astype(np.float32)[:, None] * inverse_frequencies(config)
    return np.cos(angles), np.sin(angles)


def rotary_weights(config: LfmConfig, length: int) -> tuple[GraphWeight, ...]:
    """The tables of the attention of the custom ops profile, filled from ``rotary_cache`` when the file is written."""
    if not config.attention_layers:
        return ()
    shape = (length, config.head_dim // 2)
    return (
        GraphWeight("rotary.cos", TensorKind.ROTARY, shape, (), Layout.COSINES),
        GraphWeight("rotary.sin", TensorKind.ROTARY, shape, (), Layout.SINES),
    )


def _group_query_inputs(op: OpBuilder, context: GraphContext, total: ir.Value, length: int) -> GroupQueryInputs:
    last = op.Sub(op.Add(op.Squeeze(context.past_tokens, [1]), context.sequence), 1)
    caches = []
    for weight in rotary_weights(context.config, length):
        value = ir.Value(name=weight.name, shape=ir.Shape(weight.shape), type=ir.TensorType(context.activations))
        op.builder.graph.initializers[weight.name] = value
        caches.append(value)
    return GroupQueryInputs(op.Cast(last, to=INT32), op.Cast(op.Squeeze(total, [0]), to=INT32), caches[0], caches[1])


def _masked_attention_inputs(
    op: OpBuilder,
    context: GraphContext,
    mask: ir.Value,
    new_mask: ir.Value,
    columns: ir.Value,
    past_columns: ir.Value,
    total: ir.Value,
) -> MaskedAttentionInputs:
    positions = op.Sub(op.Add(op.CumSum(new_mask, 1), context.past_tokens), 1)
    angles = op.Mul(op.Cast(op.Unsqueeze(positions, [2, 3]), to=FLOAT), _inverse_frequencies_initializer(op, context))

    last_visible = op.Unsqueeze(op.Add(columns, past_columns), [1])  # [S, 1]: a query's own column among all T
    causal = op.LessOrEqual(op.Range(0, op.Squeeze(total, [0]), 1), last_visible)
    visible = op.And(causal, op.Unsqueeze(op.Cast(mask, to=ir.DataType.BOOL), [1]))  # [B, S, T]
    bias = op.Unsqueeze(op.Where(visible, 0.0, MASKED), [1, 2])
    return MaskedAttentionInputs(op.Cos(angles), op.Sin(angles), bias)


def _inverse_frequencies_initializer(op: OpBuilder, context: GraphContext) -> ir.Value:
    return op.builder.initializer(
        ir.tensor(inverse_frequencies(context.config), name="rotary.inverse_frequencies"), qualify=False
    )
