"""The weights that an artifact will hold, for the reference: rounded as they are read, one matrix at a time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..artifact.formats import BlockFormat, Float32, dequantize
from ..artifact.graph_weights import GraphWeight
from ..hardware.cores import thread_count
from ..reference.weights import ConvertedWeights, Weights
from .quantization import Quantization
from .tensor_groups import Formats, TensorGroup

_PIECE_ELEMENTS = 1 << 20
"""Weights quantized at a time by one thread."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the checkpoint stands in the graph: the weight, its expert's first row, its format."""

    weight: GraphWeight
    first_row: int
    fmt: BlockFormat


@dataclass(frozen=True)
class QuantizedWeights:
    """Weights by name under ``prefix``: those of the groups in ``formats`` as their blocks stand for them.

    rounds_activations: what such a matrix multiplies is rounded to int8 by block first, as the kernels do.
    Converted matrices stay as far as ``converted`` has room.
    """

    plain: Weights
    quantization: Quantization
    places: dict[str, _Place]
    rounds_activations: bool = True
    converted: ConvertedWeights = field(default_factory=ConvertedWeights)
    prefix: str = ""

    @classmethod
    def of(
        cls, quantization: Quantization, plain: Weights, formats: Formats, *, rounds_activations: bool = True
    ) -> QuantizedWeights:
        """Those groups that ``formats`` names are quantized, the others are ``plain``."""
        places: dict[str, _Place] = {}
        for group in quantization.groups:
            if group.name in formats:
                places |= _places(group, formats[group.name])
        return cls(plain, quantization, places, rounds_activations)

    def scope(self, prefix: str) -> QuantizedWeights:
        """The same weights by names relative to ``prefix``, itself relative to this prefix."""
        return replace(self, prefix=self.prefix + prefix)

    def __call__(self, name: str) -> Any:
        """The tensor of that name, rounded where its group has a format, else as ``plain`` gives it."""
        full = self.prefix + name
        place = self.places.get(full)
        if place is None:
            return self.plain(full)
        return self._matrix(full, place, slice(0, None))

    def gather(self, name: str, indices: npt.NDArray[np.int64]) -> Float32:
        """Rows of a table."""
        full = self.prefix + name
        rows = self.plain.gather(full, indices)
        place = self.places.get(full)
        return rows if place is None else self._round(rows, place)

    def row_pieces(self, name: str) -> Iterator[tuple[slice, Any]]:
        """All rows of a matrix in order, a few at a time."""
        full = self.prefix + name
        place = self.places.get(full)
        for rows, values in self.plain.row_pieces(full):
            yield rows, values if place is None else self._matrix(full, place, rows, values)

    def _matrix(self, name: str, place: _Place, rows: slice, values: Float32 | None = None) -> Any:
        key = (name, rows.start or 0)
        array = self.converted.arrays.get(key)
        if array is None:
            values = self.quantization.checkpoint.float32(name, rows) if values is None else values
            array = self._round(values, place)
            self.converted.keep(key, array)
        return _RoundingMatrix(array, place.fmt.block_size) if self.rounds_activations else array

    def _round(self, values: Float32, place: _Place) -> Float32:
        columns = values.shape[1]
        step = max(1, _PIECE_ELEMENTS // columns)
        pieces = [values[start : start + step] for start in range(0, len(values), step)]

        def rounded(rows: Float32) -> Float32:
            blocks = self.quantization.quantize(place.weight, rows, place.first_row, place.fmt)
            return dequantize(blocks, place.fmt, columns)

        if len(pieces) == 1:
            return rounded(values)
        with ThreadPoolExecutor(thread_count(self.quantization.threads)) as pool:
            return np.concatenate(list(pool.map(rounded, pieces)))


def _places(group: TensorGroup, fmt: BlockFormat) -> dict[str, _Place]:
    return {
        source: _Place(weight, (expert or 0) * weight.rows_per_expert, fmt)
        for weight in group.weights
        for expert, sources in weight.sources_by_expert()
        for source in sources
    }


class _RoundingMatrix:
    """W in ``x @ W.T``, where x [T, K] is first rounded to int8: scale = largest magnitude of a block / 127."""

    __array_ufunc__ = None  # numpy then leaves x @ self to __rmatmul__

    def __init__(self, values: Float32, block_size: int) -> None:
        self._values, self._block_size = values, block_size

    @property
    def T(self) -> _RoundingMatrix:
        return self

    def __rmatmul__(self, x: Float32) -> Float32:
        result: Float32 = rounded_activations(x, self._block_size) @ self._values.T
        return result


def rounded_activations(x: Float32, block_size: int) -> Float32:
    """x [T, K] as int8 blocks of ``block_size`` along K stand for it."""
    columns = x.shape[1]
    blocks = np.pad(x, ((0, 0), (0, -columns % block_size))).reshape(len(x), -1, block_size)
    scales = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
    steps = np.rint(np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0))
    result: Float32 = (steps * scales).reshape(len(x), -1)[:, :columns]
    return result
