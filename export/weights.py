"""From checkpoint tensors to initializers: read, laid out, narrowed or quantized, piece by piece when written."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from ..artifact.formats import BlockFormat, QuantizedRows
from ..artifact.graph_weights import SCALES, ZERO_POINTS, GraphWeight, Layout
from ..checkpoint.checkpoint import Checkpoint
from ..errors import CheckpointError
from ..hardware.cores import thread_count
from ..quantize.quantization import Quantization
from .graph_context import rotary_cache

PIECE_ELEMENTS = 4 << 20
"""Elements read, converted and written at a time: 16 MiB of float32."""

Pieces = Callable[[], Iterator[npt.NDArray[np.float32]]]
Arrays = Iterator[npt.NDArray[np.generic]]
Quantize = Callable[[GraphWeight, npt.NDArray[np.float32], int, BlockFormat], QuantizedRows]
"""(weight, rows [n, K], index of the first of them among all rows of the weight, format) → blocks."""

MOST_THREADS = 16
"""Each holds a piece of up to 32 MiB of float32 and what is made of it: more threads would cost more memory."""


@dataclass(frozen=True)
class WeightTensor:
    """One initializer to write: ``pieces`` gives it C-contiguous, piece by piece in order, in its dtype.

    CheckpointError comes from there where a value of the checkpoint does not fit the type.
    """

    name: str
    weight: GraphWeight
    """The weight that it is, or holds scales or zero points of."""
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[npt.NDArray[np.generic]]]
    blocks: BlockFormat | None = None
    """The block format of the weight."""

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its values in the file, alignment aside."""
        return self.elements * self.dtype.itemsize

    @property
    def is_scales_or_zero_points(self) -> bool:
        """Whether this is not a weight itself but the scales or zero points of one."""
        return self.name != self.weight.name


def weight_tensors(
    model: ir.Model,
    weights: Iterable[GraphWeight],
    checkpoint: Checkpoint,
    quantization: Quantization | None = None,
) -> list[WeightTensor]:
    """A WeightTensor for each initializer of ``model`` that has no data yet, in the graph's order.

    weights: the model's table. quantization: what makes the blocks of those weights that have scales.
    """
    formats = quantization.format_of_weights() if quantization is not None else {}
    values = {value.name: value for value in model.graph.initializers.values() if value.const_value is None}
    contents: dict[str, _Content] = {}
    for weight in weights:
        rows = partial(_rows, weight, checkpoint)
        if quantization is None or weight.name not in formats:
            contents[weight.name] = _Content(weight, rows)
            continue
        fmt = formats[weight.name]
        blocks = BlockWeight(weight, fmt, rows, quantization.quantize, quantization.threads)
        arrays = {"": blocks.codes, SCALES: blocks.scales, ZERO_POINTS: blocks.zero_points}
        contents |= {weight.name + suffix: _Content(weight, pieces, fmt) for suffix, pieces in arrays.items()}
    return [_tensor(value, contents[name]) for name, value in values.items() if name is not None]


@dataclass(frozen=True)
class _Content:
    """What is in one initializer of a weight: its floats, or the codes, scales or zero points of its blocks."""

    weight: GraphWeight
    pieces: Callable[[], Iterator[npt.NDArray[Any]]]
    blocks: BlockFormat | None = None


def _tensor(value: ir.Value, content: _Content) -> WeightTensor:
    assert value.name is not None and value.shape is not None and value.dtype is not None
    shape = tuple(int(size) for size in value.shape.numpy())
    dtype = np.dtype(value.dtype.numpy())
    pieces = content.pieces if content.blocks is not None else partial(_narrow_all, content.pieces, dtype, value.name)
    return WeightTensor(value.name, content.weight, dtype, shape, pieces, content.blocks)


def _rows(weight: GraphWeight, checkpoint: Checkpoint) -> Iterator[npt.NDArray[np.float32]]:
    """The weight's float32 values in C-contiguous pieces, none of two experts."""
    if weight.layout is Layout.ROWS:
        for source in weight.sources:
            yield from _row_pieces(checkpoint, source)
    elif weight.layout is Layout.PAIRS:
        for _, (first, second) in weight.sources_by_expert():
            yield from _pair_pieces(checkpoint, first, second)
    elif weight.layout is Layout.TAPS:
        yield np.ascontiguousarray(checkpoint.float32(weight.sources[0])[:, 0, :].T)
    elif weight.layout is Layout.ZEROS:
        yield np.zeros(weight.shape, np.float32)
    else:
        yield from _rotary_pieces(checkpoint, weight.shape, sine=weight.layout is Layout.SINES)


def _row_pieces(checkpoint: Checkpoint, name: str) -> Iterator[npt.NDArray[np.float32]]:
    shape = checkpoint.shape(name)
    step = max(1, PIECE_ELEMENTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], step):
        yield checkpoint.float32(name, slice(start, min(start + step, shape[0])))


def _pair_pieces(checkpoint: Checkpoint, first: str, second: str) -> Iterator[npt.NDArray[np.float32]]:
    """[n, 2, K]: the layout that ai.liquid::SparseMoE and SwiGLU read, the gate's row before the same one of up."""
    pairs = zip(_row_pieces(checkpoint, first), _row_pieces(checkpoint, second), strict=True)
    return (np.stack(pair, axis=1) for pair in pairs)


def _rotary_pieces(checkpoint: Checkpoint, shape: tuple[int, ...], *, sine: bool) -> Iterator[npt.NDArray[np.float32]]:
    step = max(1, PIECE_ELEMENTS // shape[1])
    for start in range(0, shape[0], step):
        yield rotary_cache(checkpoint.config, np.arange(start, min(start + step, shape[0])))[int(sine)]


def _narrow_all(source: Pieces, dtype: np.dtype[np.generic], name: str) -> Iterator[npt.NDArray[np.generic]]:
    return (_narrow(piece, dtype, name) for piece in source())


def _narrow(values: npt.NDArray[np.float32], dtype: np.dtype[np.generic], name: str) -> npt.NDArray[np.generic]:
    if dtype == values.dtype:
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(dtype)
    if not np.isfinite(narrow).all() and np.isfinite(values).all():
        largest = float(np.abs(values).max())
        raise CheckpointError(
            f'{name} holds {largest:.6g}, beyond {dtype.name}\'s range (65504); export with `precision="fp32"`'
        )
    return narrow


class BlockWeight:
    """Codes, scales and zero points of a weight whose float32 rows come from ``rows`` in pieces [.., K].

    Up to ``threads`` pieces are quantized at a time, and given out in their order: bytes do not depend on threads.
    Codes are made piece by piece; the scales and zero points made with them (a few per cent of the bytes) wait until
    they are asked for. Asked for without the codes, as in an export that goes on, they are made again.
    """

    def __init__(
        self, weight: GraphWeight, fmt: BlockFormat, rows: Pieces, quantize: Quantize, threads: int | None = None
    ) -> None:
        self._weight = weight
        self._format = fmt
        self._rows = rows
        self._quantize = quantize
        self._threads = min(thread_count(threads), MOST_THREADS)
        self._scales: list[npt.NDArray[np.generic]] | None = None
        self._zero_points: list[npt.NDArray[np.generic]] | None = None

    def codes(self) -> Arrays:
        """Codes [rows, blocks, block_bytes] of each piece in turn; its scales and zero points are kept for later."""
        scales: list[npt.NDArray[np.generic]] = []
        zero_points: list[npt.NDArray[np.generic]] = []
        for quantized in self._pieces():
            scales.append(quantized.scales)
            if quantized.zero_points is not None:
                zero_points.append(quantized.zero_points)
            yield quantized.data
        self._scales, self._zero_points = scales, zero_points

    def scales(self) -> Arrays:
        """Scales [rows, blocks] of each piece in turn; kept ones are given out once and then made again."""
        if self._scales is None:
            self._make_again()
        scales, self._scales = self._scales, None
        yield from scales or ()

    def zero_points(self) -> Arrays:
        """Zero points [rows, zero_point_bytes] of each piece in turn, like ``scales``; none in symmetric formats."""
        if self._zero_points is None:
            self._make_again()
        zero_points, self._zero_points = self._zero_points, None
        yield from zero_points or ()

    def _make_again(self) -> None:
        for _ in self.codes():
            pass

    def _pieces(self) -> Iterator[QuantizedRows]:
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="quantize")
        ahead: deque[Future[QuantizedRows]] = deque()
        first_row = 0
        try:
            for piece in self._rows():
                rows = piece.reshape(-1, piece.shape[-1])
                ahead.append(pool.submit(self._quantize_piece, rows, first_row))
                first_row += len(rows)
                if len(ahead) > self._threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _quantize_piece(self, rows: npt.NDArray[np.float32], first_row: int) -> QuantizedRows:
        try:
            return self._quantize(self._weight, rows, first_row, self._format)
        except ValueError as error:
            raise CheckpointError(
                f'{self._weight.name} cannot be stored as {self._format.name}: {error}; export with `precision="fp32"`'
            ) from None
