"""A layer's weights for the reference's blocks that record what they are multiplied by, and multiply in parallel."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifact.formats import Float32

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint

_ROWS = 512
"""Rows of a weight matrix read, converted and multiplied at a time by one thread."""

_UNWATCHED = re.compile(r"norm|bias|conv\.conv\.|feed_forward\.gate\.")


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
    """A layer's weights for the reference's blocks: matrices are read when multiplied and record what they multiply."""

    def __init__(
        self, checkpoint: Checkpoint, layer: RecordedInputs, pool: ThreadPoolExecutor, root: str, path: str = ""
    ) -> None:
        self._checkpoint, self._layer, self._pool = checkpoint, layer, pool
        self._root, self._path = root, path

    def scope(self, prefix: str) -> WatchedWeights:
        return WatchedWeights(self._checkpoint, self._layer, self._pool, self._root, self._path + prefix)

    def array(self, name: str) -> Float32:
        return self._checkpoint.float32(self._root + self._path + name)

    def __call__(self, name: str) -> Any:
        path = self._path + name
        if _UNWATCHED.search(path):
            return self.array(name)
        return _WatchedMatrix(self._checkpoint, self._root + path, path, self._layer, self._pool)


class _WatchedMatrix:
    """W in ``x @ W.T``: multiplied a few rows at a time, in parallel, without ever being in memory as a whole."""

    __array_ufunc__ = None  # numpy then leaves x @ self to __rmatmul__

    def __init__(
        self, checkpoint: Checkpoint, name: str, path: str, layer: RecordedInputs, pool: ThreadPoolExecutor
    ) -> None:
        self._checkpoint, self._name, self._path = checkpoint, name, path
        self._layer, self._pool = layer, pool

    @property
    def T(self) -> _WatchedMatrix:
        return self

    def __rmatmul__(self, x: Float32) -> Float32:
        if not self._path.endswith((".w3.weight", "k_proj.weight", "v_proj.weight")):
            self._layer.record(self._path, x)
        count = self._checkpoint.shape(self._name)[0]
        y = np.empty((len(x), count), np.float32)

        def multiply(first: int) -> None:
            rows = slice(first, min(first + _ROWS, count))
            y[:, rows] = x @ self._checkpoint.float32(self._name, rows).T

        list(self._pool.map(multiply, range(0, count, _ROWS)))
        return y
