"""Scale search: of many scales for a block, the one that leaves the smallest (weighted) squared error.

Works on blocks as columns, ``[block_size, n]``: each numpy operation then runs over n contiguous values, and a sum over
a block adds whole rows, in an order that no machine changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..artifact.formats import BlockFormat, Codes, Float32, QuantizedRows

_ROWS = 8192
"""Rows of the matrix searched at a time: a bound on the memory of the copies, and long enough that threads spend their
time in numpy and not in handing the interpreter to one another."""

_SMALLEST_SCALE = np.finfo(np.float32).tiny
"""Below it the reciprocal overflows."""


Candidate = tuple[npt.NDArray[np.generic], "Float32 | None"]
"""Scales [n] in the stored dtype and zero points [n], None in symmetric formats."""


@dataclass(frozen=True)
class BlockColumn:
    """One block of each of n rows, quantized: value = (codes - zero_points) * scales."""

    levels: Float32
    """[block_size, n]: codes - zero points, whole numbers"""
    scales: npt.NDArray[np.generic]
    """[n] in the stored dtype"""
    zero_points: Float32 | None
    """[n] whole numbers; None in symmetric formats"""

    def codes(self, fmt: BlockFormat) -> Codes:
        """uint8 [block_size, n]: the levels plus the zero points, those of ``fmt`` where it is symmetric."""
        zero_points = np.float32(fmt.zero_point) if self.zero_points is None else self.zero_points
        return (self.levels + zero_points).astype(np.uint8)


def quantize_scale_search(weights: Float32, fmt: BlockFormat, importance: Float32 | None = None) -> QuantizedRows:
    """Quantize float32 ``weights`` [N, K]: per block the scale that minimises sum_k importance_k (w_k - w'_k)^2.

    importance: [K], not negative; None weighs all columns the same. No block is worse than rounding to nearest makes
    it. Raises ValueError as quantize_round_to_nearest does.
    """
    count, columns = weights.shape
    store = RowsInBlocks(count, columns, fmt)
    padded = padded_importance(importance, store.blocks * fmt.block_size, columns)
    for start in range(0, count, _ROWS):
        rows = slice(start, min(start + _ROWS, count))
        for block in range(store.blocks):
            inside = slice(block * fmt.block_size, (block + 1) * fmt.block_size)
            column = block_column(weights[rows, inside], fmt)
            store.put(rows, block, search_block_column(column, fmt, padded[inside]))
    return store.packed()


def padded_importance(importance: Float32 | None, length: int, columns: int) -> Float32:
    """[length]: ``importance`` [columns] or ones, then zeros."""
    padded = np.zeros(length, np.float32)
    padded[:columns] = 1 if importance is None else importance
    return padded


def block_column(rows: Float32, fmt: BlockFormat) -> Float32:
    """rows [n, up to block_size] as C-contiguous [block_size, n], padded with zeros."""
    if rows.shape[1] == fmt.block_size:
        return np.ascontiguousarray(rows.T)
    column = np.zeros((fmt.block_size, rows.shape[0]), np.float32)
    column[: rows.shape[1]] = rows.T
    return column


class RowsInBlocks:
    """QuantizedRows under construction: block columns are put in one after the other, in any order."""

    def __init__(self, count: int, columns: int, fmt: BlockFormat) -> None:
        self._format = fmt
        self.blocks = fmt.blocks(columns)
        self._data = np.empty((count, self.blocks, fmt.block_bytes), np.uint8)
        self._scales = np.empty((count, self.blocks), fmt.scale_numpy)
        self._zero_points = None if fmt.symmetric else np.empty((count, self.blocks), np.uint8)

    def put(self, rows: slice, block: int, column: BlockColumn) -> None:
        """Block number ``block`` of the rows ``rows``, packed and stored from ``column``, whose n is their number."""
        fmt = self._format
        self._data[rows, block] = fmt.pack(column.codes(fmt), axis=0).T
        self._scales[rows, block] = column.scales
        if self._zero_points is not None and column.zero_points is not None:
            self._zero_points[rows, block] = column.zero_points

    def packed(self) -> QuantizedRows:
        """The finished rows, their zero points packed; complete once every block of every row was put in."""
        zero_points = None if self._zero_points is None else self._format.pack(self._zero_points)
        return QuantizedRows(self._data, self._scales, zero_points)


def search_block_column(column: Float32, fmt: BlockFormat, importance: Float32) -> BlockColumn:
    """Best found quantization of ``column`` [block_size, n] with ``importance`` [block_size]."""
    search = _search_symmetric if fmt.symmetric else _search_with_zero_points
    return _better_of(column, importance[:, None], fmt, search(column, fmt, importance[:, None]))


def search_scales(column: Float32, fmt: BlockFormat, importance: Float32) -> Candidate:
    """Scales and zero points alone, for levels that are chosen otherwise; not compared with rounding to nearest."""
    search = _search_symmetric if fmt.symmetric else _search_with_zero_points
    count = column.shape[1]
    scales = np.empty(count, fmt.scale_numpy)
    zero_points = None if fmt.symmetric else np.empty(count, np.float32)
    for start in range(0, count, _ROWS):
        rows = slice(start, start + _ROWS)
        (plain, plain_zero), (found, zero) = search(np.ascontiguousarray(column[:, rows]), fmt, importance[:, None])
        scales[rows] = np.where(found != 0, found, plain)
        if zero_points is not None and plain_zero is not None and zero is not None:
            zero_points[rows] = np.where(found != 0, zero, plain_zero)
    return scales, zero_points


# Code that the block's value of largest magnitude gets, before rounding and clipping: below 0 it takes the end of the
# range that reaches one step further. Eight of a grid of 94, chosen one by one for the error on normal weights: 0.6 %
# above the error of the whole grid.
_PEAK_CODES = {
    4: (-9.3, -8.6, -8.3, -7.7, -7.2, -6.8, -6.1, 8.5),
    8: (-129.0, -127.5, -127.0, -126.0, -125.0, 128.0, 127.0, 126.0),
}


def _search_symmetric(column: Float32, fmt: BlockFormat, importance: Float32) -> tuple[Candidate, Candidate]:
    """Scales that round to nearest and scales found: importance [block_size, 1]."""
    low, high = np.float32(-fmt.zero_point), np.float32(fmt.zero_point - 1)
    largest, smallest = column.max(axis=0), column.min(axis=0)
    _require_finite(largest, smallest)
    peak = np.where(largest >= -smallest, largest, smallest)
    plain = stored_scales(peak / low, fmt)

    unit = column * reciprocal(peak)  # in units of the peak: neither overflows nor underflows
    weighted = unit * importance
    root = np.sqrt(importance)
    scratch, levels = np.empty_like(unit), np.empty_like(unit)

    def fit(codes_of_peak: float) -> tuple[Float32, Float32]:
        np.multiply(unit, codes_of_peak, out=levels)
        np.rint(levels, out=levels)
        if abs(codes_of_peak) >= high + 0.5:  # else no level is beyond the range
            levels.clip(low, high, out=levels)
        along = _column_sums(np.multiply(weighted, levels, out=scratch))
        np.multiply(levels, root, out=levels)
        return along, _column_sums(np.multiply(levels, levels, out=scratch))

    # The error at the best scale for given codes, along / norm, is the block's own energy less along^2 / norm.
    along, norm = fit(float(low))
    best = along * along * reciprocal(norm)
    scale = along * reciprocal(norm)
    for code in _PEAK_CODES[fmt.bits]:
        along, norm = fit(code)
        inverse = np.reciprocal(np.maximum(norm, _SMALLEST_SCALE))
        gain = along * along * inverse
        better = gain > best
        np.copyto(best, gain, where=better)
        np.copyto(scale, along * inverse, where=better)
    refined = stored_scales(scale * peak, fmt, limit=True)
    return (plain, None), (refined, None)


_SHRINKS = {4: (0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: (0.995, 0.99, 0.98)}
"""Candidate widths of the range of a block with a zero point, as shares of max - min."""


def _search_with_zero_points(column: Float32, fmt: BlockFormat, importance: Float32) -> tuple[Candidate, Candidate]:
    """As _search_symmetric, with zero points."""
    largest, smallest = np.maximum(column.max(axis=0), 0), np.minimum(column.min(axis=0), 0)
    _require_finite(largest, smallest)
    top = np.float32(fmt.max_code)
    plain = stored_scales(largest / top - smallest / top, fmt)
    plain_zero = np.minimum(np.rint(-smallest * reciprocal(plain)), top)

    width = largest - smallest
    unit = column * reciprocal(width)
    centre = (largest + smallest) * reciprocal(width) / 2
    weighted = unit * importance
    root = np.sqrt(importance)
    scratch, levels = np.empty_like(unit), np.empty_like(unit)

    def fit(steps: float, zero: Float32) -> tuple[Float32, Float32]:
        np.multiply(unit, np.float32(steps), out=levels)
        np.rint(levels, out=levels)
        levels.clip(-zero, top - zero, out=levels)
        along = _column_sums(np.multiply(weighted, levels, out=scratch))
        np.multiply(levels, root, out=levels)
        return along, _column_sums(np.multiply(levels, levels, out=scratch))

    along, norm = fit(float(top), plain_zero)
    best, scale, zero = along * along * reciprocal(norm), along * reciprocal(norm), plain_zero.copy()
    for shrink in _SHRINKS[fmt.bits]:
        steps = float(top) / shrink
        middle = top / 2 - centre * np.float32(steps)
        for candidate in (np.floor(middle), np.ceil(middle)):
            np.clip(candidate, 0, top, out=candidate)
            along, norm = fit(steps, candidate)
            inverse = np.reciprocal(np.maximum(norm, _SMALLEST_SCALE))
            gain = along * along * inverse
            better = gain > best
            np.copyto(best, gain, where=better)
            np.copyto(scale, along * inverse, where=better)
            np.copyto(zero, candidate, where=better)
    refined = stored_scales(scale * width, fmt, limit=True)
    return (plain, plain_zero), (refined, zero)


def _better_of(
    column: Float32,
    importance: Float32,
    fmt: BlockFormat,
    candidates: tuple[Candidate, Candidate],
) -> BlockColumn:
    """Of (scales, zero points), per block, the one with the smaller error as stored; the first of equals."""
    chosen: BlockColumn | None = None
    least = np.empty(0, np.float32)
    for scales, zero_points in candidates:
        levels = nearest_levels(column, reciprocal(scales), zero_points, fmt)
        rest = levels * scales.astype(np.float32)
        rest -= column
        rest *= rest
        rest *= importance
        error = _column_sums(rest)
        if chosen is None:
            chosen, least = BlockColumn(levels, scales, zero_points), error
            continue
        better = error < least
        np.copyto(chosen.levels, levels, where=better)
        np.copyto(chosen.scales, scales, where=better)
        if chosen.zero_points is not None and zero_points is not None:
            np.copyto(chosen.zero_points, zero_points, where=better)
    assert chosen is not None
    return chosen


def nearest_levels(column: Float32, inverse: Float32, zero_points: Float32 | None, fmt: BlockFormat) -> Float32:
    """Whole numbers nearest to column / scale within the format's range, code - zero point."""
    zero = np.float32(fmt.zero_point) if zero_points is None else zero_points
    levels = column * inverse
    np.rint(levels, out=levels)
    return np.clip(levels, -zero, np.float32(fmt.max_code) - zero, out=levels)


def stored_scales(exact: Float32, fmt: BlockFormat, *, limit: bool = False) -> npt.NDArray[np.generic]:
    """Scales in their stored type; too large ones raise ValueError or, with ``limit``, become 0."""
    exact = np.where(np.abs(exact) < _SMALLEST_SCALE, np.float32(0), exact)
    with np.errstate(over="ignore"):
        scales = exact.astype(fmt.scale_numpy)
    beyond = ~np.isfinite(scales)
    if beyond.any():
        if not limit:
            raise ValueError(f"a scale of {float(np.abs(exact).max()):.6g} is beyond {fmt.scale_dtype} (65504)")
        scales[beyond] = 0
    return scales


def reciprocal(values: npt.NDArray[np.generic]) -> Float32:
    """1 / value in float32, 0 where that would not be finite."""
    wide = values.astype(np.float32)
    return np.divide(1, wide, out=np.zeros_like(wide), where=np.abs(wide) >= _SMALLEST_SCALE)


def _column_sums(values: Float32) -> Float32:
    """Sums [n] of [block_size, n], row after row; a single column numpy would add in another order."""
    sums: Float32 = np.add.reduce(values, axis=0) if values.shape[1] > 1 else np.add.accumulate(values, axis=0)[-1]
    return sums


def _require_finite(largest: Float32, smallest: Float32) -> None:
    if not (np.isfinite(largest).all() and np.isfinite(smallest).all()):
        raise ValueError("a weight is infinite or not a number")
