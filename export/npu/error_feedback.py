"""GPTQ for scales that are fixed: weights are rounded column by column, errors made good by the columns that follow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ...quantize.gptq import many_small_steps
from ...quantize.hessian import HessianFactor

_BATCH = 256
"""Columns whose feedback from all columns before them is one matrix product."""

_RUN = 32
"""Columns whose feedback from the batch's columns before them is one matrix product."""


def round_with_feedback(
    rows: npt.NDArray[np.float32],
    scales: npt.NDArray[np.float32],
    factor: HessianFactor,
    limits: tuple[int, int],
) -> npt.NDArray[np.int8]:
    """Codes [n, K] of ``rows`` [n, K] in blocks of K / blocks columns with ``scales`` [n, blocks], low … high.

    Column by column, each to the level nearest to its value and what makes good the errors of the columns before it
    (see ``quantize.hessian``).
    """
    count, columns = rows.shape
    size = columns // scales.shape[1]
    low, high = np.float32(limits[0]), np.float32(limits[1])
    codes = np.empty((columns, count), np.int8)
    errors = np.zeros((columns, count), np.float32)
    steps = np.ascontiguousarray(scales.T)
    inverse = 1 / steps
    for start in range(0, columns, _BATCH):
        stop = min(start + _BATCH, columns)
        originals = np.ascontiguousarray(rows[:, start:stop].T)
        targets = originals.copy()
        if start:
            targets += factor.unit[:start, start:stop].T @ errors[:start]
        with many_small_steps:
            for first in range(start, stop, _RUN):
                last = min(first + _RUN, stop)
                if first > start:
                    targets[first - start : last - start] += (
                        factor.unit[start:first, first:last].T @ errors[start:first]
                    )
                for k in range(first, last):
                    wanted, block = targets[k - start], k // size
                    if k > first:
                        wanted += factor.unit[first:k, k] @ errors[first:k]
                    level = np.rint(wanted * inverse[block])
                    np.clip(level, low, high, out=level)
                    codes[k] = level
                    np.multiply(level, steps[block], out=level)
                    np.subtract(originals[k - start], level, out=errors[k])
    return codes.T
