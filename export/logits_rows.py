"""Which rows of the final hidden states become logits: the last tokens of each row of the batch, or all."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder

from .graph_context import GraphContext


def rows_to_keep(op: OpBuilder, context: GraphContext, count: ir.Value) -> ir.Value:
    """Indices int64 [B, n] into [B*S, hidden]: the ``count`` columns up to each row's last token; 0 means all S.

    Columns are those of the caller's input_ids, whichever side it is padded on. A row without any token yields its
    first columns, so that the result always has a shape.
    """
    sequence = context.sequence
    columns = op.Range(0, sequence, 1)
    keep_all = op.Equal(count, 0)
    kept = op.Where(keep_all, sequence, op.Min(count, sequence))

    tokens = op.Cast(op.Mul(context.mask, op.Cast(op.Add(columns, 1), to=ir.DataType.FLOAT)), to=ir.DataType.INT64)
    end = op.ReduceMax(tokens, [1], keepdims=1)  # [B, 1] column after the last token, rotated
    if context.first_token is not None:
        end = op.Add(end, context.first_token)
    start = op.Where(keep_all, 0, op.Max(op.Sub(end, kept), 0))
    rows = op.Add(op.Range(0, kept, 1), start)
    if context.first_token is not None:
        rows = op.Mod(op.Add(op.Sub(rows, context.first_token), sequence), sequence)
    batch = op.Gather(context.batch_and_sequence, 0, axis=0)
    result: ir.Value = op.Add(rows, op.Unsqueeze(op.Mul(op.Range(0, batch, 1), sequence), [1]))
    return result
