"""ai.liquid::GatedShortConv: double-gated causal depthwise convolution over time, with its state."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from .block_codes import FLOAT, float_input, from_float32
from .domain import OpsProfile, domain_of

LAST_ROW = 2**62
"""A slice end beyond every sequence: "to the end"."""


def gated_short_conv_function(
    kernel_size: int, *, bias: bool, ops_profile: OpsProfile, activations: ir.DataType = FLOAT
) -> ir.Function:
    """The definition of ``GatedShortConv`` for a convolution of length ``kernel_size`` (``conv_L_cache``, L below).

    Inputs
        0. ``BCx`` float32 [batch, sequence, 3*hidden]: the gates B and C and the signal x, side by side.
        1. ``weight`` float32 [L, hidden]: one row per tap, the oldest token first.
        2. ``mask`` float32 [batch, sequence]: 1 for a token, 0 for padding. The tokens of a row are contiguous;
           padding may stand on either side.
        3. ``past_conv`` float32 [batch, hidden, L]: the last L columns of B*x before this call, oldest first.
        4. ``bias`` float32 [hidden], optional.
    Outputs
        0. ``y`` float32 [batch, sequence, hidden].
        1. ``present_conv`` float32 [batch, hidden, L]: the last L columns of B*x up to each row's last token.
    Attributes: none.

    Formula, with u = B * x, and the L columns of u before a row's first token taken from ``past_conv``::

        y[t] = C[t] * (bias + sum over j in 0..L-1 of weight[j] * u[t - (L-1) + j])
        present_conv = u[last-L+1 .. last], last = the row's last token (past_conv where the row has none)

    What y holds at padding is not defined, but finite.
    """

    def body(
        op: OpBuilder,
        bcx: ir.Value,
        weight: ir.Value,
        mask: ir.Value,
        past_conv: ir.Value,
        conv_bias: ir.Value | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        b, c, x = op.Split(bcx, axis=-1, num_outputs=3, _outputs=["B", "C", "x"])
        weight = from_float32(op, weight, activations)
        keep = from_float32(op, mask, activations)
        signal = op.Mul(op.Mul(b, x), op.Unsqueeze(keep, [2]), _outputs=["Bx"])

        # The past stands right before each row's first token, wherever padding puts that.
        taps = list(range(kernel_size))
        padded = op.Pad(signal, [0, kernel_size, 0, 0, 0, 0])
        past_rows = op.Unsqueeze(op.Add(op.ArgMax(mask, axis=1, keepdims=1), taps), [2])  # [batch, L, 1]
        batch = op.Range(0, op.Squeeze(op.Shape(mask, start=0, end=1)), 1)
        row_of_batch = op.Expand(op.Unsqueeze(batch, [1, 2]), op.Shape(past_rows))
        history = op.ScatterND(
            padded,
            op.Concat(row_of_batch, past_rows, axis=2),
            op.Transpose(past_conv, perm=[0, 2, 1]),
            _outputs=["history"],
        )

        # Shifted slices, channels last: no transpose of the sequence, and one fused multiply-add a tap.
        total = None
        for tap in range(kernel_size):
            end = tap + 1 - kernel_size or LAST_ROW
            window = op.Slice(history, [tap + 1], [end], [1])
            term = op.Mul(window, op.Gather(weight, tap, axis=0))
            total = term if total is None else op.Add(total, term)
        if conv_bias is not None:
            total = op.Add(total, from_float32(op, conv_bias, activations))
        y = op.Mul(c, total)

        length = op.Shape(mask, start=1, end=2)
        positions = op.Range(1, op.Add(op.Squeeze(length), 1), 1)
        tokens = op.Cast(op.Mul(mask, op.Cast(positions, to=ir.DataType.FLOAT)), to=ir.DataType.INT64)
        last = op.ReduceMax(tokens, [1], keepdims=1)  # index of the last token + 1 = its first state row in history
        rows = op.Add(last, taps)
        state = op.GatherND(history, op.Unsqueeze(rows, [2]), batch_dims=1)
        return y, op.Transpose(state, perm=[0, 2, 1])

    inputs = [
        float_input("BCx", activations),
        float_input("weight"),
        float_input("mask"),
        float_input("past_conv", activations),
    ]
    if bias:
        inputs.append(float_input("bias"))
    return build_function(
        body,
        inputs,
        domain=domain_of(activations),
        name="GatedShortConv",
        opset_imports=_imports_without_contrib(ops_profile),
    )


def _imports_without_contrib(ops_profile: OpsProfile) -> dict[str, int]:
    return {"": ops_profile.opset_imports()[""]}
