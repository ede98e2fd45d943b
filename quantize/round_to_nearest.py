"""Plain round to nearest: each block's scale from its extreme values, each weight to the nearest code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..artifact.formats import BlockFormat, Codes, Float32, QuantizedRows

_PIECE_ELEMENTS = 1 << 17
"""Weights quantized at a time: with their intermediate arrays they stay in a core's second-level cache."""

_SMALLEST_SCALE = float(np.finfo(np.float32).tiny)
"""Below it the reciprocal overflows; such a block is stored as zeros."""


def quantize_round_to_nearest(weights: Float32, fmt: BlockFormat) -> QuantizedRows:
    """Quantize float32 ``weights`` [N, K] row by row; the same input gives the same bytes on every machine.

    Symmetric: scale = (the block's value of largest magnitude, with its sign) / -2**(bits-1). That value becomes code
    0 exactly, and the whole range of codes is used; a value of the other sign and nearly that magnitude is clipped by
    at most one step. With zero points: scale = (max - min) / (2**bits - 1) over the block's values and 0, and
    zero_point = round(-min / scale). Codes are chosen for the scale as it is stored. Rounding is half to even.

    Raises ValueError where a weight is not finite or a scale is beyond float16.
    """
    count, columns = weights.shape
    blocks = fmt.blocks(columns)
    data = np.empty((count, blocks, fmt.block_bytes), np.uint8)
    scales = np.empty((count, blocks), fmt.scale_numpy)
    zero_points = None if fmt.symmetric else np.empty((count, fmt.zero_point_bytes(columns)), np.uint8)
    step = max(1, _PIECE_ELEMENTS // max(1, blocks * fmt.block_size))
    for start in range(0, count, step):
        rows = slice(start, min(start + step, count))
        piece = _blocks_of(weights[rows], fmt)
        piece_scales, zeros = _scales(piece, fmt)
        data[rows] = fmt.pack(_codes(piece, piece_scales, zeros, fmt)).reshape(data[rows].shape)
        scales[rows] = piece_scales.reshape(-1, blocks)
        if zero_points is not None:
            assert zeros is not None
            zero_points[rows] = fmt.pack(zeros.astype(np.uint8).reshape(-1, blocks))
    return QuantizedRows(data, scales, zero_points)


def _blocks_of(rows: Float32, fmt: BlockFormat) -> Float32:
    """[n, K] → [n * blocks, block_size], the last block of a row padded with zeros."""
    missing = -rows.shape[1] % fmt.block_size
    if missing:
        rows = np.pad(rows, ((0, 0), (0, missing)))
    return np.ascontiguousarray(rows).reshape(-1, fmt.block_size)


def _scales(blocks: Float32, fmt: BlockFormat) -> tuple[npt.NDArray[np.generic], Float32 | None]:
    """Scales [n] in their stored type; zero points [n] as whole float32 numbers, None in symmetric formats."""
    # Reducing a long axis is many times faster than reducing a short one, copy included.
    by_element = np.ascontiguousarray(blocks.T)
    largest, smallest = by_element.max(axis=0), by_element.min(axis=0)
    if not (np.isfinite(largest).all() and np.isfinite(smallest).all()):
        raise ValueError("a weight is infinite or not a number")
    if fmt.symmetric:
        exact = np.where(largest >= -smallest, largest, smallest) / np.float32(-fmt.zero_point)
    else:
        largest, smallest = np.maximum(largest, 0), np.minimum(smallest, 0)
        exact = largest / np.float32(fmt.max_code) - smallest / np.float32(fmt.max_code)
    exact[np.abs(exact) < _SMALLEST_SCALE] = 0
    with np.errstate(over="ignore"):
        scales = exact.astype(fmt.scale_numpy)
    if not np.isfinite(scales).all():
        raise ValueError(f"a scale of {float(np.abs(exact).max()):.6g} is beyond {fmt.scale_dtype} (65504)")
    if fmt.symmetric:
        return scales, None
    return scales, np.minimum(np.rint(-smallest * _reciprocal(scales)), np.float32(fmt.max_code))


def _reciprocal(scales: npt.NDArray[np.generic]) -> Float32:
    """1 / scale in float32, 0 where the scale is 0."""
    wide = scales.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=wide != 0)


def _codes(blocks: Float32, scales: npt.NDArray[np.generic], zero_points: Float32 | None, fmt: BlockFormat) -> Codes:
    """Codes [n, block_size], one a byte."""
    steps = blocks * _reciprocal(scales)[:, None]
    np.rint(steps, out=steps)
    steps += np.float32(fmt.zero_point) if zero_points is None else zero_points[:, None]
    np.clip(steps, 0, fmt.max_code, out=steps)
    return steps.astype(np.uint8)
