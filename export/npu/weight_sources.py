"""Where the weights of a static graph come from: tensors of the checkpoint by name, and what is folded into them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...checkpoint.checkpoint import Checkpoint

Array = npt.NDArray[np.float32]
Rows = Callable[[int, int], Array]


@dataclass(frozen=True)
class WeightSources:
    """Float32 rows of the checkpoint's tensors under ``prefix``, read when asked for."""

    checkpoint: Checkpoint
    prefix: str = ""

    def scope(self, prefix: str) -> WeightSources:
        return WeightSources(self.checkpoint, self.prefix + prefix)

    def matrix(self, name: str) -> Rows:
        """Rows of one matrix [N, K]."""
        full = self.prefix + name
        return lambda first, last: self.checkpoint.float32(full, slice(first, last))

    def stacked(self, *names: str) -> Rows:
        """Rows of matrices [N_i, K] below one another."""
        ends = np.cumsum([self.checkpoint.shape(self.prefix + name)[0] for name in names]).tolist()
        starts = [0, *ends[:-1]]

        def rows(first: int, last: int) -> Array:
            pieces = [
                self.checkpoint.float32(self.prefix + name, slice(max(first, start) - start, min(last, end) - start))
                for name, start, end in zip(names, starts, ends, strict=True)
                if max(first, start) < min(last, end)
            ]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

        return rows

    def side_by_side(self, names: list[str], factor: float = 1.0) -> Rows:
        """Rows of matrices [N, K_i] beside one another, times ``factor``."""

        def rows(first: int, last: int) -> Array:
            pieces = [self.checkpoint.float32(self.prefix + name, slice(first, last)) for name in names]
            return np.concatenate(pieces, axis=1) * np.float32(factor)

        return rows

    def experts(self, pattern: str, factor: float = 1.0) -> Rows:
        """Whole matrices of the experts first … last - 1, ``pattern`` with the expert for {}, below one another."""

        def rows(first: int, last: int) -> Array:
            pieces = [self.checkpoint.float32(self.prefix + pattern.format(expert)) for expert in range(first, last)]
            return (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)) * np.float32(factor)

        return rows

    def tensor(self, name: str, change: Callable[[Array], Array] = lambda values: values) -> Rows:
        """A whole small tensor, changed as given."""
        full = self.prefix + name
        return lambda first, last: np.ascontiguousarray(change(self.checkpoint.float32(full)))
