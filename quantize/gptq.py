"""GPTQ: weights rounded so that the outputs change little, on scales that it searches or on scales that are fixed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..artifact.formats import BlockFormat, Float32, QuantizedRows
from .error_feedback import Grid, Run, feed_errors_back
from .hessian import HessianFactor
from .scale_search import BlockColumn, RowsInBlocks, padded_importance, reciprocal, search_scales

_FIXED_RUN = 32
"""Columns rounded as one run where the scales are known beforehand."""


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
    return codes.T
