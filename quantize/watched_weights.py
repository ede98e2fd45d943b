"""A layer's weights for the reference's walk that record what they are multiplied by, and multiply in parallel."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.formats import Float32

if TYPE_CHECKING:
    from ..reference.weights import WeightReader

_ROWS = 512
"""Rows of a weight matrix read, converted and multiplied at a time by one thread."""

_UNWATCHED = re.compile(r"norm|bias|conv\.conv\.")


@dataclass
class RecordedInputs:
    """What went into the matrices of one layer: name within the layer -> pieces [tokens, K]."""

    inputs: dict[str, list[Float32]] = field(default_factory=dict)

    def record(self, name: str, x: Float32) -> None:
        self.inputs.setdefault(name, []).append(x)

    @property
    def nbytes(self) -> int:
        """Bytes of the distinct arrays: gate_up and router share theirs."""
        return sum({id(piece): piece.nbytes for pieces in self.inputs.values() for piece in pieces}.values())


class WatchedWeights:
    """Weights for the walk through a layer: matrices are read when multiplied and record what they multiply.

    layer: where that is recorded, under names without ``root``, the prefix of the layer's tensors.
    """

    def __init__(
        self, reader: WeightReader, layer: RecordedInputs, pool: ThreadPoolExecutor, root: str, prefix: str = ""
    ) -> None:
        self._reader, self._layer, self._pool = reader, layer, pool
        self._root, self._prefix = root, prefix

    def scope(self, prefix: str) -> WatchedWeights:
        return WatchedWeights(self._reader, self._layer, self._pool, self._root, self._prefix + prefix)

    def __call__(self, name: str) -> Any:
        full = self._prefix + name
        path = full.removeprefix(self._root)
        if _UNWATCHED.search(path):
            return self._reader.float32(full)
        return _WatchedMatrix(self._reader, full, path, self._layer, self._pool)


class _WatchedMatrix:
    """W in ``x @ W.T``: multiplied a few rows at a time, in parallel, without ever being in memory as a whole."""

    __array_ufunc__ = None  # numpy then leaves x @ self to __rmatmul__

    def __init__(
        self, reader: WeightReader, name: str, path: str, layer: RecordedInputs, pool: ThreadPoolExecutor
    ) -> None:
        self._reader, self._name, self._path = reader, name, path
        self._layer, self._pool = layer, pool

    @property
    def T(self) -> _WatchedMatrix:
        return self

    def __rmatmul__(self, x: Float32) -> Float32:
        if not self._path.endswith((".w3.weight", "k_proj.weight", "v_proj.weight")):
            self._layer.record(self._path, x)
        count = self._reader.shape(self._name)[0]
        y = np.empty((len(x), count), np.float32)

        def multiply(first: int) -> None:
            rows = slice(first, min(first + _ROWS, count))
            y[:, rows] = x @ self._reader.float32(self._name, rows).T

        list(self._pool.map(multiply, range(0, count, _ROWS)))
        return y
