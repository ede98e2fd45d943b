"""GPTQ: weights are quantized column by column, and each rounding error is made good by the columns that follow."""

from __future__ import annotations

import threading

import numpy as np

from ..artifact.formats import BlockFormat, Float32, QuantizedRows
from .hessian import HessianFactor
from .scale_search import BlockColumn, Candidate, RowsInBlocks, reciprocal, search_scales

_BATCH = 256
"""Columns whose feedback from all columns before them is computed as one matrix product."""

_TILE = 64
"""Rows transposed at a time: few enough that every cache line read is still there when its next value is needed."""

many_small_steps = threading.Lock()
"""Held by one thread at a time: two that make thousands of short numpy calls each take longer, passing the interpreter
to and fro, than one after the other. Meanwhile the others are at their large products."""


def quantize_gptq(weights: Float32, fmt: BlockFormat, factor: HessianFactor) -> QuantizedRows:
    """Quantize float32 ``weights`` [N, K] so that the outputs change little, for inputs as ``factor`` knows them.

    Each block's scale is searched (weighted by the pivots) when its turn comes, on the weights as they are after the
    feedback of all blocks before. Raises ValueError as quantize_round_to_nearest does.
    """
    count, columns = weights.shape
    size = fmt.block_size
    store = RowsInBlocks(count, columns, fmt)
    pivots = np.zeros(store.blocks * size, np.float32)
    pivots[:columns] = factor.pivots
    errors = np.zeros((store.blocks * size, count), np.float32)
    for start in range(0, columns, _BATCH):
        stop = min(start + _BATCH, columns)
        originals = _transposed(weights[:, start:stop], size)
        targets = originals.copy()
        if start:
            targets[: stop - start] += factor.unit[:start, start:stop].T @ errors[:start]
        with many_small_steps:
            for first in range(start, stop, size):
                last = min(first + size, columns)
                block = slice(first - start, first - start + size)
                target = targets[block]
                if first > start:
                    target[: last - first] += factor.unit[start:first, first:last].T @ errors[start:first]
                chosen = search_scales(target, fmt, pivots[first : first + size])
                unit = factor.unit[first:last, first:last]
                column = _round_with_feedback(chosen, target, originals[block], unit, errors[first : first + size], fmt)
                store.put(slice(None), first // size, column)
    return store.packed()


def _transposed(weights: Float32, multiple: int) -> Float32:
    """weights [N, k] as C-contiguous [k, N], k padded with zeros to a multiple of ``multiple``."""
    count, columns = weights.shape
    turned = np.zeros((-(-columns // multiple) * multiple, count), np.float32)
    for start in range(0, count, _TILE):
        rows = slice(start, start + _TILE)
        turned[:columns, rows] = weights[rows].T
    return turned


def _round_with_feedback(
    chosen: Candidate, target: Float32, original: Float32, unit: Float32, errors: Float32, fmt: BlockFormat
) -> BlockColumn:
    """One block column [block_size, n] rounded with the chosen scales; original - quantized goes to ``errors``."""
    stored, zero_points = chosen
    scales, inverse = stored.astype(np.float32), reciprocal(stored)
    zero = np.float32(fmt.zero_point) if zero_points is None else zero_points
    low, high = -zero, np.float32(fmt.max_code) - zero
    levels = np.zeros_like(target)
    value = np.empty_like(scales)
    for k in range(len(unit)):
        wanted, level = target[k], levels[k]
        if k:
            wanted += unit[:k, k] @ errors[:k]
        np.multiply(wanted, inverse, out=level)
        np.rint(level, out=level)
        level.clip(low, high, out=level)
        np.multiply(level, scales, out=value)
        np.subtract(original[k], value, out=errors[k])
    return BlockColumn(levels, stored, zero_points)
