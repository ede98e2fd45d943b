"""The float32 arrays of a static graph's weights, in the layouts that its operators take."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .static_graph import Array, Half, Weight, WeightKind

PIECE_ELEMENTS = 4 << 20
"""Elements of a weight that are read at a time."""

PACKED_STEPS = 7
"""Packed 4-bit codes are -7 … 7."""

_CLIPPED = (1.0, 0.85, 0.72)
"""Tried for what the largest packed code of a column stands for, relative to the column's largest magnitude: with so
few steps the many small weights gain more from finer ones than the few large ones lose."""

_CACHED_ELEMENTS = 1 << 16
"""Weights that stay in a core's cache while those are tried."""


@dataclass(frozen=True)
class FloatWeight:
    """What one initializer of a float graph holds: a whole weight, or one half of its columns in their packed form."""

    weight: Weight
    half: Half | None = None

    def array(self) -> Array:
        """The initializer's float32 values: see ``float_array`` for a whole weight, ``packed_half`` for a half."""
        return float_array(self.weight) if self.half is None else packed_half(self.weight, self.half)


def row_pieces(weight: Weight) -> list[tuple[int, int]]:
    """Ranges of the N output rows of a LINEAR weight [K, N], small enough to hold in float32."""
    inputs, outputs = weight.value.shape
    step = max(1, PIECE_ELEMENTS // inputs)
    return [(first, min(first + step, outputs)) for first in range(0, outputs, step)]


def float_array(weight: Weight) -> Array:
    """The whole weight: LINEAR [K, N]; EXPERTS [E, K, N], columns relative to their extremes; TABLE as it is."""
    if weight.kind is WeightKind.TABLE:
        return weight.rows(0, 0)
    result = np.empty(weight.value.shape, np.float32)
    if weight.kind is WeightKind.LINEAR:
        for first, last in row_pieces(weight):
            result[:, first:last] = weight.rows(first, last).T
        return result
    for expert in range(weight.value.shape[0]):
        result[expert] = normalized(weight.rows(expert, expert + 1), packed=False).T
    return result


def normalized(rows: Array, *, packed: bool) -> Array:
    """Rows [N, K], each divided by its extreme (see ``column_extremes``); rows of zeros stay so."""
    extremes = column_extremes(rows, packed=packed)[:, None]
    return np.divide(rows, extremes, out=np.zeros_like(rows), where=extremes != 0)


def column_extremes(rows: Array, *, packed: bool) -> Array:
    """What the largest code stands for in each of ``rows`` [N, K], which are columns of the graph's matrix: [N].

    The largest magnitude; packed, the share of it that leaves the least squared error.
    """
    largest = np.abs(rows).max(axis=1)
    if not packed:
        result: Array = largest
        return result
    found = np.empty_like(largest)
    step = max(1, _CACHED_ELEMENTS // rows.shape[1])
    for first in range(0, len(rows), step):
        piece = slice(first, first + step)
        found[piece] = _least_error(rows[piece], largest[piece])
    result = found
    return result


def _least_error(rows: Array, largest: Array) -> Array:
    best, least = largest.copy(), np.full(len(rows), np.inf, np.float32)
    steps, error = np.empty_like(rows), np.empty_like(rows)
    for share in _CLIPPED:
        unit = np.maximum(largest * np.float32(share / PACKED_STEPS), np.finfo(np.float32).tiny)[:, None]
        np.multiply(rows, 1 / unit, out=steps)
        np.rint(steps, out=steps)
        np.clip(steps, -PACKED_STEPS, PACKED_STEPS, out=steps)
        np.multiply(steps, unit, out=error)
        error -= rows
        total = np.einsum("nk,nk->n", error, error)
        better = total < least
        least[better], best[better] = total[better], largest[better] * np.float32(share)
    result: Array = best
    return result


def packed_half(weight: Weight, half: Half) -> Array:
    """What the packed form gives for half of the columns: in steps of 1/7, the low half divided by 16."""
    experts, inputs, outputs = weight.value.shape
    middle = outputs // 2
    columns = slice(0, middle) if half is Half.HIGH else slice(middle, outputs)
    result = np.empty((experts, inputs, middle), np.float32)
    for expert in range(experts):
        rows = normalized(weight.rows(expert, expert + 1), packed=True)
        result[expert] = rows[columns].T * np.float32(PACKED_STEPS)
    return result if half is Half.HIGH else result / np.float32(16)
