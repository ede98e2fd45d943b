"""Where the weights of a static graph come from: tensors of the checkpoint by name, and what is folded into them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...checkpoint.checkpoint import Checkpoint

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Rows:
    """``read(first, last)`` gives rows as ``static_graph.Weight`` says; ``sources``: the tensors that these come from.

    Several sources' rows stand below one another, or ``beside`` one another.
    """

    read: Callable[[int, int], Array]
    sources: tuple[str, ...] = ()
    beside: bool = False

    def __call__(self, first: int, last: int) -> Array:
        """The float32 rows that ``read`` gives."""
        return self.read(first, last)


@dataclass(frozen=True)
class WeightSources:
    """Float32 rows of the checkpoint's tensors under ``prefix``, read when asked for."""

    checkpoint: Checkpoint
    prefix: str = ""

    def scope(self, prefix: str) -> WeightSources:
        """The same checkpoint, for names under ``prefix`` after the present one."""
        return WeightSources(self.checkpoint, self.prefix + prefix)

    def matrix(self, name: str) -> Rows:
        """Rows of one matrix [N, K]."""
        full = self.prefix + name
        return Rows(lambda first, last: self.checkpoint.float32(full, slice(first, last)), (full,))

    def stacked(self, names: Sequence[str]) -> Rows:
        """Rows of matrices [N_i, K] below one another."""
        sources = self._full(names)
        ends = np.cumsum([self.checkpoint.shape(source)[0] for source in sources]).tolist()
        starts = [0, *ends[:-1]]

        def rows(first: int, last: int) -> Array:
            pieces = [
                self.checkpoint.float32(source, slice(max(first, start) - start, min(last, end) - start))
                for source, start, end in zip(sources, starts, ends, strict=True)
                if max(first, start) < min(last, end)
            ]
            return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

        return Rows(rows, sources)

    def side_by_side(self, names: Sequence[str], factor: float = 1.0) -> Rows:
        """Rows of matrices [N, K_i] beside one another, times ``factor``."""
        sources = self._full(names)

        def rows(first: int, last: int) -> Array:
            pieces = [self.checkpoint.float32(source, slice(first, last)) for source in sources]
            result: Array = np.concatenate(pieces, axis=1) * np.float32(factor)
            return result

        return Rows(rows, sources, beside=True)

    def experts(self, names: Sequence[str], factor: float = 1.0) -> Rows:
        """Whole matrices of the experts first … last - 1, of which ``names`` has one each, below one another."""
        sources = self._full(names)

        def rows(first: int, last: int) -> Array:
            pieces = [self.checkpoint.float32(source) for source in sources[first:last]]
            result: Array = (pieces[0] if len(pieces) == 1 else np.concatenate(pieces)) * np.float32(factor)
            return result

        return Rows(rows, sources)

    def tensor(self, name: str, change: Callable[[Array], Array] = lambda values: values) -> Rows:
        """A whole small tensor, changed as given."""
        full = self.prefix + name
        return Rows(lambda first, last: np.ascontiguousarray(change(self.checkpoint.float32(full))), (full,))

    def _full(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.prefix + name for name in names)
