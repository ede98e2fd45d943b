"""Weights as the NPU reads them: int8 per column, int4 in blocks with exact block scales, packed experts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from .float_weights import PACKED_STEPS, normalized, row_pieces
from .static_graph import Array, Weight

BLOCK_SIZE = 32
BLOCK_SCALE_STEPS = 16
"""A block's scale is k/16 of its column's, k = 1 … 16: what the compiler can keep in integers (LPBQ)."""


_CACHED_ELEMENTS = 1 << 16
"""Weights whose float32 copies stay in a core's cache while block scales are tried."""


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


def quantize_weight(weight: Weight, stored_as: StoredAs) -> Codes:
    """All codes of one weight; float32 values are held in pieces only."""
    if stored_as is StoredAs.INT8_COLUMNS:
        return _int8_columns(weight)
    if stored_as is StoredAs.INT4_BLOCKS:
        return _int4_blocks(weight)
    experts, inputs, outputs = weight.value.shape
    if stored_as is StoredAs.INT8_EXPERTS:
        codes = np.empty((experts, inputs, outputs), np.int8)
        for expert in range(experts):
            codes[expert] = np.rint(normalized(weight.rows(expert, expert + 1)) * np.float32(127)).astype(np.int8).T
        return Codes(codes, np.array(1 / 127, np.float32))
    packed = np.empty((experts, inputs, outputs // 2), np.uint8)
    for expert in range(experts):
        steps = np.rint(normalized(weight.rows(expert, expert + 1)) * np.float32(PACKED_STEPS)).astype(np.int8)
        packed[expert] = pack_halves(steps).T
    return Codes(packed, np.array(1 / 16, np.float32))


def pack_halves(steps: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """steps [N, K] of -7 … 7 → [N/2, K]: 16 (a + 8) + b, a from the first half of the rows, b from the second.

    As a number, byte - 128 = 16 a + b: rounded to sixteens it is a, and what is left is b.
    """
    high, low = np.split(steps.astype(np.int16), 2)
    return (16 * (high + 8) + low).astype(np.uint8)


def _int8_columns(weight: Weight) -> Codes:
    inputs, outputs = weight.value.shape
    codes, scales = np.empty((inputs, outputs), np.int8), np.empty(outputs, np.float32)
    for first, last in row_pieces(weight):
        rows = weight.rows(first, last)
        scale = _positive(np.abs(rows).max(axis=1) / np.float32(127))
        codes[:, first:last] = np.rint(rows / scale[:, None]).astype(np.int8).T
        scales[first:last] = scale
    return Codes(codes, scales)


def _int4_blocks(weight: Weight) -> Codes:
    inputs, outputs = weight.value.shape
    blocks = inputs // BLOCK_SIZE
    codes, scales = np.empty((inputs, outputs), np.int8), np.empty((blocks, outputs), np.float32)
    for first, last in row_pieces(weight):
        steps, scale = quantize_blocks(weight.rows(first, last))
        codes[:, first:last] = steps.reshape(last - first, inputs).T
        scales[:, first:last] = scale.T
    return Codes(pack_int4(codes), scales)


def quantize_blocks(rows: Array) -> tuple[npt.NDArray[np.int8], Array]:
    """rows [n, K] → codes [n, blocks, 32] of -8 … 7 and scales [n, blocks], each k/16 of its row's, k = 1 … 16.

    The row's scale is that of its widest block (whose k is 16: the compiler takes the largest scale for the row's).
    A block whose extreme is m wants m/7.5; it takes the k of least squared error near that.
    """
    count, columns = rows.shape
    codes = np.empty((count, columns // BLOCK_SIZE, BLOCK_SIZE), np.int8)
    scales = np.empty((count, columns // BLOCK_SIZE), np.float32)
    step = max(1, _CACHED_ELEMENTS // columns)
    for first in range(0, count, step):
        piece = slice(first, min(first + step, count))
        codes[piece], scales[piece] = _quantize_cached(rows[piece].reshape(-1, columns // BLOCK_SIZE, BLOCK_SIZE))
    return codes, scales


def _quantize_cached(blocks: Array) -> tuple[Array, Array]:
    widest = np.maximum(blocks.max(axis=2), -blocks.min(axis=2))
    unit = _positive(widest.max(axis=1, keepdims=True) / np.float32(7.5)) / np.float32(BLOCK_SCALE_STEPS)
    wanted = np.rint(widest / (np.float32(7.5) * unit))
    is_widest = np.arange(widest.shape[1]) == widest.argmax(axis=1)[:, None]
    best_error = np.full(widest.shape, np.inf, np.float32)
    best_codes = np.empty(blocks.shape, np.float32)
    best_scales = np.empty(widest.shape, np.float32)
    steps, error = np.empty_like(blocks), np.empty_like(blocks)
    for offset in (0, -1, 1):
        k = np.where(is_widest, BLOCK_SCALE_STEPS, np.clip(wanted + offset, 1, BLOCK_SCALE_STEPS))
        scale = (k * unit).astype(np.float32)[..., None]
        np.multiply(blocks, 1 / scale, out=steps)
        np.rint(steps, out=steps)
        np.clip(steps, -8, 7, out=steps)
        np.multiply(steps, scale, out=error)
        error -= blocks
        total = np.einsum("nbk,nbk->nb", error, error)
        better = total < best_error
        best_error[better], best_scales[better] = total[better], scale[..., 0][better]
        np.copyto(best_codes, steps, where=better[..., None])
    return best_codes, best_scales


def pack_int4(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Codes -8 … 7 two to a byte, the first in the low half, as ONNX stores INT4."""
    flat = codes.reshape(-1).view(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return np.bitwise_or(flat[::2], flat[1::2] << 4, dtype=np.uint8)


def _positive(scale: Array) -> Array:
    return np.where(scale > np.finfo(np.float32).tiny, scale, np.float32(1)).astype(np.float32)
