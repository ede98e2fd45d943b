"""Streams one weight matrix into a block format: its rows are read and quantized once for all its tensors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from ..artifact.formats import BlockFormat, QuantizedRows
from ..artifact.graph_weights import GraphWeight
from ..errors import CheckpointError
from ..hardware.cores import thread_count

Chunks = Callable[[], Iterator[npt.NDArray[np.float32]]]
Arrays = Iterator[npt.NDArray[np.generic]]
Quantize = Callable[[GraphWeight, npt.NDArray[np.float32], int, BlockFormat], QuantizedRows]
"""(weight, rows [n, K], index of the first of them among all rows of the weight, format) → blocks."""

MOST_THREADS = 16
"""Each holds a piece of up to 32 MiB of float32 and what is made of it: more threads would cost more memory."""


class BlockWeight:
    """Codes, scales and zero points of a weight whose float32 rows come from ``rows`` in pieces [.., K].

    Up to ``threads`` pieces are quantized at a time, and given out in their order: bytes do not depend on threads.
    Codes are made piece by piece; the scales and zero points made with them (a few per cent of the bytes) wait until
    they are asked for. Asked for without the codes, as in an export that goes on, they are made again.
    """

    def __init__(
        self, weight: GraphWeight, fmt: BlockFormat, rows: Chunks, quantize: Quantize, threads: int | None = None
    ) -> None:
        self._weight = weight
        self._format = fmt
        self._rows = rows
        self._quantize = quantize
        self._threads = min(thread_count(threads), MOST_THREADS)
        self._scales: list[npt.NDArray[np.generic]] | None = None
        self._zero_points: list[npt.NDArray[np.generic]] | None = None

    def codes(self) -> Arrays:
        scales: list[npt.NDArray[np.generic]] = []
        zero_points: list[npt.NDArray[np.generic]] = []
        for quantized in self._pieces():
            scales.append(quantized.scales)
            if quantized.zero_points is not None:
                zero_points.append(quantized.zero_points)
            yield quantized.data
        self._scales, self._zero_points = scales, zero_points

    def scales(self) -> Arrays:
        if self._scales is None:
            self._make_again()
        made, self._scales = self._scales, None
        yield from made or ()

    def zero_points(self) -> Arrays:
        if self._zero_points is None:
            self._make_again()
        made, self._zero_points = self._zero_points, None
        yield from made or ()

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
                f"{self._weight.name} cannot be stored as {self._format.name}: {error}; export with --precision fp32"
            ) from None
