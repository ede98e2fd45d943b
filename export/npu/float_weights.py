"""The float32 arrays of a static graph's weights, in the layouts that its operators take."""

from __future__ import annotations

import numpy as np

from .static_graph import Array, Weight, WeightKind

PIECE_ELEMENTS = 4 << 20
"""Elements of a weight that are read at a time."""

PACKED_STEPS = 7
"""Packed 4-bit codes are -7 … 7."""


def row_pieces(weight: Weight) -> list[tuple[int, int]]:
    """Ranges of the N output rows of a LINEAR weight [K, N], small enough to hold in float32."""
    inputs, outputs = weight.value.shape
    step = max(1, PIECE_ELEMENTS // inputs)
    return [(first, min(first + step, outputs)) for first in range(0, outputs, step)]


def float_array(weight: Weight) -> Array:
    """The whole weight: LINEAR [K, N]; EXPERTS [E, K, N], columns relative to their largest values; TABLE as it is."""
    if weight.kind is WeightKind.TABLE:
        return weight.rows(0, 0)
    result = np.empty(weight.value.shape, np.float32)
    if weight.kind is WeightKind.LINEAR:
        for first, last in row_pieces(weight):
            result[:, first:last] = weight.rows(first, last).T
        return result
    for expert in range(weight.value.shape[0]):
        result[expert] = normalized(weight.rows(expert, expert + 1)).T
    return result


def normalized(rows: Array) -> Array:
    """Rows [N, K], each divided by its largest magnitude; rows of zeros stay so."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    return np.divide(rows, largest, out=np.zeros_like(rows), where=largest != 0)


def packed_half(weight: Weight, part: str) -> Array:
    """What the packed form gives for half of the columns: in steps of 1/7, the "low" half divided by 16."""
    experts, inputs, outputs = weight.value.shape
    half = outputs // 2
    columns = slice(0, half) if part == "high" else slice(half, outputs)
    result = np.empty((experts, inputs, half), np.float32)
    for expert in range(experts):
        result[expert] = normalized(weight.rows(expert, expert + 1))[columns].T * np.float32(PACKED_STEPS)
    return result if part == "high" else result / np.float32(16)
