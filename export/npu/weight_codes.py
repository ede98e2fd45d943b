"""Weights as the NPU reads them: int8 per column, int4 in blocks with exact block scales, packed experts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from ...artifact.int4 import pack_int4
from ...quantize.blas_threads import single_threaded_blas
from ...quantize.gptq import gptq_codes, many_small_steps
from .float_weights import PACKED_STEPS, PIECE_ELEMENTS, normalized, row_pieces
from .static_graph import Array, Weight
from .weight_inputs import WeightInputs

BLOCK_SIZE = 32
BLOCK_SCALE_STEPS = 16
"""A block's scale is k/16 of its column's, k = 1 … 16: what the compiler can keep in integers (LPBQ)."""


_CACHED_ELEMENTS = 1 << 18
"""Weights whose float32 copies stay in a core's cache while block scales are tried."""

_ROW_SCALES = (1.0, 0.92, 0.85)
"""Tried for a row, relative to the scale that holds its extreme: the few largest weights are clipped, all the others
have finer steps."""


class StoredAs(Enum):
    """The integer form of a weight."""

    INT8_COLUMNS = "int8 per column"
    INT4_BLOCKS = "int4 in blocks of 32"
    INT8_EXPERTS = "int8 per tensor, columns normalized"
    INT4_PACKED_EXPERTS = "int4, two to a byte, columns normalized"


@dataclass(frozen=True)
class Codes:
    """codes: int8 of the weight's shape, int4 two to a byte (flat), or uint8 [E, K, N/2]. scales: float32."""

    codes: npt.NDArray[np.generic]
    scales: Array


def quantize_weight(weight: Weight, stored_as: StoredAs, inputs: WeightInputs | None = None) -> Codes:
    """All codes of one weight; float32 values are held in pieces only, but for weights that experts share row by row.

    inputs: by what rounding errors are fed back; None, and where the calibration text says too little, rounds to the
    nearest. Runs on one thread.
    """
    with single_threaded_blas():
        if stored_as in (StoredAs.INT8_COLUMNS, StoredAs.INT4_BLOCKS):
            return _linear(weight, stored_as, inputs)
        return _experts(weight, stored_as, inputs)


def _experts(weight: Weight, stored_as: StoredAs, inputs: WeightInputs | None) -> Codes:
    experts, columns, outputs = weight.value.shape
    packed = stored_as is StoredAs.INT4_PACKED_EXPERTS
    largest = PACKED_STEPS if packed else 127
    codes = np.empty((experts, columns, outputs // 2), np.uint8) if packed else np.empty(weight.value.shape, np.int8)
    unit = np.full((outputs, 1), 1 / largest, np.float32)
    for expert in range(experts):
        rows = normalized(weight.rows(expert, expert + 1), packed=packed)
        factor = None if inputs is None else inputs.factor(weight, expert)
        if factor is None:
            steps = np.clip(np.rint(rows * np.float32(largest)), -largest, largest).astype(np.int8)
        else:
            steps = gptq_codes(rows, unit, factor, (-largest, largest))
        codes[expert] = (pack_halves(steps) if packed else steps).T
    return Codes(codes, np.array(1 / 16 if packed else 1 / 127, np.float32))


def pack_halves(steps: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """steps [N, K] of -7 … 7 → [N/2, K]: 16 (a + 8) + b, a from the first half of the rows, b from the second.

    As a number, byte - 128 = 16 a + b: rounded to sixteens it is a, and what is left is b.
    """
    high, low = np.split(steps.astype(np.int16), 2)
    return (16 * (high + 8) + low).astype(np.uint8)


def _linear(weight: Weight, stored_as: StoredAs, inputs: WeightInputs | None) -> Codes:
    columns, outputs = weight.value.shape
    size = columns if stored_as is StoredAs.INT8_COLUMNS else BLOCK_SIZE
    rounded, limits = (_int8_rows, (-127, 127)) if stored_as is StoredAs.INT8_COLUMNS else (_int4_rows, (-8, 7))
    codes, scales = np.empty((outputs, columns), np.int8), np.empty((outputs, columns // size), np.float32)
    for first, last in row_pieces(weight):
        codes[first:last], scales[first:last] = rounded(weight.rows(first, last))
    if inputs is not None:
        shares = inputs.shares(weight)
        # Experts beside one another in every row: read once instead of once for each.
        whole = weight.rows(0, outputs) if shares[0].columns != slice(0, columns) else None
        for share in shares:
            factor = inputs.factor(weight, share.expert)
            if factor is None or _cuts_blocks(share.columns, size, columns):
                continue
            for first, last in _pieces(share.rows, share.columns.stop - share.columns.start):
                rows = weight.rows(first, last) if whole is None else whole[first:last, share.columns]
                known = scales[first:last, _blocks(share.columns, size)]
                codes[first:last, share.columns] = gptq_codes(rows, known, factor, limits)
    if stored_as is StoredAs.INT8_COLUMNS:
        return Codes(np.ascontiguousarray(codes.T), scales[:, 0])
    return Codes(pack_int4(np.ascontiguousarray(codes.T).reshape(-1)), np.ascontiguousarray(scales.T))


def _pieces(rows: slice, columns: int) -> list[tuple[int, int]]:
    """``rows`` in ranges small enough to hold in float32."""
    step = max(1, PIECE_ELEMENTS // columns)
    return [(first, min(first + step, rows.stop)) for first in range(rows.start, rows.stop, step)]


def _cuts_blocks(columns: slice, size: int, row: int) -> bool:
    """Whether a block of ``size`` of the ``row``'s columns lies partly in ``columns``; a block may be the whole row."""
    return size < row and bool(columns.start % size or columns.stop % size)


def _blocks(columns: slice, size: int) -> slice:
    """The blocks of ``size`` columns that cover ``columns``."""
    return slice(columns.start // size, -(-columns.stop // size))


def _int8_rows(rows: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """rows [n, K] → codes of -127 … 127 and scales [n, 1]."""
    scale = _positive(np.abs(rows).max(axis=1, keepdims=True) / np.float32(127))
    return np.rint(rows / scale).astype(np.int8), scale


def _int4_rows(rows: Array) -> tuple[npt.NDArray[np.int8], Array]:
    steps, scales = quantize_blocks(rows)
    return steps.reshape(rows.shape), scales


def quantize_blocks(rows: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """rows [n, K] → codes [n, blocks, 32] of -8 … 7 and scales [n, blocks], each k/16 of its row's, k = 1 … 16.

    The row's scale is that of its widest block (whose k is 16: the compiler takes the largest scale for the row's).
    A block whose extreme is m wants m/7.5; it takes the k of least squared error near that, and of several scales for
    the row the one of least error in all blocks wins.
    """
    count, columns = rows.shape
    codes = np.empty((count, columns // BLOCK_SIZE, BLOCK_SIZE), np.int8)
    scales = np.empty((count, columns // BLOCK_SIZE), np.float32)
    step = max(1, _CACHED_ELEMENTS // columns)
    with many_small_steps:
        for first in range(0, count, step):
            piece = slice(first, min(first + step, count))
            blocks = rows[piece].reshape(-1, columns // BLOCK_SIZE, BLOCK_SIZE)
            scales[piece] = _block_scales(blocks)
            codes[piece] = _steps(blocks, scales[piece])
    return codes, scales


def _block_scales(blocks: Array) -> Array:
    """Scales [n, blocks] of least error for ``blocks`` [n, blocks, 32]."""
    widest = np.maximum(blocks.max(axis=2), -blocks.min(axis=2))
    is_widest = np.arange(widest.shape[1]) == widest.argmax(axis=1)[:, None]
    best, least = np.empty_like(widest), np.full(len(widest), np.inf, np.float32)
    scratch = np.empty_like(blocks), np.empty_like(blocks)
    for shrink in _ROW_SCALES:
        unit = _positive(widest.max(axis=1, keepdims=True) * np.float32(shrink / 7.5)) / np.float32(BLOCK_SCALE_STEPS)
        wanted = np.rint(widest / (np.float32(7.5) * unit))
        own_best, own_least = np.empty_like(widest), np.full(widest.shape, np.inf, np.float32)
        for offset in (0, -1, 1):
            k = np.where(is_widest, BLOCK_SCALE_STEPS, np.clip(wanted + offset, 1, BLOCK_SCALE_STEPS))
            scale = (k * unit).astype(np.float32)
            error = _squared_error(blocks, scale, *scratch)
            better = error < own_least
            own_least[better], own_best[better] = error[better], scale[better]
        total = own_least.sum(axis=1)
        better = total < least
        least[better], best[better] = total[better], own_best[better]
    result: Array = best
    return result


def _steps(blocks: Array, scales: Array, out: Array | None = None) -> Array:
    steps: Array = np.multiply(blocks, 1 / scales[..., None], out=out)
    np.rint(steps, out=steps)
    return np.clip(steps, -8, 7, out=steps)


def _squared_error(blocks: Array, scales: Array, steps: Array, error: Array) -> Array:
    """[n, blocks]; the last two arguments are overwritten."""
    np.multiply(_steps(blocks, scales, steps), scales[..., None], out=error)
    error -= blocks
    total: Array = np.einsum("nbk,nbk->nb", error, error)
    return total


def _positive(scale: Array) -> Array:
    return np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1)).astype(np.float32)
