"""Streams one weight matrix into a block format: its rows are read and quantized once for all its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError
from ..quantize.formats import BlockFormat, QuantizedRows
from ..quantize.round_to_nearest import quantize_round_to_nearest

Chunks = Callable[[], Iterator[npt.NDArray[np.float32]]]
Arrays = Iterator[npt.NDArray[np.generic]]


class BlockWeight:
    """Codes, scales and zero points of a weight whose float32 rows come from ``rows`` in pieces [.., K].

    Codes are made piece by piece; the scales and zero points made with them (a few per cent of the bytes) wait until
    they are asked for. Asked for without the codes, as in an export that goes on, they are made again.
    """

    def __init__(self, name: str, fmt: BlockFormat, rows: Chunks) -> None:
        self._name = name
        self._format = fmt
        self._rows = rows
        self._scales: list[npt.NDArray[np.generic]] | None = None
        self._zero_points: list[npt.NDArray[np.generic]] | None = None

    def codes(self) -> Arrays:
        scales: list[npt.NDArray[np.generic]] = []
        zero_points: list[npt.NDArray[np.generic]] = []
        for piece in self._rows():
            quantized = self._quantize(piece.reshape(-1, piece.shape[-1]))
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

    def _quantize(self, rows: npt.NDArray[np.float32]) -> QuantizedRows:
        try:
            return quantize_round_to_nearest(rows, self._format)
        except ValueError as error:
            raise CheckpointError(
                f"{self._name} cannot be stored as {self._format.name}: {error}; export with --precision fp32"
            ) from None
