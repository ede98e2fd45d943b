"""A layer's weights for the reference's walk that record what they are multiplied by, and multiply in parallel."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.formats import Float32
from ..artifact.graph_weights import GraphWeight

if TYPE_CHECKING:
    from ..reference.weights import WeightReader

_ROWS = 512
"""Rows of a weight matrix read, converted and multiplied at a time by one thread."""


@dataclass(frozen=True)
class WatchedMatrices:
    """The checkpoint's matrices that are read when multiplied, and those of them whose inputs are recorded.

    Of matrices with the same input the first alone records it; of experts also what all of them have in common.
    """

    names: frozenset[str]
    recorded: frozenset[str]

    @classmethod
    def of(cls, weights: Iterable[GraphWeight]) -> WatchedMatrices:
        """Those that the weights with blocks of a table are made of."""
        blocks = [weight for weight in weights if weight.group is not None]
        common = {weight.common_input for weight in blocks if weight.common_input is not None}
        firsts = {sources[0] for weight in blocks for _, sources in weight.sources_by_expert()}
        return cls(frozenset(common.union(*(weight.sources for weight in blocks))), frozenset(common | firsts))


@dataclass
class RecordedInputs:
    """What went into the matrices of one layer: the matrix's name -> pieces [tokens, K]."""

    inputs: dict[str, list[Float32]] = field(default_factory=dict)

    def record(self, name: str, x: Float32) -> None:
        """One more piece ``x`` [tokens, K] of what goes into the matrix ``name``; kept, not copied."""
        self.inputs.setdefault(name, []).append(x)

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct arrays: gate_up and router share theirs."""
        return sum({id(piece): piece.nbytes for pieces in self.inputs.values() for piece in pieces}.values())


class WatchedWeights:
    """Weights for the walk through a layer: matrices are read when multiplied and record there what they multiply."""

    def __init__(
        self,
        reader: WeightReader,
        matrices: WatchedMatrices,
        layer: RecordedInputs,
        pool: ThreadPoolExecutor,
        prefix: str = "",
    ) -> None:
        self._reader, self._matrices = reader, matrices
        self._layer, self._pool, self._prefix = layer, pool, prefix

    def scope(self, prefix: str) -> WatchedWeights:
        """The same weights by names relative to ``prefix``, itself relative to this prefix; one record for all."""
        return WatchedWeights(self._reader, self._matrices, self._layer, self._pool, self._prefix + prefix)

    def __call__(self, name: str) -> Any:
        """The tensor in float32, or for a watched matrix what stands for it in ``x @ W.T``."""
        full = self._prefix + name
        if full not in self._matrices.names:
            return self._reader.float32(full)
        layer = self._layer if full in self._matrices.recorded else None
        return _WatchedMatrix(self._reader, full, layer, self._pool)


class _WatchedMatrix:
    """W in ``x @ W.T``: multiplied a few rows at a time, in parallel, without ever being in memory as a whole."""

    __array_ufunc__ = None  # numpy then leaves x @ self to __rmatmul__

    def __init__(self, reader: WeightReader, name: str, layer: RecordedInputs | None, pool: ThreadPoolExecutor) -> None:
        """layer: where x is recorded, if it is."""
        self._reader, self._name, self._layer, self._pool = reader, name, layer, pool

    @property
    def T(self) -> _WatchedMatrix:
        return self

    def __rmatmul__(self, x: Float32) -> Float32:
        if self._layer is not None:
            self._layer.record(self._name, x)
        count = self._reader.shape(self._name)[0]
        y = np.empty((len(x), count), np.float32)

        def multiply(first: int) -> None:
            rows = slice(first, min(first + _ROWS, count))
            y[:, rows] = x @ self._reader.float32(self._name, rows).T

        list(self._pool.map(multiply, range(0, count, _ROWS)))
        return y
