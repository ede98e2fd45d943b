"""GPTQ: weights rounded so that the outputs change little, on scales that it searches or on scales that are fixed.

Columns are rounded one after the other, and each rounding error is made good by those that follow: in runs, which share
a grid for each row. What the errors of earlier columns ask of a run is one matrix product for the batch and one for the
run; only within a run is it column by column (see ``hessian``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..artifact.formats import BlockFormat, Float32, QuantizedRows
from .hessian import HessianFactor
from .scale_search import BlockColumn, RowsInBlocks, padded_importance, reciprocal, search_scales

_FIXED_RUN = 32
"""Columns rounded as one run where the scales are known beforehand."""

_BATCH = 256
"""Columns whose feedback from all columns before them is computed as one matrix product; a multiple of every run."""

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
    pivots = padded_importance(factor.pivots, store.blocks * size, columns)

    def round_block(run: Run) -> None:
        stored, zero_points = search_scales(run.target, fmt, pivots[run.first : run.first + size])
        zero = np.float32(fmt.zero_point) if zero_points is None else zero_points
        grid = Grid(stored.astype(np.float32), reciprocal(stored), -zero, np.float32(fmt.max_code) - zero)
        store.put(slice(None), run.first // size, BlockColumn(run.round(grid), stored, zero_points))

    feed_errors_back(weights, factor, size, round_block)
    return store.packed()


def gptq_codes(rows: Float32, scales: Float32, factor: HessianFactor, limits: tuple[int, int]) -> npt.NDArray[np.int8]:
    """Codes [n, K] of ``rows`` [n, K] in blocks of K / blocks columns with ``scales`` [n, blocks], low … high.

    A block is the whole row or a multiple of 32 columns; no scale is 0.
    """
    count, columns = rows.shape
    size = columns // scales.shape[1]
    low, high = np.float32(limits[0]), np.float32(limits[1])
    codes = np.empty((columns, count), np.int8)
    steps = np.ascontiguousarray(scales.T)
    inverse = 1 / steps

    def round_run(run: Run) -> None:
        block, inside = run.first // size, codes[run.first : run.first + _FIXED_RUN]
        inside[:] = run.round(Grid(steps[block], inverse[block], low, high))[: len(inside)]

    feed_errors_back(rows, factor, _FIXED_RUN, round_run)
    result: npt.NDArray[np.int8] = codes.T
    return result


@dataclass(frozen=True)
class Grid:
    """What the values of n rows may become: a whole number low … high, times the row's scale.

    scales, inverse (their reciprocals, 0 for a scale of 0): [n]; low, high: [n], or one number for all rows.
    """

    scales: Float32
    inverse: Float32
    low: Float32 | np.float32
    high: Float32 | np.float32


@dataclass(frozen=True)
class Run:
    """Neighbouring columns of n rows, as [size, n]; the last run is padded with zeros, which stay so.

    first: index of its first column. target: the weights, and what makes good the errors of all columns before.
    """

    first: int
    target: Float32
    _original: Float32
    _unit: Float32
    _errors: Float32

    def round(self, grid: Grid) -> Float32:
        """The levels [size, n] on ``grid``; columns give their errors on to those after them. Once a run."""
        levels = np.zeros_like(self.target)
        value = np.empty_like(grid.scales)
        for k in range(len(self._unit)):
            target, level = self.target[k], levels[k]
            if k:
                target += self._unit[:k, k] @ self._errors[:k]
            np.multiply(target, grid.inverse, out=level)
            np.rint(level, out=level)
            level.clip(grid.low, grid.high, out=level)
            np.multiply(level, grid.scales, out=value)
            np.subtract(self._original[k], value, out=self._errors[k])
        return levels


def feed_errors_back(weights: Float32, factor: HessianFactor, size: int, round_run: Callable[[Run], None]) -> None:
    """Hand ``weights`` [n, K] to ``round_run`` in runs of ``size`` columns, in order; it must call ``Run.round``.

    size: a divisor of 256.
    """
    count, columns = weights.shape
    errors = np.zeros((-(-columns // size) * size, count), np.float32)
    for start in range(0, columns, _BATCH):
        stop = min(start + _BATCH, columns)
        originals = _transposed(weights[:, start:stop], size)
        targets = originals.copy()
        if start:
            targets[: stop - start] += factor.unit[:start, start:stop].T @ errors[:start]
        with many_small_steps:
            for first in range(start, stop, size):
                last = min(first + size, columns)
                inside = slice(first - start, first - start + size)
                target = targets[inside]
                if first > start:
                    target[: last - first] += factor.unit[start:first, first:last].T @ errors[start:first]
                unit = factor.unit[first:last, first:last]
                round_run(Run(first, target, originals[inside], unit, errors[first : first + size]))


def _transposed(weights: Float32, multiple: int) -> Float32:
    """weights [N, k] as C-contiguous [k, N], k padded with zeros to a multiple of ``multiple``."""
    count, columns = weights.shape
    turned = np.zeros((-(-columns // multiple) * multiple, count), np.float32)
    for start in range(0, count, _TILE):
        rows = slice(start, start + _TILE)
        turned[:columns, rows] = weights[rows].T
    return turned
